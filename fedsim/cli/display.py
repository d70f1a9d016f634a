"""What a run shows in the terminal while it goes on, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsim import simulation
from fedsim.audit.auditor import Running
from fedsim.errors import printable, printable_line
from fedsim.exchange import View
from fedsim.metrics.ratings import Level, scale
from fedsim.recording.records import AnyRecord, Record, ViewRecord
from fedsim.report import reading
from fedsim.report.analysis import Analysis
from fedsim.report.naming import NO_DEFENSE
from fedsim.report.overview import Entry, entries
from fedsim.report.summaries import by_client
from fedsim.report.view import labels_found
from fedsim.verdicts.judge import Verdict
from fedsim.verdicts.several import ViewEntry, view_entries

_SHOWN_ROWS = 18
_BAR_WIDTH = 20
_MOST_FOUND = 20  # attempts whose findings are shown unscored
_LONGEST = 1e9  # seconds that are shown as time left, which one early step may overrate without limit
_QUIET = 60.0  # seconds at least between two lines about attacks under way on a plain stream
_STYLES: dict[Verdict, str] = {"leaks": "bold red", "partial": "yellow", "resisted": "green", "inconclusive": "dim"}
# What one attempt shows, of which no verdict can be given before all of the run is known.
_SHOWS: dict[Level, str] = {"leaks": "leaks", "partial": "partial", "none": "no leak found", "unrated": "not rated"}


def _leakage(entry: Entry, is_final: bool) -> Text:
    """Return a line's verdict, its score, and what the score is worth beyond its best blind control."""
    found = entry.summary
    if found.metric is None or found.mean is None:
        if is_final:
            return Text(
                printable_line(f"{entry.verdict}: {entry.reason}"),
                style="red" if found.failed else _STYLES[entry.verdict],
            )
        reason = "failed" if found.failed else "refused" if found.refused else "not scored"
        return Text(reason, style="red" if found.failed else "dim")
    metric = scale(found.metric)
    shows = "may be luck" if entry.judge.lucky else _SHOWS[entry.judge.level]
    text = f"{entry.verdict if is_final else shows}: {metric.title} {metric.write(found.mean)}"
    if found.best is not None and found.skill is not None:
        text += f" ({metric.write(found.skill, True).removesuffix(metric.unit)} vs {found.best.name})"
    if is_final and entry.verdict == "inconclusive":
        text += f"; {entry.reason}"
    return Text(printable_line(text), style=_STYLES[entry.verdict])


def _told(record: AnyRecord) -> list[tuple[str, str, Text]]:
    """Return the defenses, the attack and what leaks, for each kind of finding of an attempt; once where all say the same."""
    if isinstance(record, Record):
        found = [
            (one.summary.defenses, one.summary.attack, _leakage(one, False)) for one in entries(by_client([record]))
        ]
        return [one for number, one in enumerate(found) if one not in found[:number]]
    return [("", one.attack, Text(printable_line(_leakage_of_view(one)))) for one in view_entries([record])]


def _leakage_of_view(entry: ViewEntry) -> str:
    if entry.metric is None:
        return "not scored"
    shows = entry.verdict if entry.is_leak else "not shown to leak"
    return f"{shows}: {scale(entry.metric).title} {entry.write(entry.mean)}"


def _shown(text: str) -> Text:
    """Return a name as it is: no markup, and nothing that the terminal would obey."""
    return Text(printable_line(text))


def _table(*columns: str) -> Table:
    table = Table(title_justify="left", caption_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("round", "client", "accuracy") else "left")
    return table


def _pace(running: Running) -> tuple[str, str, str]:
    """Return an attack's iteration, its loss, and the time that is left, each empty where it is not known."""
    step = running.step
    loss = "" if step.loss is None else f"loss {step.loss:.4g}"
    left = "" if step.seconds_left is None else f"ETA {timedelta(seconds=round(min(step.seconds_left, _LONGEST)))}"
    return f"{step.done}/{step.total}", loss, left


