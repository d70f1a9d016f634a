"""What evaluators found of the global model, as tables: scores by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.recording.records import EvaluationRecord
from fedsim.strips import spread

_MOST_ROUNDS = 8  # columns of a table; all of them are in tables/evaluations.csv
_MOST_SCORES = 50


@dataclass(frozen=True)
class Table:
    """One evaluator's scores.

    Args:
        title: the evaluator's label, else its name.
        rounds: the columns.
        rows: name of a score, and its value after each of the rounds; None where there is none.
        left_out: scores that are not shown.
        troubles: round and message of each evaluation that failed or was refused.
        cautions: reasons to doubt the scores, each once.
    """

    title: str
    rounds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    left_out: int
    troubles: tuple[tuple[int, str], ...]
    cautions: tuple[str, ...]


def tables(lines: Sequence[EvaluationRecord]) -> list[Table]:
    """Return one table per evaluator, in the order in which they first occur."""
    by_evaluator: dict[tuple[str, str], list[EvaluationRecord]] = {}
    for line in lines:
        by_evaluator.setdefault((line.evaluator.name, str(line.evaluator.params)), []).append(line)
    return [_table(found) for found in by_evaluator.values()]


def _table(lines: list[EvaluationRecord]) -> Table:
    found = {line.round: line.scores for line in lines if line.status == "found"}
    asked = sorted(found)
    shown = tuple(asked[place] for place in spread(len(asked), _MOST_ROUNDS)) if asked else ()
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    return Table(
        title=lines[0].evaluator.title,
        rounds=shown,
        rows=tuple((name, tuple(found[round].get(name) for round in shown)) for name in names[:_MOST_SCORES]),
        left_out=max(0, len(names) - _MOST_SCORES),
        troubles=tuple((line.round, f"{line.status}: {line.message}") for line in lines if line.status != "found"),
        cautions=tuple(dict.fromkeys(caution for line in lines for caution in line.cautions)),
    )


def rows(lines: Sequence[EvaluationRecord]) -> list[dict[str, Any]]:
    """Return one flat row per score; an evaluation without one has one row, its score None."""
    return [
        {
            "round": line.round,
            "evaluator": line.evaluator.title,
            "version": line.evaluator.version,
            "status": line.status,
            "score": name,
            "value": line.scores[name] if name is not None else None,
            "seconds": line.seconds,
            "message": line.message,
        }
        for line in lines
        for name in list[str | None](line.scores) or [None]
    ]
