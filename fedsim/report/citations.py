"""Who to cite: the papers behind the attacks and defenses that a run used, as its records state them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedsim.recording.records import Attempted, EvaluationRecord, PluginUse


@dataclass(frozen=True)
class Citation:
    """The paper behind one plug-in, or that it states none."""

    name: str
    version: str | None
    text: str


def citations(records: Iterable[Attempted], evaluations: Iterable[EvaluationRecord] = ()) -> list[Citation]:
    """Return one citation for each attack, defense and evaluator that was used, in this order."""
    read = list(records)
    uses: dict[tuple[str, str], PluginUse] = {}
    for record in read:
        uses.setdefault(("attack", record.attack.name), record.attack)
    for record in read:
        for defense in record.defenses:
            uses.setdefault(("defense", defense.name), defense)
    for line in evaluations:
        uses.setdefault(("evaluator", line.evaluator.name), line.evaluator)
    return [Citation(use.name, use.version, use.citation or "states no citation") for use in uses.values()]
