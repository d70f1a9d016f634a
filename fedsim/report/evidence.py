"""Where on the page each verdict rests, and the way back: names of rows and images, and links between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedsim.recording.records import Record
from fedsim.report.analysis import Analysis
from fedsim.report.gallery import Display
from fedsim.report.overview import Entry
from fedsim.report.summaries import Summary
from fedsim.verdicts.judge import ORDER
from fedsim.verdicts.several import ViewEntry

_ATTEMPTS = "attempts"  # the table of all attempts, where the one in question is not among those shown
_OVERVIEW = "overview"


class Way(NamedTuple):
    """A link inside the page: the name of its target, and what it says."""

    anchor: str
    words: str


class Evidence:
    """Links of a page from verdicts to what they rest on, and back.

    Args:
        analysis: of the run.
        displays: the images that the page shows.
        shown: the attempts that it shows, in the order of their rows.
        view_attempts: how many of the attempts on several updates it shows.
    """

    def __init__(
        self,
        analysis: Analysis,
        displays: Sequence[Display],
        shown: Sequence[Record],
        view_attempts: int,
    ) -> None:
        self._naming = analysis.naming
        self._panels = {(display.client, panel.round) for display in displays for panel in display.panels}
        self._first_panel = {display.client: display.panels[0].round for display in displays}
        self._attempts: dict[tuple[int, str, int], str] = {}
        self._first_attempt: dict[tuple[int, str], str] = {}
        for number, record in enumerate(shown, 1):
            own, anchor = (record.client, self._naming.attack(record)), f"attempt-{number}"
            self._attempts.setdefault((*own, record.round), anchor)
            self._first_attempt.setdefault(own, anchor)
        self._lines: dict[int, list[tuple[str, Entry]]] = {}
        self._decided: dict[tuple[int, int], list[Way]] = {}
        self._told: dict[tuple[int, str], list[Way]] = {}
        for number, line in enumerate(analysis.entries, 1):
            anchor, peak = f"verdict-{number}", line.judge.peak
            self._lines.setdefault(line.client, []).append((anchor, line))
            self._told.setdefault((line.client, line.summary.attack), []).append(Way(anchor, f"verdict on {line.kind}"))
            if peak is not None and not line.summary.is_control:
                way = Way(anchor, f"{line.kind} by {line.summary.attack}")
                self._decided.setdefault((peak.client, peak.round), []).append(way)
        self._views = {entry.attack: f"view-{number}" for number, entry in reversed([*enumerate(analysis.views, 1)])}
        several = enumerate(analysis.run.views[:view_attempts], 1)
        self._view_attempts = {id(record): f"view-attempt-{number}" for number, record in several}

    def panel(self, client: int, round: int) -> str:
        """Return the images of a client in a round; nothing where the page does not show them."""
        return f"client-{client}-round-{round}" if (client, round) in self._panels else ""

    def of(self, summary: Summary) -> str:
        """Return the attempt that decides; without one that does, the first that was made."""
        if summary.peak is not None:
            client, round = summary.peak.client, summary.peak.round
            return self._attempts.get((client, summary.attack, round)) or self.panel(client, round) or _ATTEMPTS
        known = (self._first_attempt.get((client, summary.attack)) for client in summary.clients)
        return next(filter(None, known), _ATTEMPTS)

    def of_client(self, client: int) -> str:
        """Return the images that decide a client's verdict, else any of it, else the attempt of its worst line."""
        lines = sorted((line for _, line in self._lines[client]), key=lambda line: -ORDER.index(line.verdict))
        for line in lines:
            peak = line.judge.peak
            if peak is not None and (found := self.panel(peak.client, peak.round)):
                return found
        if client in self._first_panel:
            return self.panel(client, self._first_panel[client])
        return self.of(lines[0].judge)

    def of_view(self, entry: ViewEntry) -> str:
        """Return the attempt on several updates that shows most; the table of them where it is not shown."""
        record = None if entry.decider is None else entry.decider.record
        return self._view_attempts.get(id(record), "view-attempts")

    def verdict_of(self, client: int, kind: str) -> str:
        """Return the worst line of a client on a kind of finding."""
        own = [(anchor, line) for anchor, line in self._lines.get(client, ()) if line.kind == kind]
        if own:
            return max(own, key=lambda pair: ORDER.index(pair[1].verdict))[0]
        return "views" if self._views else _OVERVIEW

    def verdict_of_view(self, attack: str) -> str:
        """Return the verdict on an attack on several updates."""
        return self._views.get(attack, "")

    def decided(self, client: int, round: int) -> list[Way]:
        """Return the verdicts that a client's images of a round decide."""
        return self._decided.get((client, round), [])

    def of_record(self, record: Record) -> list[Way]:
        """Return the verdicts that an attempt belongs to, and its images."""
        ways = self._told.get((record.client, self._naming.attack(record)), [])
        shown = self.panel(record.client, record.round)
        return [*ways, *([Way(shown, "images")] if shown else [])]
