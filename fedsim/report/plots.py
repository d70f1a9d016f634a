"""Curves over rounds and over iterations as SVG; the same numbers give the same bytes with the same matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from fedsim.findings.kinds import IMAGES
from fedsim.metrics.metric import Scale
from fedsim.metrics.ratings import scale
from fedsim.recording.records import Record, Round
from fedsim.report.drawing import COLORS, LINES, MARKERS, Told, rounds_axis, svg
from fedsim.report.naming import NO_DEFENSE, Naming
from fedsim.report.summaries import mean_controls
from fedsim.verdicts.scores import Scored, rated_by, scored

MOST_LINES = 40
"""Lines of clients in one plot; more would only hide one another."""


def are_many(records: Sequence[Record]) -> bool:
    """Return whether attempts are on more clients than one plot shows line by line."""
    return len({record.client for record in records}) > MOST_LINES


class _Point(NamedTuple):
    client: int
    round: int
    value: float | None


def leakage(records: Sequence[Record], metric: str, naming: Naming) -> bytes:
    """Return one attack over rounds: a line per client, colored by its defenses.

    For more clients than `MOST_LINES` it is a line per set of defenses, their median, within the range of all of them.
    Images are drawn by skill, so that zero is a blind guess. Labels and features are drawn by value, beside the best blind
    control on average over the clients: on a small batch a single blind label guess is all luck.

    Args:
        records: all attempts of the attack.
        metric: name of the metric.
        naming: names of the run's defenses.
    """
    written, chosen = scale(metric), scored(records, metric)
    clients = {
        client: place
        for place, client in enumerate(
            sorted({record.client for record in naming.records if record.client is not None})
        )
    }
    by_set: dict[str, list[_Point]] = {defenses: [] for defenses in naming.sets}
    by_skill = written.kind is IMAGES
    for one in chosen:
        if isinstance(one.record, Record):
            point = _Point(one.record.client, one.record.round, one.skill if by_skill else one.value)
            by_set[naming.defenses(one.record)].append(point)

    def said(value: float) -> str:
        return f"{written.write(value, by_skill)}{' beyond blind' if by_skill else ''}"

    def draw(figure: Figure) -> Told:
        axes = figure.add_subplot()
        told: dict[str, list[str]] = {}
        if by_skill:
            _draw_thresholds(axes, written)
        else:
            _draw_control(axes, chosen, metric)
        for position, (defenses, points) in enumerate(by_set.items()):
            if are_many(records):
                told |= _draw_range(axes, points, position, _carried(defenses), said)
            else:
                told |= _draw_clients(axes, points, position, _carried(defenses), clients, said)
        unit = f" ({written.unit.strip()})" if written.unit else ""
        is_lower = not by_skill and any(one.score.worse == "lower" for one in chosen)
        meaning = " beyond blind" if by_skill else ", lower leaks more" if is_lower else ""
        axes.set_ylabel(f"{written.title}{meaning}{unit}")
        rounds_axis(axes)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return told

    return svg(draw, 5.4, 3.9)


def _carried(defenses: str) -> str:
    return "no defense" if defenses == NO_DEFENSE else defenses


def _draw_thresholds(axes: Axes, written: Scale) -> None:
    axes.axhline(0, color="#555555", linewidth=1.2, label="best blind control")
    if written.partial is not None:
        label = f"leaks from {written.write(written.leaks, True)}"
        axes.axhline(written.leaks, color="#555555", linewidth=1, linestyle=(0, (2, 3)), label=label)


def _draw_control(axes: Axes, chosen: Sequence[Scored], metric: str) -> None:
    blind: dict[int, float] = {}
    by_round: dict[int, list[Scored]] = {}
    for one in chosen:
        by_round.setdefault(one.attempt.round, []).append(one)
    for round, own in sorted(by_round.items()):
        means = {name: {metric: value} for name, value in mean_controls(own, metric).items()}
        best = rated_by(metric, means, own[0].score.worse)
        if best is not None:
            blind[round] = best.value
    # One round makes no line.
    axes.plot(
        list(blind),
        list(blind.values()),
        color="#777777",
        linewidth=5,
        marker="_" if len(blind) == 1 else None,
        markersize=26,
        markeredgewidth=5,
        alpha=0.5,
        label="best blind control, mean",
    )


def _draw_clients(
    axes: Axes,
    points: Sequence[_Point],
    position: int,
    label: str,
    clients: Mapping[int, int],
    said: Callable[[float], str],
) -> dict[str, list[str]]:
    own: dict[int, list[_Point]] = {}
    told: dict[str, list[str]] = {}
    for point in points:
        own.setdefault(point.client, []).append(point)
    for number, client in enumerate(sorted(own)):
        # Clients stand side by side within a round, so that equal values do not hide one another.
        shift = 0.3 * ((clients[client] + 0.5) / len(clients) - 0.5)
        drawn = sorted((round, value) for _, round, value in own[client] if value is not None)
        axes.plot(
            [round + shift for round, _ in drawn],
            [value for _, value in drawn],
            color=COLORS[position % len(COLORS)],
            linestyle=LINES[position % len(LINES)],
            marker=MARKERS[position % len(MARKERS)],
            label=None if number else label,
            gid=f"told-{position}-{client}",
        )
        told[f"told-{position}-{client}"] = [
            f"Client {client}, {label}, round {round}: {said(value)}" for round, value in drawn
        ]
    return told


def _draw_range(
    axes: Axes, points: Sequence[_Point], position: int, label: str, said: Callable[[float], str]
) -> dict[str, list[str]]:
    """Draw the median of several clients round by round, within the range of all of them."""
    by_round: dict[int, list[float]] = {}
    for _, round, value in points:
        if value is not None:
            by_round.setdefault(round, []).append(value)
    if not by_round:
        return {}
    rounds, style = sorted(by_round), position % len(COLORS)
    low, middle, high = ([of(by_round[round]) for round in rounds] for of in (min, statistics.median, max))
    axes.fill_between(rounds, low, high, color=COLORS[style], alpha=0.2, linewidth=0)
    axes.plot(
        rounds,
        middle,
        color=COLORS[style],
        linestyle=LINES[position % len(LINES)],
        marker=MARKERS[position % len(MARKERS)],
        label=f"{label}: median and range",
        gid=f"told-{position}",
    )
    return {
        f"told-{position}": [
            f"{label}, round {round}: median {said(of)} of {len(by_round[round])} clients, from {said(least)} to {said(most)}"
            for round, least, of, most in zip(rounds, low, middle, high, strict=True)
        ]
    }


def trajectory(records: Sequence[Record], naming: Naming) -> bytes:
    """Return loss (left, dotted) and PSNR (right) of one attack in one round against iteration, a line per client.

    Args:
        records: those of the attack and round that have a trajectory.
        naming: names of the run's defenses.
    """
    trajectories = [(record, record.trajectory) for record in records if record.trajectory is not None]
    sets = naming.sets
    controls = [trajectory.control.value for _, trajectory in trajectories if trajectory.control is not None]

    def draw(figure: Figure) -> None:
        left = figure.add_subplot()
        right = left.twinx()
        named = set[str]()
        for record, trajectory in trajectories:
            defenses = naming.defenses(record)
            color = COLORS[sets.index(defenses) % len(COLORS)]
            label = None if defenses in named else f"PSNR, {_carried(defenses)}"
            named.add(defenses)
            losses = [math.nan if loss is None else loss for loss in trajectory.losses]
            left.plot(trajectory.steps, losses, color=color, linestyle=":", marker=_lone(trajectory.steps, "x"))
            right.plot(trajectory.steps, trajectory.psnr, color=color, marker=_lone(trajectory.steps, "o"), label=label)
        left.plot([], [], color="#555555", linestyle=":", label="loss")
        if controls:
            blind = math.fsum(controls) / len(controls)
            right.axhline(blind, color="#555555", linestyle="--", label="best blind control, mean")
        # A logarithm leaves out zeros as well; losses below zero have none at all.
        known = [loss for _, trajectory in trajectories for loss in trajectory.losses if loss]
        if known and min(known) > 0:
            left.set_yscale("log", nonpositive="mask")
            left.yaxis.set_major_formatter(LogFormatter())
            left.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        left.set_ylabel("Loss")
        right.set_ylabel("PSNR (dB), drawn afterwards")
        right.spines["right"].set_visible(True)
        right.grid(False)
        left.set_xlabel("Iteration")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)

    return svg(draw, 5.4, 3.9)


def _lone(steps: Sequence[int], marker: str) -> str | None:
    """Return a marker where there is one point alone, which makes no line."""
    return marker if len(steps) == 1 else None


def utility(rounds: Sequence[Round]) -> bytes:
    """Return accuracy and loss of the global model over rounds, side by side."""

    def draw(figure: Figure) -> Told:
        told = {}
        for axes, name, color in zip(figure.subplots(1, 2), ("accuracy", "loss"), ("#0072B2", "#333333"), strict=True):
            points = [(line.round, getattr(line, name)) for line in rounds if getattr(line, name) is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o", gid=f"told-{name}")
            told[f"told-{name}"] = [f"Round {round}: {name} {value:.3f}" for round, value in points]
            axes.set_ylabel(f"Test {name}")
            rounds_axis(axes)
            if name == "accuracy":
                axes.set_ylim(0, 1)
        return told

    return svg(draw, 6.4, 2.6)


class Interval(NamedTuple):
    """A value, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class IntervalLine(NamedTuple):
    """A line of a plot: its name in the legend, and place -> value."""

    label: str
    points: Mapping[float, Interval]


