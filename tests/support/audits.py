"""Runs and audits as tests make many of them: without a report, and with attacks in the process of the test.

A report is made from the folder alone, has tests of its own, and takes longer than all the rest: a test that reads one
renders it. A process for each attempt is a copy of that of the tests, which is large; tests of what these processes are for
ask for the fixture `isolated`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from fedsim import simulation
from fedsim.audit import attack_process
from fedsim.audit.attack_process import AttackProcess, Make
from fedsim.audit.attempt import Made
from fedsim.planning.plan import Plan
from fedsim.progress import Step
from fedsim.recording.records import AnyRecord
from fedsim.recording.run_folder import RunFolder

is_isolated = False
"""Whether attacks have a process of their own, as in the product."""


def lines(records: Sequence[AnyRecord]) -> list[dict[str, Any]]:
    """Return records as their lines in records.jsonl."""
    return [record.as_json() for record in records]


def simulate(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Train and audit, as `fedsim.simulation.simulate`."""
    with briefly():
        return lines(simulation.simulate(plan, folder, progress, *seen))


def audit(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Audit, as `fedsim.simulation.audit`."""
    with briefly():
        return lines(simulation.audit(plan, folder, progress, *seen))


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Let runs of the block make no report, and attack in this process unless the test is `isolated`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("fedsim.report.render", lambda path: path / "report.html"))
        if not is_isolated:
            stack.enter_context(mock.patch.object(AttackProcess, "call", _answer))
        yield


def _answer(
    self: AttackProcess, make: Make, *about: Any, is_own: bool, tell: Callable[[Step], None] | None = None
) -> Made:
    """Answer as the process for attacks does, in this one."""
    answer = attack_process._answer_to(make, (self._plan, RunFolder(self._folder.path), *about), tell)
    if isinstance(answer, BaseException):
        raise answer
    return answer
