"""What crosses the wire, what the attacker is shown, and what only the evaluator may see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

UpdateKind = Literal["gradient", "delta"]

Images = Float[Tensor, "batch channel height width"]
HardLabels = Int[Tensor, " batch"]
SoftLabels = Float[Tensor, "batch class"]
Labels = HardLabels | SoftLabels

Scope = Literal["update", "client", "round", "run"]
"""What one attempt looks at: one update, all of a client, all of a round, or all of a run."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

FRAMES = 32
"""Frames of a trajectory that are kept; of longer ones those are left out that lie between."""


@dataclass(frozen=True)
class View:
    """What one attempt looks at: the updates that these clients sent in these rounds.

    Views sort by their last round; of one round, those of single updates come first, by client.

    Args:
        rounds: ascending, at least one.
        clients: ascending, at least one; not each of them took part in every round.
        scope: of the attack.
        is_sum: whether their weighted sum alone is seen, as under secure aggregation.
    """

    rounds: tuple[int, ...]
    clients: tuple[int, ...]
    scope: Scope = "update"
    is_sum: bool = False

    @classmethod
    def of_update(cls, round: int, client: int) -> View:
        """Return the view of one client's update of one round."""
        return cls((round,), (client,))

    @property
    def round(self) -> int:
        """The last round."""
        return self.rounds[-1]

    @property
    def client(self) -> int | None:
        """The client of a single update; None where the view is one of several."""
        return self.clients[0] if self.scope == "update" else None

    def __lt__(self, other: View) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[Any, ...]:
        return self.round, SCOPES.index(self.scope), self.clients, self.rounds, self.is_sum

    def __str__(self) -> str:
        whose = f"client {self.clients[0]}" if len(self.clients) == 1 else f"{len(self.clients)} clients"
        when = f"round {self.rounds[0]}" if len(self.rounds) == 1 else f"rounds {self.rounds[0]} to {self.round}"
        return f"{'the sum of ' if self.is_sum else ''}{whose} in {when}"


@dataclass(frozen=True)
class Update:
    """One client's reply of one round; nothing else crossed the wire.

    Args:
        round: server round, from 1.
        client: partition number, from 0; -1 for the mean of several clients' updates.
        kind: `gradient`, the gradient of the mean loss over one batch; `delta`, new minus old weights.
        tensors: name of the parameter -> its gradient or difference, in the model's order, float32.
        num_examples: what the client reported to the server as `num-examples`, the number of distinct images that it
            trained on, however often it used each, or all that it holds where it draws them by Poisson sampling; 0 when it
            reported none.
        buffers: name of the buffer -> its new value on the client, such as BatchNorm's running statistics.
    """

    round: int
    client: int
    kind: UpdateKind
    tensors: Mapping[str, Tensor]
    num_examples: int
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def norm(self) -> float:
        """Return the l2 norm over all tensors; buffers do not count."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))

    def is_finite(self) -> bool:
        """Return whether every entry of every tensor and buffer is finite."""
        return all(bool(torch.isfinite(t).all()) for t in (*self.tensors.values(), *self.buffers.values()))


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation that turn pixels in [0, 1] into the model's input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _column(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def normalize(self, images: Images) -> Images:
        """Return the model's input for pixels in [0, 1]."""
        return (images - self._column(self.mean, images)).div_(self._column(self.std, images))

    def denormalize(self, images: Images) -> Images:
        """Return pixels (unclamped) for the model's input."""
        return images * self._column(self.std, images) + self._column(self.mean, images)


