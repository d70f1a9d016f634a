"""The defense contract: one frozen dataclass, a few hooks that are identity by default."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.exchange import DefenseKnowledge, Images, Labels, TrainingKnowledge, Update, UpdateEffects

MEANINGFUL_EPSILON = 10.0
"""The largest epsilon that is still a guarantee worth the name: e^10 makes an event 22,000 times as likely."""


MEANINGFUL_DELTA = 1e-3
"""The largest delta that is still a guarantee: with this probability it may fail altogether, whatever its epsilon."""


ONE_IMAGE = "add_remove of one image"
"""The neighboring relation of a guarantee for single images: a client's images, and the same without one of them."""


EPSILON_OF_ONE_RUN = (
    "an epsilon that is stated counts the rounds of this run alone, and what was sent or released in the other about the same "
    "images comes on top"
)
"""What has to be said beside an epsilon where the run starts from the model of another one."""


def is_meaningful(epsilon: float | None, delta: float) -> bool:
    """Return whether a guarantee is worth the name; an epsilon of None is none."""
    return epsilon is not None and epsilon <= MEANINGFUL_EPSILON and delta <= MEANINGFUL_DELTA


@dataclass(frozen=True)
class PrivacyBudget:
    """An accounted guarantee: (epsilon, delta) under a stated neighboring relation."""

    epsilon: float
    delta: float
    neighbors: str

    @property
    def is_meaningful(self) -> bool:
        """Whether it is worth the name: a small epsilon, and a small delta."""
        return is_meaningful(self.epsilon, self.delta)


State = MutableMapping[str, Any]
"""What a defense keeps on one client from round to round: tensors, and values that JSON holds."""


class Logged(NamedTuple):
    """A number that was logged so often: the sum of weight times value, and of the weights."""

    total: float
    weight: float

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return self.total / self.weight


@dataclass(frozen=True, eq=False)
class ClientContext:
    """Who trains, in which round, and on what; every hook that runs on a client gets it.

    Args:
        round: server round, from 1.
        rounds: rounds of the scenario.
        client: partition number, from 0.
        training: the local recipe.
        batch_size: images in a local step, their expected number under Poisson sampling.
        num_examples: images that the client holds.
        steps: local steps in this round.
        class_counts: of the client's images, how many are of each class.
        participation: in how many rounds the client has taken part, this one included.
        state: what this defense keeps on this client. What a round that succeeds leaves in it is there in the client's next
            round, also after the run was killed and resumed. The server and attacks never see it.
        logged: what this defense has logged in this round; see `log`.
    """

    round: int
    rounds: int
    client: int
    training: TrainingKnowledge
    batch_size: int
    num_examples: int
    steps: int
    class_counts: tuple[int, ...]
    participation: int = 1
    state: State = field(default_factory=dict)
    logged: dict[str, Logged] = field(default_factory=dict)

    def log(self, name: str, value: float, weight: float | int = 1) -> None:
        """Note a number of the training, of which rounds.jsonl and the report give the weighted mean over the round.

        It is for the books of the simulation alone, as `state` is: no part of the update, and no attack sees it. A client that
        sent it for real would tell its server more than is audited.

        Args:
            name: under which it is noted, beside the defense's own name.
            value: a finite number; one that is not is a fault of the defense.
            weight: in the mean, above 0, as the number of images behind the value.

        Raises:
            ValueError: value or weight is none.
        """
        if not math.isfinite(value):
            raise ValueError(f"log: {name} is {value}, expected a finite number.")
        if not 0 < weight < math.inf:
            raise ValueError(f"log: the weight of {name} is {weight}, expected a finite number above 0.")
        known = self.logged.get(name, Logged(0.0, 0.0))
        self.logged[name] = Logged(known.total + weight * value, known.weight + weight)

    @property
    def sampling_rate(self) -> float:
        """The share of the client's images that a local step takes; under Poisson sampling the probability of each image."""
        return min(1.0, self.batch_size / self.num_examples)


