"""Which updates an attack is made for, stated as data, and why one update is not among them.

An attack that is run on an update it is not made for finds nothing, whatever the client does. So its failure says nothing about
leakage, and the report calls it inconclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedsim.exchange import UpdateKind

Optimizer = Literal["sgd", "adamw"]
ModelFact = Literal["linear classifier", "learned position embedding", "patch projection", "APRIL first block"]
"""What an attack may ask of a model; `fedsim.models.facts` says which of them hold."""

_KINDS: tuple[UpdateKind, ...] = get_args(UpdateKind)
_SGD: tuple[Optimizer, ...] = ("sgd",)


@dataclass(frozen=True)
class Setting:
    """How one client's update was made, as the auditor knows it; an attack never sees this.

    Args:
        pictures: distinct inputs behind the update; None where nobody said how many.
        batch_size: pictures in a local step.
        kind: whether the client shares a gradient or a delta.
        steps: local steps behind the update; None where nobody said how many.
        optimizer: the client's.
        has_soft_labels: whether labels are smoothed or mixed.
        model: what holds of the model.
    """

    pictures: int | None
    batch_size: int
    kind: UpdateKind
    steps: int | None
    optimizer: Optimizer
    has_soft_labels: bool
    model: frozenset[ModelFact]


@dataclass(frozen=True, kw_only=True)
class Applicability:
    """The updates that an attack is made for.

    Args:
        pictures: most distinct inputs behind the update; None for any number.
        batch_size: most pictures in a local step; None for any number.
        kinds: gradients, deltas or both.
        steps: most local steps; None for any number.
        optimizers: of the client.
        soft_labels: whether smoothed or mixed labels are handled.
        model: what must hold of the model.
    """

    pictures: int | None = None
    batch_size: int | None = None
    kinds: tuple[UpdateKind, ...] = _KINDS
    steps: int | None = None
    optimizers: tuple[Optimizer, ...] = _SGD
    soft_labels: bool = True
    model: tuple[ModelFact, ...] = ()

    def obstacles(self, setting: Setting) -> tuple[str, ...]:
        """Return why an update is not among those the attack is made for, one clause each; empty where it is."""
        found = [
            *_too_many(self.pictures, setting.pictures, "picture", "an update"),
            *_too_many(self.batch_size, setting.batch_size, "picture", "a local step"),
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
        found += [f"it needs a model with a {fact}" for fact in self.model if fact not in setting.model]
        return tuple(found)


def _too_many(most: int | None, given: int | None, what: str, where: str) -> list[str]:
    if most is None or (given is not None and given <= most):
        return []
    made_for = f"it is made for {most} {what}{'s' if most != 1 else ''} in {where}"
    return [f"{made_for}, and here nobody knows how many" if given is None else f"{made_for}, and here are {given}"]
