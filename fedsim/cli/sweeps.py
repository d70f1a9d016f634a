"""Commands about many runs: sweep, compare."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsim import shipped
from fedsim.cli import terminal
from fedsim.cli.arguments import Overrides, shipped_names
from fedsim.cli.terminal import complain, note, say
from fedsim.errors import FedsimError, printable_line

if TYPE_CHECKING:
    from fedsim.sweeping.manifest import Entry, Manifest, SweepFolder  # imports torch

_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
_MARGIN = 1.0  # decibels: from here on a leak of images counts as partial


def _names(incomplete: str) -> list[str]:
    """Return the scenarios and sweep files that ship with fedsim and begin with what was typed."""
    return [*shipped_names(incomplete), *(name for name in shipped.sweeps() if name.startswith(incomplete))]


class Launcher(StrEnum):
    """Where cells run."""

    local = "local"
    ray = "ray"


class Keep(StrEnum):
    """What is kept of finished cells."""

    captures = "captures"
    results = "results"


def sweep(
    scenario: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO]", show_default=False, autocompletion=_names)
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,C", help="Values of one key, or @FILE with named settings; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds each setting gets, from the scenario's own; 1 otherwise.")
    ] = None,
    settings: Overrides = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="How many cells run at once; as many as there are processors otherwise.")
    ] = None,
    launcher: Annotated[Launcher, typer.Option(help="Processes of this machine, or Ray tasks.")] = Launcher.local,
    keep: Annotated[
        Keep | None, typer.Option(help="results removes what finished cells captured; captures keeps all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; sweeps/<name>-<digest of the grid> otherwise.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the sweep in this folder as it began.")] = None,
) -> None:
    """Run a scenario over a grid of settings and seeds, and compare them.

    SCENARIO is a YAML file, a name that "fedsim list scenarios" shows, or a sweep file, such as "defenses". The same command
    goes on where it was interrupted.
    """
    from fedsim.sweeping.launchers import processors
    from fedsim.sweeping.manifest import SweepFolder

    if (scenario is None) == (resume is None):
        raise FedsimError(
            "sweep: give a scenario or a sweep file, or --resume with the folder of a sweep, and not both."
        )
    if resume is not None:
        if over or seeds or settings or out or keep:
            raise FedsimError(
                "sweep --resume: goes on as the sweep began; leave --over, --seeds, --set, --out and --keep away."
            )
        folder = SweepFolder(resume)
        manifest = folder.read()
    else:
        assert scenario is not None
        folder, manifest = _prepared(scenario, over or (), seeds, settings or (), out, keep or Keep.captures)
    _carry_out(folder, manifest, launcher, jobs or processors())


def _prepared(
    scenario: str, over: Sequence[str], seeds: int | None, settings: Sequence[str], out: Path | None, keep: Keep
) -> tuple[SweepFolder, Manifest]:
    from fedsim.sweeping import grid, running
    from fedsim.sweeping.manifest import SweepFolder

    path = shipped.find_for_sweep(scenario)
    stated = grid.sweep_file(path)
    axes = [*(stated.axes if stated else ()), *map(grid.axis, over)]
    count = seeds or (stated.seeds if stated else None) or 1
    named, common = (stated.scenario, stated.common) if stated else (scenario, ())
    cells, notes = grid.cells(named, settings, common, axes, count)
    note(notes)
    folder = SweepFolder(out or running.default_folder(cells))
    bar = Progress(TextColumn("checking"), BarColumn(), MofNCompleteColumn(), console=terminal.out, transient=True)
    with bar:
        task = bar.add_task("", total=len(cells), visible=terminal.out.is_terminal)
        running.check(folder, cells, lambda: bar.advance(task))
    return folder, running.prepare(folder, cells, named, axes, count, keep.value)


def _carry_out(folder: SweepFolder, manifest: Manifest, launcher: Launcher, jobs: int) -> None:
    from fedsim import comparing
    from fedsim.sweeping import running
    from fedsim.sweeping.launchers import LAUNCHERS

    say(f"Sweep folder: {folder.path}")
    try:
        with _Cells(len(manifest.cells)) as shown:
            manifest = running.run(folder, LAUNCHERS[launcher.value](jobs), jobs, shown.on_end)
    except KeyboardInterrupt:
        complain(f"interrupted; go on with fedsim sweep --resume {folder.path}")
        raise typer.Exit(_INTERRUPTED) from None
    troubled = [entry for entry in manifest.cells if entry.troubles]
    failed = [entry for entry in manifest.cells if entry.status != "finished"]
    _show(comparing.compare([folder.path], folder.path, _MARGIN))
    if failed or troubled:
        if failed:
            complain(f"{len(failed)} of {len(manifest.cells)} cells failed; sweep.json says why.")
        if troubled:
            complain(f"In {len(troubled)} of {len(manifest.cells)} cells something failed; sweep.json says what.")
        raise typer.Exit(1)


class _Cells:
    """A bar of the cells of a sweep; on a plain stream, a line for each that ends."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=terminal.out,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> _Cells:
        if terminal.out.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_end(self, entry: Entry) -> None:
        """Show that a cell has ended."""
        self._done += 1
        text = f"{entry.status}: {entry.setting}, seed {entry.seed}"
        self._bar.update(self._task, completed=self._done, description=printable_line(text))
        if entry.reason or entry.troubles:
            text += f": {'; '.join([*filter(None, [entry.reason]), *entry.troubles])}"
        if not terminal.out.is_terminal or entry.status == "failed":
            say(f"{self._done}/{self._total} {text}", "red" if entry.status == "failed" else None)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN|SWEEP...", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; into the folder of a single sweep, else to comparison/.")
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=100, metavar="DB", help="How far above its control an image attack may be.")
    ] = _MARGIN,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="SETTING", help="What to compare with; the setting without defenses otherwise."),
    ] = None,
) -> None:
    """Compare runs and sweeps: leakage, accuracy, epsilon and time, a row per setting.

    RUN|SWEEP are folders of runs and of sweeps. Writes compare.html, compare.csv, compare.json and compare.tex.
    """
    from fedsim import comparing

    _show(comparing.compare(folders, out or comparing.default_folder(folders), margin, baseline))


def _show(found: Any) -> None:
    table = Table(box=None, pad_edge=False)
    for title in found.titles:
        table.add_column(title, overflow="fold")
    for row in found.rows:
        table.add_row(*(printable_line(cell) for cell in row))
    terminal.out.print(table)
    for text in found.statements:
        say(text, "bold")
    say(f"Comparison: {found.page}")
