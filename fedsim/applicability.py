"""Which updates an attack is made for, stated as data, and why one update is not among them.

An attack that is run on an update it is not made for finds nothing, whatever the client does. So its failure says nothing about
leakage, and the report calls it inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from fedsim.exchange import UpdateKind
from fedsim.validation import shown

Optimizer = Literal["sgd", "adamw"]
ModelFact = Literal["linear classifier", "learned position embedding", "patch projection", "APRIL first block"]
"""What an attack may ask of a model; `fedsim.models.facts` says which of them hold."""

_KINDS: tuple[UpdateKind, ...] = get_args(UpdateKind)
_SGD: tuple[Optimizer, ...] = ("sgd",)


class Workload(NamedTuple):
    """How much a client trains on in a round: what tells the updates of one run apart before any defense.

    Args:
        pictures: of the client that its local steps can use; under Poisson sampling as many as they use in the mean.
        batch_size: images in a local step; under Poisson sampling their expected number.
        steps: local steps.
    """

    pictures: int
    batch_size: int
    steps: int


@dataclass(frozen=True)
class Setting:
    """How one client's update was made, as the auditor knows it; an attack never sees this.

    Args:
        pictures: distinct inputs behind the update; None where nobody said how many.
        batch_size: images in a local step, the most where their number varies.
        kind: whether the client shares a gradient or a delta.
        steps: local steps behind the update; None where nobody said how many.
        optimizer: the client's.
        has_soft_labels: whether labels are smoothed or mixed.
        model: what holds of the model, and is trained.
        frozen: what the model has, but does not train, so that nothing of it is sent.
        has_own_weights: whether the client may have trained at other weights than the global ones, which nobody else knows.
        carries_over: whether the update also holds what the client held back in earlier rounds, of other images than these.
        has_own_loss: whether the client trains on a loss of its own instead of the cross-entropy of the labels.
        has_stated_loss: whether it minimizes a loss of logits and labels other than cross-entropy, which the attacker knows.
    """

    pictures: int | None
    batch_size: int
    kind: UpdateKind
    steps: int | None
    optimizer: Optimizer
    has_soft_labels: bool
    model: frozenset[ModelFact]
    frozen: frozenset[ModelFact] = frozenset()
    has_own_weights: bool = False
    carries_over: bool = False
    has_own_loss: bool = False
    has_stated_loss: bool = False


def together(settings: Sequence[Setting]) -> Setting:
    """Return how the mean of several updates was made: as one of all their images in one step, as often as any of them."""
    first, *others = settings
    if not others:
        return first
    pictures = [setting.pictures for setting in settings]
    steps = [setting.steps for setting in settings]
    return Setting(
        pictures=None if None in pictures else sum(count for count in pictures if count is not None),
        batch_size=sum(setting.batch_size for setting in settings),
        kind=first.kind,
        steps=None if None in steps else max(count for count in steps if count is not None),
        optimizer=first.optimizer,
        has_soft_labels=any(setting.has_soft_labels for setting in settings),
        model=first.model,
        frozen=first.frozen,
        has_own_weights=any(setting.has_own_weights for setting in settings),
        carries_over=any(setting.carries_over for setting in settings),
        has_own_loss=any(setting.has_own_loss for setting in settings),
        has_stated_loss=any(setting.has_stated_loss for setting in settings),
    )


@dataclass(frozen=True, kw_only=True)
class Applicability:
    """The updates that an attack is made for.

    Args:
        pictures: most distinct inputs behind the update; None for any number.
        batch_size: most images in a local step; None for any number.
        kinds: gradients, deltas or both.
        steps: most local steps; None for any number.
        optimizers: of the client.
        soft_labels: whether smoothed or mixed labels are handled.
        model: what must hold of the model.
        any_loss: whether it works with any loss that the attacker knows, since it takes the client's from
            `fedsim.models.training_loss`, and not with cross-entropy alone.
    """

    pictures: int | None = None
    batch_size: int | None = None
    kinds: tuple[UpdateKind, ...] = _KINDS
    steps: int | None = None
    optimizers: tuple[Optimizer, ...] = _SGD
    soft_labels: bool = True
    model: tuple[ModelFact, ...] = ()
    any_loss: bool = False

    def obstacles(self, setting: Setting) -> tuple[str, ...]:
        """Return why an update is not among those the attack is made for, one clause each; empty where it is."""
        if setting.pictures == 0:
            return ("no image is behind the update: Poisson sampling drew none in this round",)
        found = [
            *_too_many(self.pictures, setting.pictures, "image", "an update"),
            *_too_many(self.batch_size, setting.batch_size, "image", "a local step"),
            *_too_many(self.steps, setting.steps, "local step", "an update"),
        ]
        if setting.kind not in self.kinds:
            found.append(f"it reads a {' or a '.join(self.kinds)}, and the client shares a {setting.kind}")
        if setting.optimizer not in self.optimizers:
            found.append(
                f"it is made for local {' or '.join(self.optimizers)}, and the client uses {setting.optimizer}"
            )
        if setting.has_soft_labels and not self.soft_labels:
            found.append("it is made for hard labels, and the client smooths or mixes them")
        if setting.has_stated_loss and not self.any_loss:
            found.append("it is made for cross-entropy, and the client minimizes another loss")
        found += [_lacking(fact, fact in setting.frozen) for fact in self.model if fact not in setting.model]
        return (*found, *strange(setting))


def strange(setting: Setting) -> tuple[str, ...]:
    """Return why no attack is made for an update, whatever it states of itself, one clause each; empty for any usual one.

    Every attack looks at the global model and is scored against the images of the round. So that one finds nothing where these
    are not all behind the update says nothing.
    """
    found = []
    if setting.has_own_weights:
        found.append("it looks at the global model, and the client trained parameters of its own that only it knows")
    if setting.carries_over:
        found.append(
            "the update also holds what the client held back in earlier rounds, whose images it is not scored against"
        )
    if setting.has_own_loss:
        found.append("it is made for the loss of a classifier, and the client trains on one of its own, without labels")
    return tuple(found)


def _lacking(fact: ModelFact, is_frozen: bool) -> str:
    if is_frozen:
        return f"it reads the gradient of the {fact}, which is frozen here, so that none is sent"
    return f"it needs a model with {'an' if fact[0] in 'AEIO' else 'a'} {fact}"


def _too_many(most: int | None, given: int | None, what: str, where: str) -> list[str]:
    if most is None or (given is not None and given <= most):
        return []
    made_for = f"it is made for {most} {what}{'s' if most != 1 else ''} in {where}"
    return [f"{made_for}, and here nobody knows how many" if given is None else f"{made_for}, and here are {given}"]


def fault(stated: Any) -> str | None:
    """Return why something is no statement of what an attack is made for, or None where it is one or says nothing.

    Args:
        stated: what a plug-in gives as its `applicability`.
    """
    if stated is None:
        return None
    if not isinstance(stated, Applicability):
        return f"expected an Applicability or None, got {shown(stated)}"
    faults = (
        *(_count_fault(name, getattr(stated, name)) for name in ("pictures", "batch_size", "steps")),
        _words_fault("kinds", stated.kinds, _KINDS, 1),
        _words_fault("optimizers", stated.optimizers, get_args(Optimizer), 1),
        _words_fault("model", stated.model, get_args(ModelFact), 0),
        *(
            None
            if isinstance(getattr(stated, name), bool)
            else f"{name}: expected true or false, got {shown(getattr(stated, name))}"
            for name in ("soft_labels", "any_loss")
        ),
    )
    return next((found for found in faults if found is not None), None)


def _count_fault(name: str, count: Any) -> str | None:
    if count is None or (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
        return None
    return f"{name}: expected None or a whole number from 1, got {shown(count)}"


def _words_fault(name: str, words: Any, allowed: tuple[str, ...], least: int) -> str | None:
    if not isinstance(words, tuple):
        return f"{name}: expected a tuple out of {', '.join(allowed)}, got {shown(words)}"
    unknown = next((word for word in words if word not in allowed), None)
    if unknown is not None:
        return f"{name}: {shown(unknown)} is none of {', '.join(allowed)}"
    return None if len(words) >= least else f"{name}: expected at least one of {', '.join(allowed)}"
