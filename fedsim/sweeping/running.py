"""A sweep from its grid to finished cells: all are checked before the first runs, and whatever ends is in the folder."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.recording import files
from fedsim.recording.folder_lock import LOCK, FolderLock
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder
from fedsim.sweeping.grid import Axis, Cell, digest_of_grid
from fedsim.sweeping.launchers import Launcher, Task
from fedsim.sweeping.manifest import Entry, Keep, Manifest, Outcome, SweepFolder, unfinished

_PAUSE = 0.1  # seconds between two looks at the cells under way
_NAMED = 3  # cells in one message


def default_folder(found: Sequence[Cell]) -> Path:
    """Return sweeps/<name>-<digest of the grid>: the same command finds it again."""
    return Path("sweeps") / f"{found[0].scenario.name}-{digest_of_grid(found)}"


def check(folder: SweepFolder, found: Sequence[Cell], on_checked: Callable[[], None] = lambda: None) -> None:
    """Check all cells as `fedsim check` does, but those that the folder has already.

    Args:
        folder: of the sweep.
        found: its cells.
        on_checked: called after each.

    Raises:
        FedsimError: the first that cannot run; its setting is named.
        RunFolderError: the folder is not one for this sweep.
    """
    _check_folder(folder, found)
    read: set[str] = set()
    for cell in found:
        if folder.folder_of(cell.digest) is None:
            try:
                plan = planning.make(cell.scenario, trains=False)
                # Other seeds of a setting draw from the same images.
                if cell.setting.name not in read:
                    inputs.of(plan)
                    read.add(cell.setting.name)
            except ScenarioError as error:
                where = f"in the setting {cell.setting.name}, seed {cell.seed}"
                raise ScenarioError(error.where, f"{error.message} ({where})") from None
        on_checked()


def _check_folder(folder: SweepFolder, found: Sequence[Cell]) -> None:
    if not folder.is_sweep():
        if folder.path.exists() and not folder.path.is_dir():
            raise RunFolderError(f"{folder.path}: a file, and a sweep needs a folder. Name another.")
        others = {one.name for one in folder.path.iterdir()} - {folder.cells.name, LOCK} if folder.path.exists() else ()
        if any(not files.is_partial(Path(name)) for name in others):
            raise RunFolderError(f"{folder.path}: already exists and holds no sweep. Name another folder.")
        return
    known = {cell.digest for cell in found}
    lost = [entry.folder for entry in folder.read().cells if entry.digest not in known]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise RunFolderError(
            f"{folder.path}: holds a sweep with cells that this one lacks: {', '.join(lost[:_NAMED])}{more}. Name another "
            "folder, or give their values too; more values and more seeds may join."
        )


def prepare(
    folder: SweepFolder, found: Sequence[Cell], named: str, axes: Sequence[Axis], seeds: int, keep: Keep
) -> Manifest:
    """Make the run folders of all cells, then the manifest; what is there already is kept.

    Args:
        folder: of the sweep.
        found: its cells, checked.
        named: the scenario as the user names it.
        axes: of the grid.
        seeds: how many.
        keep: what is kept of finished cells.

    Raises:
        RunFolderError: it cannot be made, or another process works on it.
    """
    try:
        folder.path.mkdir(mode=files.OWNER_ONLY, parents=True, exist_ok=True)
        folder.cells.mkdir(mode=files.OWNER_ONLY, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder.path}: cannot be made: {error.strerror}.") from None
    with FolderLock(folder.path).held():
        _check_folder(folder, found)
        entries = [_entry(folder, cell) for cell in found]
        manifest = Manifest(
            schema=SCHEMA,
            name=found[0].scenario.name,
            scenario=named,
            axes=tuple(tuple(setting.name for setting in axis) for axis in axes),
            seeds=seeds,
            keep=keep,
            cells=tuple(entries),
        )
        manifest = manifest.model_copy(update={"cells": tuple(folder.present(entry) for entry in entries)})
        folder.write(manifest)
    return manifest


def _entry(folder: SweepFolder, cell: Cell) -> Entry:
    name = folder.folder_of(cell.digest) or cell.folder
    if not files.is_file(folder.run(name) / "scenario.yaml", folder.path):
        RunFolder.create(folder.run(name), cell.scenario)
    changes: dict[str, Any] = cell.setting.changes
    return Entry(folder=name, setting=cell.setting.name, seed=cell.seed, digest=cell.digest, changes=changes)


def run(
    folder: SweepFolder, launcher: Launcher, jobs: int, on_end: Callable[[Entry], None] = lambda entry: None
) -> Manifest:
    """Run all cells that have not finished, several at once; one that fails is a row of the manifest, not the end.

    All cells under way are ended where this is interrupted.

    Args:
        folder: of a sweep that is prepared.
        launcher: starts the cells.
        jobs: how many at once.
        on_end: called with each cell that ends, or has finished before.

    Returns:
        The manifest at the end.

    Raises:
        RunFolderError: another process works on the sweep, or the manifest is damaged.
    """
    with FolderLock(folder.path).held():
        manifest = folder.read()
        entries = {entry.folder: entry for entry in manifest.cells}

        def now() -> Manifest:
            return manifest.model_copy(update={"cells": tuple(entries.values())})

        for entry in manifest.cells:
            if entry.status == "finished":
                _prune(folder, manifest, entry)
                on_end(entry)
        under_way = _UnderWay(folder, launcher)
        waiting = deque(unfinished(manifest))
        try:
            while waiting or under_way.tasks:
                while waiting and len(under_way.tasks) < jobs:
                    under_way.start(waiting.popleft().folder)
                ended = under_way.ended()
                for name in ended:
                    entries[name] = folder.present(entries[name])
                    # The manifest first: a cell without captures that it takes for unfinished would be trained again.
                    folder.write(now())
                    _prune(folder, manifest, entries[name])
                    on_end(entries[name])
                if not ended:
                    time.sleep(_PAUSE)
        finally:
            under_way.end()
        return now()


class _UnderWay:
    """The cells under way.

    Args:
        folder: of the sweep.
        launcher: starts them.
    """

    def __init__(self, folder: SweepFolder, launcher: Launcher) -> None:
        self._folder, self._launcher = folder, launcher
        self.tasks: dict[str, Task | None] = {}

    def start(self, name: str) -> None:
        """Start a cell; where that fails, it has failed."""
        self._folder.forget(name)
        self.tasks[name] = None
        try:
            self.tasks[name] = self._launcher.start(self._folder, name)
        except OSError as error:
            self._fail(name, f"it could not be started: {error.strerror or error}")

    def _fail(self, name: str, reason: str) -> None:
        self._folder.write_outcome(name, Outcome(schema=SCHEMA, status="failed", reason=reason))

    def ended(self) -> list[str]:
        """Return the cells that have ended since the last look; each has an outcome."""
        found = []
        for name, task in [*self.tasks.items()]:
            said = "" if task is None else task.ended()
            if said is not None:
                del self.tasks[name]
                if self._folder.outcome(name) is None:
                    self._fail(name, f"{said}, and left no outcome; {self._folder.log(name)} may say why")
                found.append(name)
        return found

    def end(self) -> None:
        """End all at once."""
        for task in self.tasks.values():
            if task is not None:
                task.end()
        self._launcher.close()


def _prune(folder: SweepFolder, manifest: Manifest, entry: Entry) -> None:
    """Remove what a finished cell captured, where results alone are kept."""
    captures = folder.run(entry.folder) / "captures"
    if manifest.keep == "results" and entry.status == "finished" and files.is_folder(captures, folder.path):
        shutil.rmtree(captures)
