"""Runs and audits whose records come back as the lines that they write."""

from collections.abc import Sequence
from typing import Any

from fedsim import simulation
from fedsim.planning.plan import Plan
from fedsim.recording.records import AnyRecord
from fedsim.recording.run_folder import RunFolder


def lines(records: Sequence[AnyRecord]) -> list[dict[str, Any]]:
    """Return records as their lines in records.jsonl."""
    return [record.as_json() for record in records]


def simulate(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Train, audit and report, as `fedsim.simulation.simulate`."""
    return lines(simulation.simulate(plan, folder, progress, *seen))


def audit(plan: Plan, folder: RunFolder, progress: simulation.Progress, *seen: Any) -> list[dict[str, Any]]:
    """Audit, as `fedsim.simulation.audit`."""
    return lines(simulation.audit(plan, folder, progress, *seen))
