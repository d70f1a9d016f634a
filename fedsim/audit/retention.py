"""Which captured updates stay on disk once their audit is over, as `audit.keep_updates` says.

`all` keeps them. `audited` keeps those that the scenario has attacked; the others are needed no longer than until the
controls of their round are there. `none` keeps none. Updates of a round in which an attempt failed stay, so that it can be
made again. Global weights, what clients' defenses keep, findings and records stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from fedsim.audit.assessment import Task
from fedsim.errors import RunFolderError
from fedsim.exchange import View
from fedsim.planning.plan import Plan
from fedsim.recording.records import AnyRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.views import views


class Retention:
    """Removes updates of one run whose audit is over.

    Args:
        plan: the run's plan.
        folder: the run.
        records: by attempt, as the audit goes on.
    """

    def __init__(self, plan: Plan, folder: RunFolder, records: Mapping[Task, AnyRecord]) -> None:
        self._plan, self._folder, self._records = plan, folder, records
        self._keep = plan.scenario.audit.keep_updates
        # Their updates are needed until all rounds are there.
        self._has_wide = any(plan.scope_of(planned.attack) != "update" for planned in plan.attacks)

    def end_round(self, round: int) -> None:
        """Remove what is not to be kept of a round, once all attacks on its single updates have records."""
        if not self._has_wide:
            self._remove(round)

    def end(self, rounds: Iterable[int]) -> None:
        """Remove what is not to be kept of all rounds, once all attacks have records."""
        if self._has_wide:
            for round in sorted(rounds):
                self._remove(round)

    def _remove(self, round: int) -> None:
        if self._keep == "all" or self._has_failed(round):
            return
        is_audited = self._keep == "audited" and round in self._plan.audit_rounds and bool(self._plan.attacks)
        kept = self._plan.audit_clients if is_audited else ()
        there = [client for client in self._folder.captured(round) if self._folder.has_capture(round, client)]
        removed = [client for client in there if client not in kept]
        if removed:
            self._folder.remove_updates(round, removed)

    def _has_failed(self, round: int) -> bool:
        return any(record.status == "failed" and round in task.view.rounds for task, record in self._records.items())

    def refuse_removed(self) -> None:
        """Refuse to go on where an attack without a record would look at an update that was removed.

        Raises:
            RunFolderError: names the attack, the first such update, and what to do.
        """
        captured = {round: self._folder.captured(round) for round in self._folder.captured_rounds()}
        audited = {round: clients for round, clients in captured.items() if round in self._plan.audit_rounds}
        missing = []
        for planned in self._plan.attacks:
            scope = self._plan.scope_of(planned.attack)
            seen: Iterable[View] = (
                (View.of_update(round, client) for round, clients in audited.items() for client in clients)
                if scope == "update"
                else views(scope, audited, self._plan.audit_clients, self._plan.sees_sums)
            )
            wanted = (view for view in seen if scope != "update" or view.client in self._plan.audit_clients)
            missing += [Task(view, planned.index) for view in wanted if self._plan.is_run(planned, view)]
        refuse_removed(self._folder, self._plan, [task for task in missing if task not in self._records])


def refuse_removed(folder: RunFolder, plan: Plan, tasks: Collection[Task]) -> None:
    """Refuse attempts that would look at an update that was removed.

    Raises:
        RunFolderError: names the attack, the first such update, and what to do.
    """
    for task in tasks:
        for round, client in folder.captures_of(task.view):
            if folder.is_removed(round, client):
                raise RunFolderError(
                    f"{folder.path}: {plan.attacks[task.attack].title} has no record, or an outdated one, of the update of "
                    f"client {client} in round {round}, which was removed after its audit (audit.keep_updates). Leave the "
                    "attack out; or add it to scenario.yaml, set audit.keep_updates: all there, delete captures/removed.jsonl, "
                    "and use fedsim run --resume, which trains these clients again."
                )
