"""Who to cite: the papers behind the attacks and defenses that a run used, as its records state them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedsim.report.evidence import PluginUse, Record


@dataclass(frozen=True)
class Citation:
    """The paper behind one plug-in, or that it states none."""

    name: str
    version: str | None
    text: str


def citations(records: Iterable[Record]) -> list[Citation]:
    """Return one citation for each attack and each defense in the records, attacks first."""
    read = list(records)
    uses: dict[tuple[str, str], PluginUse] = {}
    for record in read:
        uses.setdefault(("attack", record.attack.name), record.attack)
    for record in read:
        for defense in record.defenses:
            uses.setdefault(("defense", defense.name), defense)
    return [Citation(use.name, use.version, use.citation or "states no citation") for use in uses.values()]
