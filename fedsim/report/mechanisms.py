"""Privacy budgets that defenses claim, beside what their own draws show: in words for the report, and as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedsim.recording.records import MechanismRecord


class Claim(NamedTuple):
    """One checked claim, as the report shows it."""

    client: int
    defense: str
    claimed: str
    lower_bound: str
    confidence: str
    draws: str
    verdict: str


def claims(lines: Sequence[MechanismRecord]) -> list[Claim]:
    """Return the table of checked claims."""
    return [
        Claim(
            line.client,
            line.defense.title,
            _claimed(line),
            "-" if line.lower_bound is None else f"{line.lower_bound:.3g}",
            "-" if line.confidence is None else f"{100 * line.confidence:.4g}%",
            f"{line.draws:,}" if line.draws else "-",
            line.status if line.message is None else f"{line.status}: {line.message}",
        )
        for line in lines
    ]


def _claimed(line: MechanismRecord) -> str:
    if line.claimed is None:
        return "-"
    epsilon = "∞" if line.claimed.epsilon is None else f"{line.claimed.epsilon:.3g}"
    release = "; one step on all images" if line.release == "step" else ""
    return f"{epsilon} (delta {line.claimed.delta:g}, {line.claimed.neighbors}{release})"


def rows(lines: Sequence[MechanismRecord]) -> list[dict[str, Any]]:
    """Return one flat row per checked claim."""
    return [
        {
            "client": line.client,
            "round": line.round,
            "defense": line.defense.title,
            "version": line.defense.version,
            "release": line.release,
            "epsilon": None if line.claimed is None else line.claimed.epsilon,
            "delta": None if line.claimed is None else line.claimed.delta,
            "neighbors": None if line.claimed is None else line.claimed.neighbors,
            "lower_bound": line.lower_bound,
            "confidence": line.confidence,
            "draws": line.draws,
            "statistic": line.statistic,
            "verdict": line.status,
            "seconds": line.seconds,
            "message": line.message,
        }
        for line in lines
    ]
