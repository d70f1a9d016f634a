"""sweep.json, the manifest of a sweep, and the outcome of each cell.

    sweep.json               the grid, and each cell with its settings and its status
    cells/NAME/              the run folder of a cell
    cells/NAME.json          its outcome, once it has come to an end
    cells/NAME.log           what its process printed

An outcome is written by the cell's own process, as its last step, and the manifest is made from the outcomes. So a kill of
either process at any moment loses nothing that was finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from fedsim.errors import RunFolderError
from fedsim.recording import files, records
from fedsim.recording.records import SCHEMA, Count, Line, Many

NAME = "sweep.json"
_CELLS = "cells"

Keep = Literal["captures", "results"]
Status = Literal["unfinished", "finished", "failed"]


class Outcome(Line):
    """How a cell ended.

    Args:
        status: `finished`, or `failed` where the run did not come to its end.
        reason: why it failed.
        troubles: what failed inside of a run that came to its end: attempts, clients, evaluations.
        seconds: that its last process took.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    status: Literal["finished", "failed"]
    reason: str | None = None
    troubles: Many[str] = ()
    seconds: float | None = None


class Entry(Line):
    """One cell in the manifest; `changes` are the keys that its setting assigns, with their values."""

    folder: str
    setting: str
    seed: int
    digest: str
    changes: dict[str, Any]
    status: Status = "unfinished"
    reason: str | None = None
    troubles: Many[str] = ()
    seconds: float | None = None


class Manifest(Line):
    """What sweep.json holds.

    Args:
        name: of the scenario.
        scenario: what the user named: a path, or the name of a shipped scenario.
        axes: the names of the values of each axis.
        seeds: how many.
        keep: what is kept of finished cells.
        cells: setting by setting.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    name: str
    scenario: str
    axes: Many[Many[str]] = ()
    seeds: Count
    keep: Keep
    cells: Many[Entry]


class SweepFolder:
    """Paths, atomic writes and checked reads of one sweep.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def cells(self) -> Path:
        """Where the run folders are."""
        return self.path / _CELLS

    def run(self, folder: str) -> Path:
        """Return the run folder of a cell."""
        return self.cells / folder

    def log(self, folder: str) -> Path:
        """Return where the process of a cell prints to."""
        return self.cells / f"{folder}.log"

    def outcome_path(self, folder: str) -> Path:
        """Return where the outcome of a cell is."""
        return self.cells / f"{folder}.json"

    def is_sweep(self) -> bool:
        """Return whether there is a manifest."""
        return self.path.is_dir() and files.is_file(self.path / NAME, self.path)

    def folder_of(self, digest: str) -> str | None:
        """Return the run folder that a cell of this digest has already, whatever its setting was called then."""
        if not self.cells.is_dir():
            return None
        return next((one.name for one in sorted(self.cells.glob(f"*-{digest}")) if one.is_dir()), None)

    def outcome(self, folder: str) -> Outcome | None:
        """Return the outcome of a cell; None where it has none, or one that is damaged, so that it is made again."""
        try:
            content = files.read_json(self.outcome_path(folder), self.path)
            return None if content is None else Outcome.model_validate(content)
        except (files.DamagedFileError, pydantic.ValidationError):
            return None

    def write_outcome(self, folder: str, outcome: Outcome) -> None:
        """Store the outcome of a cell."""
        files.write_atomically(self.outcome_path(folder), _text(outcome), self.path)

    def forget(self, folder: str) -> None:
        """Remove the outcome of a cell that is about to go on."""
        if files.is_file(self.outcome_path(folder), self.path):
            self.outcome_path(folder).unlink()

    def read(self) -> Manifest:
        """Return the manifest, each cell with its present status.

        Raises:
            RunFolderError: there is none, or it is damaged.
        """
        path = self.path / NAME
        if not self.is_sweep():
            raise RunFolderError(f"{self.path}: not the folder of a sweep, it has no {NAME}.")
        content = files.read_json(path, self.path)
        try:
            found = Manifest.model_validate(content)
        except pydantic.ValidationError as error:
            raise RunFolderError(
                f"{path}: damaged, or not of this fedsim: {records.fault(error)}. Give the command of the sweep again."
            ) from None
        for entry in found.cells:
            if not entry.folder or Path(entry.folder).name != entry.folder:
                raise RunFolderError(f"{path}: cells: {entry.folder!r} is no name of a folder.")
        return found.model_copy(update={"cells": tuple(self.present(entry) for entry in found.cells)})

    def present(self, entry: Entry) -> Entry:
        """Return a cell with the outcome that it has now."""
        outcome = self.outcome(entry.folder)
        found: dict[str, Any] = {"status": "unfinished", "reason": None, "troubles": (), "seconds": None}
        if outcome is not None:
            found = {name: getattr(outcome, name) for name in found}
        return entry.model_copy(update=found)

    def write(self, manifest: Manifest) -> None:
        """Store the manifest."""
        files.write_atomically(self.path / NAME, _text(manifest), self.path)


def _text(value: Line) -> str:
    return json.dumps(value.model_dump(mode="json", by_alias=True), indent=2) + "\n"


def unfinished(manifest: Manifest) -> Sequence[Entry]:
    """Return the cells that have not come to their end: those without an outcome, and those that failed."""
    return [entry for entry in manifest.cells if entry.status != "finished"]