@dataclass(frozen=True)
class LocalStep:
    """One mini-batch on its way through the defenses of a client.

    Args:
        model: the client's model, in the mode the scenario states; gradients are accumulated in `p.grad`.
        images: normalized model input. Under Poisson sampling a batch may be empty; only clients with a defense that
            `replaces_gradient` take such a step.
        labels: hard or soft labels.
        progress: share of the whole training that is done when this step starts, in [0, 1).
    """

    model: nn.Module
    images: Images
    labels: Labels
    progress: float


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """What one client does differently; the fields of a subclass are its YAML parameters.

    The hooks run on the client, each defense's in the listed order. Subclass as a frozen, keyword-only dataclass, give
    every field a default, and check ranges in `__post_init__` with `ValueError("field: expected ..., got ...")`.

    Class facts:
        citation: the paper, with a link; printed in the report's footer.
        replaces_gradient: whether `train_step` computes the gradient itself and never calls `proceed`, as DP-SGD does. A
            scenario that lists another recipe after it for the same client is refused, since that would be skipped.
        treats_images_alone: whether `protect_batch` and `train_step` do to an image what does not depend on any other image,
            give one image for each, also of an empty batch, and call `proceed` once, and whether the gradient that they add
            depends on no image. A guarantee for single images (DP-SGD) is refused beside a defense that does not say so.
        adds_gaussian_noise: of a defense that `replaces_gradient`: whether all noise of a step is Gaussian, of the same size
            whatever the images. Then a check of its claim may use what is known of Gaussian noise.
    """

    citation: ClassVar[str]
    replaces_gradient: ClassVar[bool] = False
    treats_images_alone: ClassVar[bool] = False
    adds_gaussian_noise: ClassVar[bool] = False

    @property
    def effects(self) -> UpdateEffects:
        """What it does to an update, as an attacker who knows of it may model it; nothing unless it says so."""
        return UpdateEffects()

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return reasons to doubt this defense on this (prepared) model; they travel with every record."""
        return ()

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return reasons to doubt it that depend on a client's data and recipe; they travel with the client's records.

        Args:
            context: of the client's first round, with nothing kept.
        """
        return ()

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:  # noqa: B027  (as above)
        """Refuse a scenario in which the defense could not keep what it promises; called for each client that carries it.

        Called before anything is trained.

        Args:
            model: prepared.
            context: of the client's first round, with nothing kept.
            others: the other defenses that the client carries, in order.

        Raises:
            ScenarioError: says what is wrong, with its YAML path, and what to do.
            ValueError: the same of a parameter, "field: expected ..., got ...".
        """

    def prepare_model(self, model: nn.Module) -> None:  # noqa: B027  (identity by default, like every hook)
        """Add what the defense needs to the architecture, in place.

        Called on the model of every client and of the server, also where the defense is off, so that all share the same
        parameter names; a model of a client without the defense must behave like the plain one. Extra parameters are
        drawn from torch's global generator, which the caller has seeded; `trains` tells which of them are trained when.
        """

    def trains(self, name: str, round: int, rounds: int) -> bool:
        """Return whether a client that carries this defense trains a parameter in a round; asked of those that it adds.

        What a client does not train it does not send: where the strategy takes a plain mean, it is that of the clients that
        do train the parameter. The round alone may decide, since the answer shows in the global model whatever noise a client
        adds. A client without the defense trains none of its parameters.

        Args:
            name: of a parameter that `prepare_model` adds.
            round: server round, from 1.
            rounds: rounds of the scenario.
        """
        return True

    def begin_round(self, model: nn.Module, context: ClientContext) -> None:  # noqa: B027  (as above)
        """Change, in place, the weights that the client trains from: the round's global ones, before the first local step.

        A defense that does so declares the parameters in `effects.local`. What a client sends with `shares: delta` is the
        difference from the weights that this leaves.
        """

    def end_round(self, model: nn.Module, context: ClientContext) -> None:  # noqa: B027  (as above)
        """Look at the client's weights after the last local step, to keep some of them in `context.state`.

        With `shares: gradient` the client has taken the step that its gradient asks for. Changes reach nobody.
        """

    def protect_batch(
        self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        """Return the batch to train on, once per local step, before `train_step`."""
        return images, labels

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Accumulate this step's gradient in `p.grad` and return the detached mean loss.

        `proceed(step)` runs the next defense's step, the innermost being forward, cross-entropy, backward. A recipe
        changes the step it passes on (adversarial images, shuffled patches), adds a term afterwards, or does not call
        `proceed` at all and computes gradients itself (DP-SGD), which `replaces_gradient` then says.
        """
        return proceed(step)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update to send: tensors of the same names, order, shapes and number formats, all finite."""
        return update

    def budget(self, context: ClientContext) -> PrivacyBudget | None:
        """Return the guarantee over all of the client's rounds so far, or None where none is accounted.

        Called after the hooks of a round, with what they left in `context.state`; before a run also with an empty state.
        """
        return None


def acts_in_training(defense: Defense) -> bool:
    """Return whether a defense has a hook that sees what the client trains on."""
    kind = type(defense)
    return kind.protect_batch is not Defense.protect_batch or kind.train_step is not Defense.train_step


def knowledge_of(name: str, defense: Defense) -> DefenseKnowledge:
    """Return what the grant `defenses` tells an attacker of one defense of a client.

    Args:
        name: in the scenario.
        defense: the configured instance.
    """
    return DefenseKnowledge(name, asdict(defense), defense.effects, defense)