def with_intervals(lines: Sequence[IntervalLine], across: str, up: str) -> bytes:
    """Return values with their intervals as bars, a line each.

    Args:
        lines: in the order of the legend.
        across: what the horizontal axis is; `Round` makes it one of rounds.
        up: what the vertical axis is.
    """

    def draw(figure: Figure) -> Told:
        axes, told = figure.add_subplot(), {}
        for position, line in enumerate(lines):
            places = sorted(line.points)
            scores = [line.points[place] for place in places]
            style: dict[str, Any] = {"color": COLORS[position % len(COLORS)]}
            for place, score in zip(places, scores, strict=True):
                if score.low is not None and score.high is not None:
                    axes.plot([place, place], [score.low, score.high], linewidth=1, **style)
            axes.plot(
                places,
                [score.value for score in scores],
                linestyle=LINES[position % len(LINES)],
                marker=MARKERS[position % len(MARKERS)],
                label=line.label,
                gid=f"told-{position}",
                **style,
            )
            told[f"told-{position}"] = [
                f"{line.label}, {across} {place:.3g}: {score.value:.3f}"
                + (f", 95% from {score.low:.3f} to {score.high:.3f}" if score.low is not None else "")
                for place, score in zip(places, scores, strict=True)
            ]
        if all(0 <= score.value <= 1 for line in lines for score in line.points.values()):
            axes.set_ylim(-0.02, 1.02)
        if across == "Round":
            rounds_axis(axes)
        else:
            axes.set_xlabel(f"{across[:1].upper()}{across[1:]}")
        axes.set_ylabel(f"{up[:1].upper()}{up[1:]}")
        figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)
        return told

    return svg(draw, 5.4, 3.9)
