"""What is compared: runs, and the cells of sweeps, with the setting and the seed of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.recording import files
from fedsim.recording.run_data import RunData
from fedsim.report import reading
from fedsim.scenario import EXECUTION, parse
from fedsim.sweeping.manifest import Entry, SweepFolder

# Where files lie, how images are dealt and what a run is called: none of them is the data or the model.
_LOCATIONS = ("path", "test_path", "root")
_SAME_DATA = ("class names", "test")  # digests of inputs.json that runs of one seed must share to be paired


@dataclass(frozen=True)
class Source:
    """One run, or what stands for one that has none.

    Args:
        setting: what people call its setting.
        key: a digest of all in its scenario but the seed and the name; runs of one key are repetitions.
        family: model and data, which runs must share to be compared.
        seed: None where it is not known.
        folder: the run folder.
        scenario: the resolved scenario as plain data.
        run: what the folder holds; None where the run did not come to its end.
        reason: why there is none.
        digests: of the data, by part; empty where they were not stored.
    """

    setting: str
    key: str
    family: str
    seed: int | None
    folder: Path
    scenario: Mapping[str, Any]
    run: RunData | None
    reason: str = ""
    digests: Mapping[str, str] | None = None

    @property
    def has_same_data(self) -> tuple[str | None, ...]:
        """What runs of one seed must share to be paired."""
        return tuple((self.digests or {}).get(part) for part in _SAME_DATA)


def sources(folders: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """Return what the folders hold, each run once, and notes on what is left out.

    Raises:
        RunFolderError: a folder is neither a run nor a sweep.
    """
    found: list[Source] = []
    notes: list[str] = []
    seen: dict[tuple[str, int | None], Path] = {}
    for source in _all(folders):
        place = source.key, source.seed
        before = seen.setdefault(place, source.folder)
        if before != source.folder and source.seed is not None:
            notes.append(f"{source.folder}: the same setting and seed as {before}; left out.")
        elif not any(source.folder == other.folder for other in found):
            found.append(source)
    return _told_apart(found), notes


def _all(folders: Sequence[Path]) -> Iterator[Source]:
    for path in folders:
        sweep = SweepFolder(path)
        if sweep.is_sweep():
            for entry in sweep.read().cells:
                yield _of_cell(sweep, entry)
        else:
            yield _of_run(path)


def _of_cell(sweep: SweepFolder, entry: Entry) -> Source:
    path = sweep.run(entry.folder)
    reason = "the cell has not finished"
    if entry.status == "failed":
        reason = f"the cell failed: {entry.reason or 'no reason was stored'}"
    try:
        found = _of_run(path)
    except RunFolderError as error:
        return Source(entry.setting, entry.digest, "", entry.seed, path, {}, None, f"{reason}; {error}")
    if entry.status != "finished":
        found = replace(found, run=None, reason=reason)
    return replace(found, setting=entry.setting, seed=entry.seed)


def _of_run(path: Path) -> Source:
    run = reading.read(path)
    scenario = _resolved(run)
    seed = scenario.get("seed")
    rest = {part: value for part, value in scenario.items() if part not in ("seed", "name", "engine")}
    rest["audit"] = {name: value for name, value in _mapping(scenario, "audit").items() if name not in EXECUTION}
    family = {
        "model": scenario.get("model"),
        "data": {k: v for k, v in _mapping(scenario, "data").items() if k not in (*_LOCATIONS, "partition")},
    }
    planned, done = run.planned_rounds, max((line.round for line in run.rounds), default=0)
    is_whole = planned is None or done >= planned
    is_seed = isinstance(seed, int) and not run.is_observed
    return Source(
        setting=run.name,
        key=_digest([rest, str(path.resolve()) if run.is_observed else None]),
        family=_digest(family),
        seed=seed if is_seed else None,
        folder=path,
        scenario=scenario,
        run=run if is_whole else None,
        reason="" if is_whole else f"the run is not complete: {done} of {planned} rounds",
        digests=_digests(path),
    )


def _resolved(run: RunData) -> dict[str, Any]:
    """Return the scenario with its defaults; as it is where it cannot be read, or belongs to an observed app."""
    if run.is_observed:
        return dict(run.scenario)
    try:
        return parse(dict(run.scenario), "scenario.yaml").resolved()
    except ScenarioError:
        return dict(run.scenario)


def _mapping(scenario: Mapping[str, Any], part: str) -> dict[str, Any]:
    value = scenario.get(part)
    return dict(value) if isinstance(value, dict) else {}


def _digests(path: Path) -> dict[str, str]:
    try:
        content = files.read_json(path / "inputs.json", path)
    except RunFolderError:
        return {}
    stated = content.get("data") if isinstance(content, dict) else None
    return {str(name): str(value) for name, value in stated.items()} if isinstance(stated, dict) else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _told_apart(found: Sequence[Source]) -> list[Source]:
    """Return the sources, each setting under one name, and different settings under different ones."""
    names: dict[str, str] = {}
    # A cell whose folder cannot be read belongs to the setting of its name, whatever that is called in the end.
    known = [source for source in found if source.family]
    for source in known:
        if source.key not in names:
            name = source.setting
            if name in names.values():
                name = f"{source.setting} ({source.folder.resolve().name})"
            number = 2
            while name in names.values():
                name, number = f"{source.setting} ({number})", number + 1
            names[source.key] = name
    by_name = {source.setting: names[source.key] for source in reversed(known)}
    return [
        replace(source, setting=names[source.key] if source.family else by_name.get(source.setting, source.setting))
        for source in found
    ]