@dataclass(frozen=True)
class TrainingKnowledge:
    """The local training recipe, when the threat model grants `training`.

    Args:
        optimizer: `sgd` or `adamw`.
        learning_rate: step size in the round, whatever schedule it follows; of several rounds, their weighted mean.
        momentum: of SGD; 0 for AdamW.
        weight_decay: coefficient; applied to every parameter but those in `decay_exempt`.
        local_steps: steps per round; None when the client runs whole epochs over a set of unknown size.
        local_epochs: epochs per round; None when the client runs a fixed number of steps.
        decay_exempt: names of parameters without weight decay.
        label_smoothing: a of the label y = (1 - a) onehot + a / C; 0 for none.
        mixup: alpha of the Beta distribution that two images and their labels are mixed by; None for none.
        sampling: how a local step takes its images: `shuffle`, the next ones of a random order; `poisson`, each with the same
            probability and independently of all others, so that batches vary in size and may be empty.
        clip_norm: largest l2 norm of the gradient of all parameters in each local step, before momentum and weight decay;
            None for no clipping.
        augment: how each use of an image changes it, `flip` and `crop`; empty for not at all.
    """

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    local_steps: int | None
    local_epochs: int | None
    decay_exempt: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    mixup: float | None = None
    sampling: Literal["shuffle", "poisson"] = "shuffle"
    clip_norm: float | None = None
    augment: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UpdateEffects:
    """What a defense says that it does to an update, for attacks that model it.

    Args:
        clip_norm: largest l2 norm that it leaves of all tensors as one vector; None where it does not clip.
        noise: standard deviation of the Gaussian noise that it adds to each entry, in the update's units.
        hidden: patterns, as in a shell, of the names of parameters of which it sends zeros.
        rounding: how it rounds entries to a grid; None where it does not.
        shuffles_unseen: whether it shuffles the patches of an image without any trace in the update.
        dropped: of what it sends zeros that say nothing: `entries`, single ones of any tensor; `classifier columns`, those
            of the classifier's weight, each of which belongs to one entry of the classifier's input; None where it drops
            nothing.
        signs: whether of every entry the sign alone is left, and magnitudes and the scale of a tensor mean nothing.
        factor: by which it multiplies the whole update, beside clipping; None where an attacker cannot know it.
        partial_noise: standard deviation of the Gaussian noise that it adds to some entries; an attacker does not know which.
        carries_over: whether it adds what it held back in earlier rounds, so that the update is not of this round's images
            alone.
        local: patterns, as in a shell, of the names of parameters of which the client trains a copy of its own from round to
            round, which it never sends: its other gradients are not those at the global weights.
        own_loss: whether the gradient is that of a loss of the defense's own, which knows no labels, and not of the
            cross-entropy of the classifier.
    """

    clip_norm: float | None = None
    noise: float = 0.0
    hidden: tuple[str, ...] = ()
    rounding: Literal["nearest", "stochastic"] | None = None
    shuffles_unseen: bool = False
    dropped: Literal["entries", "classifier columns"] | None = None
    signs: bool = False
    factor: float | None = 1.0
    partial_noise: float = 0.0
    carries_over: bool = False
    local: tuple[str, ...] = ()
    own_loss: bool = False


@dataclass(frozen=True)
class DefenseKnowledge:
    """One defense that the observed client carries, when the threat model grants `defenses`.

    Args:
        name: in the scenario.
        params: all of them.
        effects: what it says of itself.
        defense: the `fedsim.defense.Defense` itself, frozen and without what it keeps on the client; an adaptive attack may
            apply its hooks to what it simulates, with draws of its own.
    """

    name: str
    params: Mapping[str, Any]
    effects: UpdateEffects = UpdateEffects()
    defense: Any = None


