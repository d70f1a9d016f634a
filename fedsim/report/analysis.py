"""What a run comes to: names, summaries and verdicts, each worked out once for the page, the tables and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedsim.recording.run_data import RunData
from fedsim.report.naming import Naming
from fedsim.report.overview import ClientVerdict, Entry, client_verdicts, entries, headline, overall
from fedsim.report.summaries import Summary, by_client, by_defense
from fedsim.verdicts.judge import Judge, Verdict
from fedsim.verdicts.scope import Scope
from fedsim.verdicts.several import ViewEntry, view_entries


@dataclass(frozen=True)
class Analysis:
    """What a run comes to.

    Args:
        run: what its folder holds.
        names: names of attacks and defenses, where those of several runs are to be told apart; the run's own otherwise.
    """

    run: RunData
    names: Naming | None = None

    @cached_property
    def naming(self) -> Naming:
        """Names of its attacks and defenses."""
        return self.names or Naming([*self.run.records, *self.run.views])

    @cached_property
    def scope(self) -> Scope:
        """What its audit covers."""
        return Scope.of(self.run)

    @cached_property
    def _judge(self) -> Judge:
        return Judge.of(self.run, self.scope)

    @cached_property
    def by_client(self) -> list[Summary]:
        """Summaries by client, set of defenses, attack and metric."""
        return by_client(self.run.records, self._judge, self.naming)

    @cached_property
    def by_defense(self) -> list[Summary]:
        """Summaries by set of defenses, attack and metric."""
        return by_defense(self.run.records, self._judge, self.naming)

    @cached_property
    def entries(self) -> list[Entry]:
        """The lines of the first table: by client, attack and kind of finding."""
        return entries(self.by_client)

    @cached_property
    def views(self) -> list[ViewEntry]:
        """What attacks on several updates at once show."""
        return view_entries(self.run.views, self.naming.attack, self.naming.defenses)

    @cached_property
    def client_verdicts(self) -> dict[int, ClientVerdict]:
        """The verdict of each client."""
        return client_verdicts(self.entries, self.scope, self.views)

    @cached_property
    def headline(self) -> str:
        """The result in one sentence."""
        return headline(self.run, self.entries, self.scope, self.views)

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict of the whole run."""
        return overall(self.entries, self.scope, self.views)
