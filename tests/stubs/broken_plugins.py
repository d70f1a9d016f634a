"""Plug-ins that break the contract, each in one way, and an attack that needs a grant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack
from fedsim.exchange import Finding, Observation

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class _Found(Attack):
    citation: ClassVar[str] = "none"

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        return Finding()


@dataclass(frozen=True, kw_only=True)
class NeedsLabels(_Found):
    """Keeps the contract; runs only where the labels are granted."""

    needs = frozenset({"labels", "batch_size"})


@dataclass(frozen=True, kw_only=True)
class Steps(_Found):
    """Keeps the contract; a required parameter, a derived field and a checked range."""

    steps: int
    rate: float = 0.1
    doubled: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")
        if self.rate > self.steps:
            raise ValueError("a rate above the number of steps makes no sense.")
        object.__setattr__(self, "doubled", 2 * self.steps)


class NoSubclass:
    pass


@dataclass(frozen=True, kw_only=True)
class Abstract(Attack):
    citation: ClassVar[str] = "none"


@dataclass(frozen=True)
class Positional(_Found):
    steps: int = 1


class Undecorated(_Found):
    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Unresolvable(_Found):
    steps: Decimal | None = None


function = NoSubclass


@dataclass(frozen=True, kw_only=True)
class MadeForAMapping(_Found):
    """States what it is made for as something else than an Applicability."""

    @property
    def applicability(self) -> Any:
        return {"pictures": 1}


@dataclass(frozen=True, kw_only=True)
class MadeForNobodyKnows(_Found):
    """Raises where it should state what it is made for."""

    @property
    def applicability(self) -> Applicability:
        raise KeyError("rule")


@dataclass(frozen=True, kw_only=True)
class RecoversPixels(_Found):
    """Promises what no metric measures."""

    recovers = frozenset({"pixels"})
