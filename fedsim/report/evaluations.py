"""What evaluators found of the global model: tables of scores by round, curves, and the same over rounds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.recording.records import EvaluationRecord
from fedsim.report import plots
from fedsim.report.embedding import Plot, plot
from fedsim.report.gallery import Strip, strip_of
from fedsim.report.plots import Interval, IntervalLine
from fedsim.strips import spread

_MOST_ROUNDS = 8  # columns of a table; all of them are in tables/evaluations.csv
_MOST_SCORES = 50
_MOST_PLOTTED = 7  # lines of one plot, as many as there are colors

_BOUNDS = (", 95% from", ", 95% to")
_POINT = re.compile(
    r"(?P<name>.{1,100}) at (?P<what>\S.{0,40}) (?P<over>\d{1,9}(\.\d{1,9})?)(/(?P<under>[1-9]\d{0,8}))?"
)


class Row(NamedTuple):
    """A score, and its value after each round of the table, as text; empty where there is none."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One evaluator's scores.

    Args:
        title: the evaluator's label, else its name.
        rounds: of the columns.
        columns: what stands above them.
        rows: the scores; those with an interval in one row.
        left_out: scores that are not shown.
        troubles: round and message of each evaluation that failed or was refused.
        inconclusive: rounds after which the evaluator's own checks doubt its scores.
        cautions: reasons to doubt the scores, each once.
    """

    title: str
    rounds: tuple[int, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: int
    troubles: tuple[tuple[int, str], ...]
    inconclusive: tuple[int, ...]
    cautions: tuple[str, ...]


class Examples(NamedTuple):
    """Images that an evaluator shows, a strip for each title."""

    title: str
    round: int
    strips: tuple[Strip, ...]


def examples(folder: Path, lines: Sequence[EvaluationRecord], notes: list[str]) -> list[Examples]:
    """Return the images of each evaluator after its last round that has some.

    Args:
        folder: the run folder.
        lines: of its evaluations.
        notes: is told of files that cannot be shown.
    """
    found = []
    for own in _by_evaluator(lines):
        with_images = [line for line in own if line.artifacts]
        if with_images:
            last = max(with_images, key=lambda line: line.round)
            made = [strip_of(folder, path, title, ("", ""), notes) for title, path in last.artifacts.items()]
            if strips := tuple(strip for strip in made if strip is not None):
                found.append(Examples(_titled(last), last.round, strips))
    return found


def tables(lines: Sequence[EvaluationRecord]) -> list[Table]:
    """Return one table per evaluator, in the order in which they first occur."""
    return [_table(found) for found in _by_evaluator(lines)]


def figures(lines: Sequence[EvaluationRecord]) -> list[Plot]:
    """Return the curves after the last round, one plot for all evaluators that measure the same, then scores over rounds."""
    found = [[line for line in own if line.status == "found"] for own in _by_evaluator(lines)]
    return [*_curves(found), *(figure for own in found if (figure := _over_rounds(own)) is not None)]


def intervals(scores: Mapping[str, float]) -> dict[str, Interval]:
    """Return the scores of an evaluation, each with its interval where it has one."""
    bounds = {name + bound for name in scores for bound in _BOUNDS if all(name + other in scores for other in _BOUNDS)}
    return {
        name: Interval(value, *(scores[name + bound] if name + bound in bounds else None for bound in _BOUNDS))
        for name, value in scores.items()
        if name not in bounds
    }


def _by_evaluator(lines: Sequence[EvaluationRecord]) -> list[list[EvaluationRecord]]:
    by_evaluator: dict[tuple[str, str], list[EvaluationRecord]] = {}
    for line in lines:
        by_evaluator.setdefault((line.evaluator.name, str(line.evaluator.params)), []).append(line)
    return list(by_evaluator.values())


def _table(lines: list[EvaluationRecord]) -> Table:
    found = {line.round: intervals(line.scores) for line in lines if line.status == "found"}
    inconclusive = tuple(sorted(line.round for line in lines if line.is_inconclusive))
    asked = sorted(found)
    shown = tuple(asked[place] for place in spread(len(asked), _MOST_ROUNDS)) if asked else ()
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    return Table(
        title=lines[0].evaluator.title,
        rounds=shown,
        columns=tuple(f"after round {round}{', inconclusive' * (round in inconclusive)}" for round in shown),
        rows=tuple(
            Row(name, tuple(_written(found[round].get(name)) for round in shown)) for name in names[:_MOST_SCORES]
        ),
        left_out=max(0, len(names) - _MOST_SCORES),
        troubles=tuple((line.round, f"{line.status}: {line.message}") for line in lines if line.status != "found"),
        inconclusive=inconclusive,
        cautions=tuple(dict.fromkeys(caution for line in lines for caution in line.cautions)),
    )


def _written(score: Interval | None) -> str:
    if score is None:
        return ""
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} ({score.low:.3g} to {score.high:.3g})"


def _titled(line: EvaluationRecord) -> str:
    return f"{line.evaluator.title}{', inconclusive' * line.is_inconclusive}"


def _curves(found: Sequence[Sequence[EvaluationRecord]]) -> list[Plot]:
    drawn: dict[tuple[str, str], list[IntervalLine]] = {}
    for own in found:
        if not own:
            continue
        last = max(own, key=lambda line: line.round)
        points: dict[tuple[str, str], dict[float, Interval]] = {}
        for name, score in intervals(last.scores).items():
            if is_point := _POINT.fullmatch(name):
                place = float(is_point["over"]) / float(is_point["under"] or 1)
                points.setdefault((is_point["name"], is_point["what"]), {})[place] = score
        for named, curve in points.items():
            if len(curve) > 1:
                drawn.setdefault(named, []).append(IntervalLine(f"{_titled(last)}, round {last.round}", curve))
    return [
        _plot(f"{name} of the global model against {what}", what, name, lines) for (name, what), lines in drawn.items()
    ]


def _over_rounds(own: Sequence[EvaluationRecord]) -> Plot | None:
    """Return the scores that have intervals over rounds; None for those of one round."""
    lines: dict[str, dict[float, Interval]] = {}
    for line in own:
        for name, score in intervals(line.scores).items():
            if score.low is not None:
                lines.setdefault(name, {})[line.round] = score
    several = [IntervalLine(name, points) for name, points in lines.items() if len(points) > 1]
    if not several:
        return None
    rounds = sorted(line.round for line in own if line.is_inconclusive)
    doubt = f"; inconclusive after round {', '.join(map(str, rounds))}" if rounds else ""
    return _plot(f"Scores of {own[0].evaluator.title} over rounds{doubt}", "Round", "Score", several)


def _plot(title: str, across: str, up: str, lines: Sequence[IntervalLine]) -> Plot:
    shown = [lines[place] for place in spread(len(lines), _MOST_PLOTTED)]
    many = f" {len(shown)} of {len(lines)} lines are drawn." if len(shown) < len(lines) else ""
    says = "; ".join(
        f"{line.label}: "
        + ", ".join(f"{score.value:.3g} at {place:.3g}" for place, score in sorted(line.points.items()))
        for line in shown
    )
    return plot(
        f"{title[0].upper()}{title[1:]}, with 95% intervals.{many}",
        f"{title}. {says}.",
        plots.with_intervals(shown, across, up),
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
            "is_inconclusive": line.is_inconclusive,
        }
        for line in lines
        for name in list[str | None](line.scores) or [None]
    ]
