"""Runs and audits without a report, whose records come back as the lines that they write.

A report is made from the folder alone, has tests of its own, and takes longer than all the rest: a test that reads one
renders it.
"""

from collections.abc import Sequence
from typing import Any
from unittest import mock

from fedsim import simulation
from fedsim.planning.plan import Plan
from fedsim.recording.records import AnyRecord
from fedsim.recording.run_folder import RunFolder

_without_report = mock.patch("fedsim.report.render", lambda path: path / "report.html")


def lines(records: Sequence[AnyRecord]) -> list[dict[str, Any]]:
    """Return records as their lines in records.jsonl."""
    return [record.as_json() for record in records]


def simulate(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Train and audit, as `fedsim.simulation.simulate`."""
    with _without_report:
        return lines(simulation.simulate(plan, folder, progress, *seen))


def audit(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Audit, as `fedsim.simulation.audit`."""
    with _without_report:
        return lines(simulation.audit(plan, folder, progress, *seen))
