"""Commands on phases: what `run`, `audit` and `report` do with a scenario that has phases, or with their folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim import scenario as scenarios
from fedsim import shipped
from fedsim.cli import completion
from fedsim.cli.arguments import Verdict
from fedsim.cli.preparation import prepared, settings_of
from fedsim.cli.terminal import complain, note, out, say

if TYPE_CHECKING:
    from fedsim.phases.folder import Entry, PhasesFolder  # imports torch
    from fedsim.recording.run_folder import RunFolder


def is_stated(named: str) -> bool:
    """Return whether a scenario has phases."""
    return scenarios.stated_phases(shipped.find(named)) is not None


def folder_of(path: Path) -> PhasesFolder | None:
    """Return the folder of phases at a path; None where it is none."""
    from fedsim.phases.folder import PhasesFolder

    folder = PhasesFolder(path)
    return folder if folder.is_phases() else None


def checked(named: str, overrides: Sequence[str] | None, engine: str | None) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the phases of a scenario, and the plan and the inputs of each; tells notes on settings."""
    from fedsim.phases import stating

    found, notes = stating.read(shipped.find(named), settings_of(overrides, engine))
    note(notes)
    with out.status("Checking the phases"):
        return found, stating.check(found)


def begin(named: str, overrides: Sequence[str] | None, engine: str | None, folder: Path | None) -> Path:
    """Check all phases of a scenario, and make their folder; returns it."""
    from fedsim.phases.folder import PhasesFolder
    from fedsim.simulation import default_folder

    found, _ = checked(named, overrides, engine)
    first = found[0]
    name = first.scenario.name.removesuffix(f"-{first.name}")
    whole = first.scenario.model_copy(update={"name": name})
    return PhasesFolder.create(folder or default_folder(whole), name, named, found).path


def run(path: Path, fail_on: Verdict | None) -> None:
    """Run the phases of a folder that have not finished.

    Raises:
        typer.Exit: see `fedsim.cli`; something failed inside of a phase, or a verdict is too bad.
    """
    from fedsim.phases import running
    from fedsim.phases.folder import PhasesFolder

    folder = PhasesFolder(path)
    total = len(folder.read().phases)

    def complete(entry: Entry, opened: RunFolder) -> None:
        say(f"Phase {entry.folder.partition('-')[0]} of {total}: {entry.name}", "bold")
        with opened.locked():
            opened.check()
            plan, seen = prepared(opened.scenario())
            note(seen.notes)
            completion.complete(plan, seen, opened, True, f"fedsim run --resume {path}")

    try:
        running.run(folder, complete)
    except KeyboardInterrupt:
        complain(f"interrupted; go on with fedsim run --resume {path}")
        raise typer.Exit(completion.INTERRUPTED) from None
    say(f"Phases: {path / 'index.html'}")
    _each(folder, lambda opened: completion.exit_by(opened, fail_on), is_told=False)


def audit(path: Path, work: Callable[[RunFolder], None]) -> None:
    """Audit each phase that has begun, and write the index anew.

    Args:
        path: of the folder of phases.
        work: audits a run folder.

    Raises:
        typer.Exit: see `run`.
    """
    from fedsim.phases import rendering
    from fedsim.phases.folder import PhasesFolder

    folder = PhasesFolder(path)
    try:
        _each(folder, work)
    finally:
        say(f"Phases: {rendering.render(folder)}")


def report(path: Path, work: Callable[[Path], None]) -> None:
    """Render the report of each phase that has begun, and the index."""
    from fedsim.phases import rendering
    from fedsim.phases.folder import PhasesFolder

    folder = PhasesFolder(path)
    for entry in folder.read().phases:
        if folder.has_begun(entry):
            work(folder.run(entry))
    say(f"Phases: {rendering.render(folder)}")


def _each(folder: PhasesFolder, work: Callable[[RunFolder], None], is_told: bool = True) -> None:
    """Do something with each phase that has begun; ends with the gravest exit code, once all have had their turn.

    Raises:
        typer.Exit: where one has; an interruption ends all at once.
    """
    codes = [0]
    manifest = folder.read()
    for index, entry in enumerate(manifest.phases):
        if not folder.has_begun(entry):
            say(f"Phase {entry.folder.partition('-')[0]}: {entry.name} has no run folder")
            continue
        if is_told:
            say(f"Phase {entry.folder.partition('-')[0]}: {entry.name}", "bold")
        try:
            work(folder.open(manifest, index))
        except typer.Exit as end:
            if end.exit_code == completion.INTERRUPTED:
                raise
            complain(f"phase {entry.name}: exit code {end.exit_code}")
            codes.append(end.exit_code)
    if max(codes):
        raise typer.Exit(max(codes))
