"""Who to cite: the papers behind the attacks and defenses that a run used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedsim import plugins
from fedsim.attack import Attack
from fedsim.defense import Defense
from fedsim.errors import FedsimError
from fedsim.report.evidence import PluginUse, Record

_CONTRACTS: dict[Literal["attacks", "defenses"], type] = {"attacks": Attack, "defenses": Defense}


@dataclass(frozen=True)
class Citation:
    """The paper behind one plug-in, or why it cannot be given."""

    name: str
    version: str | None
    text: str


def citations(records: Iterable[Record]) -> list[Citation]:
    """Return one citation for each attack and each defense in the records, attacks first."""
    uses: dict[tuple[Literal["attacks", "defenses"], str], PluginUse] = {}
    for record in records:
        uses.setdefault(("attacks", record.attack.name), record.attack)
        for defense in record.defenses:
            uses.setdefault(("defenses", defense.name), defense)
    kinds = ("attacks", "defenses")
    ordered = sorted(uses.items(), key=lambda item: kinds.index(item[0][0]))
    return [Citation(use.name, use.version, _text(kind, use.name)) for (kind, _), use in ordered]


def _text(kind: Literal["attacks", "defenses"], name: str) -> str:
    if ":" in name:
        # Rendering somebody's run folder must not import whatever module it names.
        return "named as module:Class; see its source"
    try:
        cls = plugins.load(plugins.find(kind, name, name), _CONTRACTS[kind], name)
    except FedsimError:
        return "not installed where this report was rendered, so its citation is not known"
    return str(getattr(cls, "citation", "states no citation"))