def _under_way(attacks: tuple[Running, ...]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for running in attacks:
        place = _place(running.view)
        bar = ProgressBar(max(1, running.step.total), running.step.done, width=_BAR_WIDTH)
        grid.add_row(_shown(running.attack), place, bar, *_pace(running))
    return grid


def _place(view: View) -> str:
    return f"round {view.round} client {view.client}" if view.client is not None else str(view)


class Display:
    """A live table of attempts with progress bars; on a plain stream, one line per attempt.

    Args:
        console: where to write.
        rounds: rounds of the scenario.
        training: whether rounds will be trained, so that their bar is worth showing.
        clock: the present in seconds.
    """

    def __init__(
        self, console: Console, rounds: int, training: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock, self._spoke = clock, clock()
        self._running: tuple[Running, ...] = ()
        self._accuracy: dict[int, float] = {}
        self._rows: list[tuple[str | Text, ...]] = []
        self._bars = Progress(
            TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._rounds: TaskID | None = self._bars.add_task("rounds", total=rounds) if training else None
        self._attempts = self._bars.add_task("attacks", total=None)
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __rich__(self) -> Group:
        """Draw the last attempts, the bars, and the attacks under way."""
        bars = Group(self._bars, _under_way(self._running)) if self._running else Group(self._bars)
        if not self._rows:
            return bars
        table = _table("round", "client", "defense", "attack", "leakage", "accuracy")
        for row in self._rows[-_SHOWN_ROWS:]:
            table.add_row(*row)
        return Group(table, bars)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def progress(self) -> simulation.Progress:
        """The callbacks that feed this display."""
        return simulation.Progress(self._on_round, self._on_record, self._on_total, self._on_running)

    def _on_round(self, line: dict[str, Any]) -> None:
        self._accuracy[line["round"]] = line["accuracy"]
        if self._rounds is not None:
            self._bars.update(self._rounds, completed=line["round"])
        if not self._console.is_terminal:
            failed = f", failed: {', '.join(line['failed'])}" if line.get("failed") else ""
            self._console.print(
                f"round {line['round']}: accuracy {line['accuracy']:.3f}, loss {line['loss']:.3f}{failed}"
            )

    def _on_total(self, total: int) -> None:
        self._bars.update(self._attempts, total=total)

    def _on_running(self, running: tuple[Running, ...]) -> None:
        self._running = running
        if self._console.is_terminal or not running or self._clock() - self._spoke < _QUIET:
            return
        self._spoke = self._clock()
        said = (
            f"{_place(one.view)} {_shown(one.attack)}: {', '.join(part for part in _pace(one) if part)}"
            for one in running
        )
        self._console.print("; ".join(said), markup=False, highlight=False, soft_wrap=True)

    def _on_record(self, record: AnyRecord) -> None:
        self._bars.advance(self._attempts)
        accuracy = self._accuracy.get(record.round)
        for defenses, attack, leaked in _told(record):
            if record.status != "found":
                leaked.append(f": {printable(record.message or '', 300)}")
            shown = "" if accuracy is None else f"{accuracy:.3f}"
            whose = "all" if record.client is None else str(record.client)
            self._rows.append((str(record.round), whose, _shown(defenses), _shown(attack), leaked, shown))
            if not self._console.is_terminal:
                place = record.place if isinstance(record, ViewRecord) else f"round {record.round} client {whose}"
                said = f"{place} ({defenses}) {attack}" if defenses else f"{place} {attack}"
                self._console.print(f"{_shown(said)}: {leaked}", markup=False, highlight=False, soft_wrap=True)


def summary(folder: Path) -> Group:
    """Return the result of a run in one sentence and one table, a line per client, attack and kind of finding."""
    analysis = Analysis(reading.read(folder))
    read = analysis.run
    table = _table("client", "defense", "attack", "verdict and mean score")
    previous: tuple[str | Text, ...] = ()
    for line in analysis.entries:
        defenses = line.summary.defenses
        carried = _shown("" if defenses == NO_DEFENSE else defenses)
        row = (str(line.client), carried, _shown(line.summary.attack), _leakage(line, True))
        # Of what is not scored, all kinds of finding say the same.
        if row == previous:
            continue
        if previous and previous[0] != row[0]:
            table.add_section()
        previous = row
        table.add_row(*row)
    for entry in analysis.views:
        said = f"{entry.verdict}: {entry.reason or _leakage_of_view(entry).partition(': ')[2]}"
        table.add_section()
        table.add_row(entry.looks_at, "", _shown(entry.attack), Text(printable_line(said)))
    if read.rounds and read.rounds[-1].accuracy is not None:
        table.caption = f"accuracy of the global model after the last round: {read.rounds[-1].accuracy:.3f}"
    headline = Text(printable_line(analysis.headline), style="bold")
    unscored = [record for record in read.records if record.found is not None and not record.scores]
    if not unscored:
        return Group(headline, table)
    if not read.is_observed or read.part("audit").get("truth"):
        return Group(headline, table, _found(unscored))
    advice = f"To score this: fedsim audit {folder} --truth MODULE:FUNCTION, which returns what a client trained on."
    return Group(headline, table, _found(unscored), Text(printable_line(advice)))


def _found(records: Sequence[Record]) -> Group:
    """Return what was found in updates whose truth nobody knows, a line an attempt."""
    table = _table("round", "client", "attack", "found, not scored")
    for record in records[:_MOST_FOUND]:
        found = record.found
        assert found is not None
        parts = [f"{found.pictures} images"] if found.pictures else []
        parts += [f"{found.features} head inputs"] if found.features else []
        parts += [text for text in (labels_found(found),) if text]
        table.add_row(str(record.round), str(record.client), _shown(record.attack.title), Text(", ".join(parts)))
    if len(records) > _MOST_FOUND:
        table.caption = f"and {len(records) - _MOST_FOUND} more, in the report"
    return Group(Text("What was found", style="bold"), table)