@dataclass(frozen=True)
class LabeledImages:
    """Images with labels, hard or soft: pixels in [0, 1], float32."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Candidates:
    """Pairs of images, one of each trained on in the round and the other never, when the threat model grants `candidates`.

    Which of the two was trained on is drawn by a coin for each pair. Both are of one class where the test images allow that.

    Args:
        images: pixels in [0, 1], float32; the test images of the run are the ones that were never trained on.
        labels: hard labels of both.
    """

    images: Float[Tensor, "pair 2 channel height width"]
    labels: Int[Tensor, "pair 2"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Observation:
    """All that an attack gets: the update, the model it was computed on, and what the threat model grants.

    Args:
        update: the client's update.
        model: factory for a fresh module that holds the round's global weights, in evaluation mode, on the CPU.
            Its `pretrained_cfg` says nothing about the client: the normalization is a grant of its own.
        image_shape: (channels, height, width) of the model's input.
        num_classes: outputs of the head.
        batch_size: images per local step, their expected number under Poisson sampling; None when not granted.
        labels: the batch's labels in no particular order, soft where the client smooths or mixes; None when not granted.
        normalization: the model's input normalization; None when not granted.
        training: the local recipe; None when not granted.
        train_mode: whether dropout and the like were active on the client; None when not granted.
        defenses: the defenses of this client, in order of application; None when not granted.
        auxiliary_data: images of the same distribution with hard labels, disjoint from every client's; None when not
            granted.
        members: of a view of several updates, each of them as an observation of its own, in the order of rounds and clients.
            Then `update` is their mean, weighted by their numbers of examples, which is what a server aggregates; `model`
            holds the weights of the first of them, `labels` are those of all, `batch_size` is the sum over the clients of a
            round, and `defenses` are those that any of the clients carries. Empty for a single update, and where the sum alone
            is seen.
        candidates: pairs of images of which one was trained on; None when not granted.
    """

    update: Update
    model: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int | None = None
    labels: Labels | None = None
    normalization: Normalization | None = None
    training: TrainingKnowledge | None = None
    train_mode: bool | None = None
    defenses: tuple[DefenseKnowledge, ...] | None = None
    auxiliary_data: LabeledImages | None = None
    members: tuple[Observation, ...] = ()
    candidates: Candidates | None = None

    @property
    def updates(self) -> tuple[Update, ...]:
        """All updates that the view shows: those of the members, or the only one."""
        return tuple(member.update for member in self.members) or (self.update,)


@dataclass(frozen=True)
class Truth:
    """The images behind an update, for `fedsim.audit.threat` and `fedsim.metrics` alone.

    Args:
        images: every distinct input the client trained on in the round, pixels in [0, 1]; blends where it mixes images,
            and mirrored or shifted where it augments them.
        labels: their labels; soft where the client smooths labels or mixes images.
        pictures: how many distinct images the inputs are of; None where every input is an image of its own. Blends or
            augmented versions of one image are several inputs.
        firsts: of each pair of candidates, whether its first image is the one that was trained on; None when not granted.
    """

    images: Images
    labels: Labels
    pictures: int | None = None
    firsts: Bool[Tensor, " pair"] | None = None


@dataclass(frozen=True)
class Trajectory:
    """What an attack saved on its way, for the auditor to look at once it has ended.

    Args:
        steps: iteration of each frame, increasing, from 0; a few dozen at most, of which the auditor keeps `FRAMES`.
        images: what the images of the finding were at that iteration, in one order throughout; pixels in [0, 1].
        losses: the observable loss of each frame.
    """

    steps: tuple[int, ...]
    images: Float[Tensor, "frame batch channel height width"]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """What an attack claims to have recovered.

    Images, labels and features may differ in number.

    Args:
        images: pixels in [0, 1], any number of images in any order; None when the attack recovers none.
        labels: hard labels with repeats, in any order, or soft labels; None when the attack recovers none.
        features: head inputs, one row an image; None when the attack recovers none.
        trace: observable quantities of the run (loss, residual, condition number), JSON-able.
        cautions: reasons to doubt the finding, each one sentence.
        trajectory: iterates on the way to `images`; None when the attack does not iterate or saved none.
        membership: of each pair of candidates, how much more the first image looks trained on than the second: its sign is the
            choice, and zero is none; None when the attack chooses none.
    """

    images: Images | None = None
    labels: Int[Tensor, " found"] | Float[Tensor, "found class"] | None = None
    features: Float[Tensor, "recovered embed"] | None = None
    trace: Mapping[str, Any] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    trajectory: Trajectory | None = None
    membership: Float[Tensor, " pair"] | None = None
