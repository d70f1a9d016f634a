"""What a client really trained on: its local work of a round, done again by the auditor with the same draws.

A defense may change the images before they reach the model: mirror them, shuffle their patches, replace them. An attack then
finds what was trained on, and comparing that with the client's own images alone would take a change that can be undone for
protection. So the auditor takes the client's steps again and keeps what arrives behind all hooks.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.defense import LocalStep, acts_in_training
from fedsim.errors import told
from fedsim.exchange import Truth, Update
from fedsim.federation import training
from fedsim.federation.limits import contained
from fedsim.federation.training import Past
from fedsim.labels import distributions
from fedsim.planning.plan import Plan
from fedsim.recording.client_state import ClientState
from fedsim.recording.run_folder import RunFolder

_TOLERANCE = 1e-3  # of the captured update's norm, for another machine's rounding
_INSIDE = 10**9  # deeper than any hook
_MOST_VALUES = 2**27  # pixels of all images together, 512 MiB


class NotReproducedError(Exception):
    """What the client trained on cannot be found out; the text says why."""


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """What reached the model behind the hooks of a client's defenses.

    Args:
        truth: every distinct input, pixels in [0, 1], with its label, in the order of first use.
        has_other_images: whether they are not the client's own images, each of them unchanged.
        has_other_labels: whether they are not the client's own labels.
    """

    truth: Truth
    has_other_images: bool
    has_other_labels: bool


def past(folder: RunFolder, client: int, round: int) -> Past:
    """Return what a client brought from its earlier rounds.

    Raises:
        RunFolderError: what its defenses kept is damaged.
    """
    done = [earlier for earlier in range(1, round) if folder.is_captured(earlier, client)]
    return Past(len(done), folder.read_state(done[-1], client) if done else ClientState())


def trained_on(plan: Plan, folder: RunFolder, client: int, round: int, own: Truth) -> TrainedOn | None:
    """Return what a client trained on in a round; None where no defense of it has a say in that.

    Args:
        plan: the run's plan.
        folder: the run; the global weights and the update of the client are there.
        client: partition number.
        round: server round, from 1.
        own: the client's own images and labels; of none nothing else was made.

    Raises:
        NotReproducedError: a hook fails, draws what cannot be drawn again, or there is too much of it.
        RunFolderError: a file of the run is missing or damaged.
    """
    if not any(acts_in_training(planned.defense) for planned in plan.defenses_of(client)):
        return None
    if not len(own.images):
        return None
    weights, before, sent = (
        folder.read_global(round, client),
        past(folder, client, round),
        folder.read_update(round, client),
    )
    caught = _Caught(math.prod(plan.image_shape), plan.num_classes)
    run = replace(
        training.prepared(plan, client, round, weights, before), watch=caught.watch, innermost=caught.innermost
    )
    mu, seconds = training.proximal_mu(plan.scenario), plan.scenario.federation.client_timeout
    try:
        again = contained(lambda: training.carry_out(run, mu), seconds).update
    except NotReproducedError:
        raise
    except Exception as error:  # noqa: BLE001  (a third party's code)
        raise NotReproducedError(f"its local work fails when it is done again: {told(error)}") from None
    if not _is_same(again, sent, weights):
        raise NotReproducedError("its local work gives another update when it is done again with the same draws")
    return caught.beside(own, plan)


def _is_same(again: Update, sent: Update, weights: training.Weights) -> bool:
    """Return whether an update is the one that was sent, but for rounding and a factor by which it was clipped on its way."""
    one, other = [], []
    for name, tensor in sent.tensors.items():
        own = again.tensors[name]
        one.append(tensor.double().flatten())
        other.append((own if again.kind == "gradient" else (weights[name] + own) - weights[name]).double().flatten())
    first, second = torch.cat(one), torch.cat(other)
    square = float(second @ second)
    factor = float(first @ second) / square if square else 0.0
    return float((first - factor * second).norm()) <= _TOLERANCE * float(first.norm())


class _Input(NamedTuple):
    image: Tensor
    label: Tensor


class _Caught:
    """Keeps the inputs of the deepest steps that hooks have passed on, one local step after the other."""

    def __init__(self, values: int, classes: int) -> None:
        self._values, self._classes = values, classes
        self._depth, self._deepest = 0, list[LocalStep]()
        self._inputs: dict[tuple[bytes, bytes], _Input] = {}

    def watch(self, depth: int, step: LocalStep) -> None:
        if depth == 0:
            self._keep()
            self._depth = 0
        if depth > self._depth:
            self._depth, self._deepest = depth, []
        if depth == self._depth:
            copied = replace(step, images=step.images.detach().clone(), labels=step.labels.detach().clone())
            self._deepest.append(copied)

    def innermost(self, step: LocalStep) -> Tensor:
        """Take the plain step, and keep what its model cuts into patches, which a hook on the model may have changed.

        Of a model without patches, what the model itself gets is kept.
        """
        arrived: list[Tensor] = []
        embed = getattr(step.model, "patch_embed", None)
        first = embed if isinstance(embed, nn.Module) else step.model
        handle = first.register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
        try:
            loss = training.plain_step(step)
        finally:
            handle.remove()
        self.watch(_INSIDE, replace(step, images=arrived[0]))
        return loss

    def _keep(self) -> None:
        for step in self._deepest:
            labels = distributions(step.labels, self._classes).float()
            for image, label in zip(step.images, labels, strict=True):
                self._inputs.setdefault((_digest(image), _digest(label)), _Input(image, label))
        self._deepest = []
        if len(self._inputs) * self._values > _MOST_VALUES:
            raise NotReproducedError(
                f"it trained on more than {len(self._inputs)} inputs, too many to be compared with"
            )

    def beside(self, own: Truth, plan: Plan) -> TrainedOn:
        self._keep()
        inputs = list(self._inputs.values())
        images = torch.stack([one.image for one in inputs])
        labels = torch.stack([one.label for one in inputs])
        pictures = plan.normalization.normalize(own.images)
        owned = {
            (_digest(image), _digest(label))
            for image, label in zip(pictures, distributions(own.labels, self._classes).float(), strict=True)
        }
        truth = Truth(
            plan.normalization.denormalize(images).clamp(0, 1), _as(labels, own.labels), own.pictures or len(own.images)
        )
        return TrainedOn(
            truth,
            {image for image, _ in self._inputs} != {image for image, _ in owned},
            Counter(label for _, label in self._inputs) != Counter(label for _, label in owned),
        )


def _as(rows: Tensor, own: Tensor) -> Tensor:
    """Return labels as hard ones where the client's own are and each names one class."""
    is_hard = own.ndim == 1 and bool((rows.max(1).values == 1).all()) and bool((rows.sum(1) == 1).all())
    return rows.argmax(1) if is_hard else rows


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=16).digest()
