"""The attack contract: one frozen dataclass, one verb."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedsim.applicability import Applicability
from fedsim.exchange import Finding, Observation, Scope

Need = Literal[
    "batch_size", "labels", "normalization", "training", "train_mode", "defenses", "auxiliary_data", "candidates"
]
Recovers = Literal["images", "labels", "features", "membership"]


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An honest-but-curious attacker; the fields of a subclass are its YAML parameters.

    Subclass as a frozen, keyword-only dataclass, give every field a default, and check ranges in `__post_init__` with
    `ValueError("field: expected ..., got ...")`.

    Class facts:
        citation: the paper, with a link; printed in the report's footer.
        needs: grants without which the attack cannot run; a scenario that does not grant them is refused before the
            first gradient. Anything else that is granted may be used, and must be optional.
        recovers: what `Finding` will hold; decides which metrics apply.
        applies: the updates that it is made for. On any other, and where nothing is declared, a failure of the attack says
            nothing about the client: its verdict is inconclusive.
        scope: what one attempt looks at: one client's `update` of one round, all updates of a `client`, of a `round`, or of the
            `run`. Of more than one, see `Observation.members`.
        is_cheap: whether it takes seconds, so that the auditor always tries it on an unprotected update of its own too.
        is_control: whether it never looks at the update, so that its finding nothing is no doubt about the run.
        chosen_for: updates on which the audit of an observed app that lists no attacks takes an expensive one by itself; a
            cheap one is taken wherever it applies.
    """

    citation: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    recovers: ClassVar[frozenset[Recovers]] = frozenset()
    applies: ClassVar[Applicability | None] = None
    scope: ClassVar[Scope] = "update"
    is_cheap: ClassVar[bool] = False
    is_control: ClassVar[bool] = False
    chosen_for: ClassVar[Applicability | None] = None

    @property
    def applicability(self) -> Applicability | None:
        """The updates that it is made for with these parameters; `applies` unless parameters change that."""
        return self.applies

    def plain(self) -> Attack | None:
        """Return the attack that takes every update for one without a defense; None where it is that one already.

        Against a client that carries a defense both are run, so that a verdict rests on the stronger one; `audit.variants`. The
        plain one is never told of the defenses. Override it where the attack reads defenses from the update as well.
        """
        return self

    @abstractmethod
    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Recover what can be recovered from one observation.

        One that iterates may call `fedsim.progress.advance` at every iteration, so that whoever watches sees how far it is,
        and save some of its iterates in `Finding.trajectory`, to which the auditor draws the PSNR once it has ended.

        Args:
            observation: the only source of knowledge; must not be changed.
            generator: the only source of randomness; the same generator state gives the same finding.

        Returns:
            The finding. Choices on the way (restart, iterate, cut-off) rest on observable quantities alone.

        Raises:
            AttackRefusedError: a precondition does not hold for this update (recorded as `refused`).
        """
