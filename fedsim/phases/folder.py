"""phases.json, the manifest of a folder of phases, and the run folder of each.

    phases.json              each phase with its scenario and its status
    1-NAME/                  the run folder of the first phase, and so on
    index.html               the phases side by side, with links to their reports

A run folder is made when its phase begins, from the scenario in the manifest, so one write stores all that is to be run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from fedsim.errors import RunFolderError
from fedsim.phases.stating import Phase
from fedsim.recording import files, records
from fedsim.recording.folder_lock import LOCK
from fedsim.recording.records import SCHEMA, Line, Many
from fedsim.recording.run_folder import PHASES, RunFolder
from fedsim.scenario import Scenario, parse

Status = Literal["unfinished", "finished"]


class Entry(Line):
    """One phase in the manifest; see `Phase`. `finished`: its run has been trained, audited and reported."""

    name: str
    folder: str
    continues: bool
    scenario: dict[str, Any]
    status: Status = "unfinished"


class Manifest(Line):
    """What phases.json holds; `scenario` is what the user named."""

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    name: str
    scenario: str
    phases: Many[Entry]


class PhasesFolder:
    """Paths, atomic writes and checked reads of a folder of phases.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, name: str, named: str, phases: Sequence[Phase]) -> PhasesFolder:
        """Make a folder of phases, with the manifest in it.

        Args:
            path: what a process leaves there that was killed as it began does not count as something.
            name: of the scenario.
            named: the scenario as the user names it.
            phases: checked.

        Raises:
            RunFolderError: `path` already holds something, or cannot be made.
        """
        try:
            if path.exists() and not (path.is_dir() and _is_empty(path)):
                raise RunFolderError(f"{path}: already exists and is not empty. Name another, or use --resume.")
            path.mkdir(mode=files.OWNER_ONLY, parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}.") from None
        entries = [
            Entry(name=one.name, folder=one.folder, continues=one.continues, scenario=one.scenario.resolved())
            for one in phases
        ]
        folder = cls(path)
        folder.write(Manifest(schema=SCHEMA, name=name, scenario=named, phases=tuple(entries)))
        return folder

    def is_phases(self) -> bool:
        """Return whether there is a manifest."""
        return self.path.is_dir() and files.is_file(self.path / PHASES, self.path)

    def run(self, entry: Entry) -> Path:
        """Return the run folder of a phase."""
        return self.path / entry.folder

    def has_begun(self, entry: Entry) -> bool:
        """Return whether a phase has a run folder."""
        return files.is_file(self.run(entry) / "scenario.yaml", self.path)

    def read(self) -> Manifest:
        """Return the manifest.

        Raises:
            RunFolderError: there is none, or it is damaged.
        """
        path = self.path / PHASES
        if not self.is_phases():
            raise RunFolderError(f"{self.path}: no folder of phases, it has no {PHASES}.")
        try:
            found = Manifest.model_validate(files.read_json(path, self.path))
        except (pydantic.ValidationError, RunFolderError) as error:
            fault = records.fault(error) if isinstance(error, pydantic.ValidationError) else "it is not JSON"
            raise RunFolderError(
                f"{path}: damaged, or not of this fedsim: {fault}. Restore it; each phase is a run folder that "
                "fedsim run --resume goes on with."
            ) from None
        for entry in found.phases:
            if not entry.folder or Path(entry.folder).name != entry.folder or entry.folder == "..":
                raise RunFolderError(f"{path}: phases: {entry.folder!r} is no name of a folder.")
        return found

    def write(self, manifest: Manifest) -> None:
        """Store the manifest."""
        text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2) + "\n"
        files.write_atomically(self.path / PHASES, text, self.path)

    def open(self, manifest: Manifest, index: int) -> RunFolder:
        """Return the run folder of a phase, made where it has none; it starts from where the phase before lies now.

        Raises:
            RunFolderError: it cannot be made, or is damaged.
            ScenarioError: its scenario is none.
        """
        entry = manifest.phases[index]
        path = self.run(entry)
        before = self.run(manifest.phases[index - 1]).resolve() if entry.continues else None
        if not self.has_begun(entry):
            return RunFolder.create(path, _starting(parse(entry.scenario, str(self.path / PHASES)), before))
        folder = RunFolder.open(path)
        stored = folder.scenario()
        now = _starting(stored, before)
        if now != stored:  # the folder has been moved
            with folder.locked():
                folder.write_scenario(now)
        return folder


def _starting(scenario: Scenario, before: Path | None) -> Scenario:
    if before is None:
        return scenario
    return scenario.model_copy(update={"model": scenario.model.model_copy(update={"pretrained": str(before)})})


def _is_empty(path: Path) -> bool:
    return all(one.name == LOCK or files.is_partial(one) for one in path.iterdir())
