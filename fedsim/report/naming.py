"""Names of attacks and defenses: the label, or parameters are added where one name stands for several settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from fedsim.recording.records import Attempted, PluginUse

NO_DEFENSE = "none"


class Naming:
    """The names in one run.

    Args:
        records: all records of the run.
    """

    def __init__(self, records: Sequence[Attempted]) -> None:
        self.records = records
        self._attacks = _Names(record.attack for record in records)
        self._defenses = _Names(use for record in records for use in record.defenses)

    @cached_property
    def sets(self) -> list[str]:
        """The sets of defenses that records carry, none first: the order of their colors in all plots of a run."""
        found = {self.defenses(record) for record in self.records if record.client is not None}
        return sorted(found, key=lambda name: (name != NO_DEFENSE, name))

    def attack(self, record: Attempted) -> str:
        """Return the name of a record's attack."""
        return self.use(record.attack)

    def use(self, attack: PluginUse) -> str:
        """Return the name of an attack beside those of the records."""
        return self._attacks.of(attack)

    def defenses(self, record: Attempted) -> str:
        """Return the names of a record's defenses in order of application."""
        return " + ".join(self._defenses.of(use) for use in record.defenses) or NO_DEFENSE


class _Names:
    """The names of several uses of plug-ins, read once: of each plug-in the parameters that have more than one value."""

    def __init__(self, uses: Iterable[PluginUse]) -> None:
        self._first: dict[str, dict[str, Any]] = {}
        self._varying: dict[str, set[str]] = {}
        self._known: dict[int, tuple[PluginUse, str]] = {}
        total, given = Counter[str](), Counter[tuple[str, str]]()
        for use in {id(use): use for use in uses}.values():
            total[use.name] += 1
            first, varying = self._first.setdefault(use.name, {}), self._varying.setdefault(use.name, set())
            for key, value in use.params.items():
                given[use.name, key] += 1
                if first.setdefault(key, value) != value:
                    varying.add(key)
        for (name, key), count in given.items():
            # A parameter that is not stated counts as None.
            if count < total[name] and self._first[name][key] is not None:
                self._varying[name].add(key)

    def of(self, use: PluginUse) -> str:
        # The use is kept beside its name, so that no other object takes its id.
        if id(use) not in self._known:
            self._known[id(use)] = use, use.with_variant(self._named(use))
        return self._known[id(use)][1]

    def _named(self, use: PluginUse) -> str:
        if use.label:
            return use.label
        if use.name not in self._first:
            return use.name
        first, varying = self._first[use.name], self._varying[use.name]
        differing = [key for key, value in use.params.items() if key in varying or first.get(key) != value]
        values = ", ".join(f"{key}={use.params[key]}" for key in differing)
        return f"{use.name} ({values})" if values else use.name
