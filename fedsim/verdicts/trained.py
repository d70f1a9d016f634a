"""What follows for a verdict where a defense may have changed what its client trained on."""

from __future__ import annotations

from fedsim.findings.kinds import KINDS
from fedsim.metrics.ratings import plain
from fedsim.recording.records import Record


def metric_of(record: Record, metric: str | None) -> str | None:
    """Return what an attempt is judged by: the metric without its view where the client trained on its own images."""
    return metric if metric is None or metric in record.scores else plain(metric)


def changed_inputs(record: Record, kind: str) -> str | None:
    """Return why a finding cannot be compared with all that the client trained on; None where it can.

    Args:
        record: the attempt.
        kind: what the attack is after, a name in `fedsim.findings.kinds`.
    """
    trained = record.trained_on
    if trained is None:
        return None
    if trained.unknown is not None:
        return f"a defense may have changed what the client trained on, and that is not known: {trained.unknown}"
    sought = KINDS.get(kind)
    if trained.other_pictures and sought is not None and sought.follows is None:
        return f"a defense changed the images before they reached the model, and the {kind} of those are not known"
    return None
