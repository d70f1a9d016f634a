"""Plots of a comparison as SVG: leakage against accuracy with the Pareto front, and leakage over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.comparing.choice import front
from fedsim.comparing.leaks import Attacker
from fedsim.comparing.settings import Setting
from fedsim.metrics.ratings import scale
from fedsim.report.drawing import COLORS, LINES, MARKERS, Told, rounds_axis, svg
from fedsim.verdicts.scores import scored

MOST_SETTINGS = 28
"""As many as colors and line styles tell apart in one plot."""

_LEGEND = 2  # columns


def drawn(settings: Sequence[Setting], attacker: Attacker) -> list[tuple[Setting, float, float]]:
    """Return the settings with accuracy and leakage: skill, so that zero is a blind guess and more is worse."""
    found = []
    for setting in settings[:MOST_SETTINGS]:
        row, accuracy = setting.rows.get(attacker), setting.accuracy.mean
        if row is not None and row.gained.mean is not None and accuracy is not None:
            found.append((setting, accuracy, row.gained.mean))
    return found


def is_conclusive(setting: Setting, attacker: Attacker) -> bool:
    """Return whether the leakage of a setting is known to be what was measured."""
    row = setting.rows.get(attacker)
    return row is not None and row.verdict != "inconclusive"


def pareto(settings: Sequence[Setting], attacker: Attacker) -> list[tuple[Setting, float, float]]:
    """Return the Pareto front of what is drawn; an inconclusive setting, which may leak more, is never on it."""
    known = [one for one in drawn(settings, attacker) if is_conclusive(one[0], attacker)]
    return [known[place] for place in front([(accuracy, leakage) for _, accuracy, leakage in known])]


def _style(position: int) -> tuple[str, str, str]:
    return COLORS[position % len(COLORS)], LINES[position // len(COLORS) % len(LINES)], MARKERS[position % len(MARKERS)]


def tradeoff(settings: Sequence[Setting], attacker: Attacker, metric: str) -> bytes:
    """Return leakage against accuracy: a mark per setting with its intervals over seeds, hollow where it is inconclusive.

    Args:
        settings: of one family.
        attacker: whose leakage is drawn.
        metric: which that is of.
    """
    positions = {setting.name: position for position, setting in enumerate(settings)}

    def draw(figure: Figure) -> Told:
        axes = figure.add_subplot()
        told = {}
        axes.axhline(0, color="#555555", linewidth=1.2)
        for setting, accuracy, leakage in drawn(settings, attacker):
            color, _, marker = _style(positions[setting.name])
            row = setting.rows[attacker]
            assert row is not None
            _draw_bars(axes, setting, accuracy, leakage, color, attacker)
            axes.plot(
                [accuracy],
                [leakage],
                color=color,
                marker=marker,
                markersize=7.5,
                linestyle="",
                markerfacecolor=color if is_conclusive(setting, attacker) else "white",
                markeredgewidth=1.5,
                label=setting.name,
                gid=f"told-{positions[setting.name]}",
            )
            doubt = "" if is_conclusive(setting, attacker) else ", inconclusive"
            said = f"{setting.name}: accuracy {accuracy:.3f}, {scale(metric).write(leakage, True)} beyond blind{doubt}"
            told[f"told-{positions[setting.name]}"] = [said]
        edge = pareto(settings, attacker)
        axes.plot(
            [accuracy for _, accuracy, _ in edge],
            [leakage for _, _, leakage in edge],
            color="#888888",
            linestyle="--",
            linewidth=1.2,
            zorder=1,
            label="Pareto front" if edge else None,
        )
        axes.set_xlabel("Test accuracy after the last round")
        axes.set_ylabel(_leakage(metric))
        axes.margins(0.08)
        figure.legend(loc="outside lower center", ncols=_LEGEND, fontsize=8.5)
        return told

    return svg(draw, 5.4, 3.9 + 0.09 * len(settings))


def _draw_bars(axes: Axes, setting: Setting, accuracy: float, leakage: float, color: str, attacker: Attacker) -> None:
    row = setting.rows[attacker]
    assert row is not None
    for spread, is_horizontal in ((setting.accuracy, True), (row.gained, False)):
        if spread.interval is None:
            continue
        low, high = spread.interval
        across, up = ([low, high], [leakage, leakage]) if is_horizontal else ([accuracy, accuracy], [low, high])
        axes.plot(across, up, color=color, linewidth=1, alpha=0.6, zorder=1)


def _leakage(metric: str) -> str:
    written = scale(metric)
    return f"{written.title} beyond blind{f' ({written.unit.strip()})' if written.unit else ''}"


def over_rounds(settings: Sequence[Setting], attacker: Attacker, metric: str) -> bytes:
    """Return leakage over rounds: a line per setting, of the group that leaks most, its mean over clients and seeds."""

    def draw(figure: Figure) -> Told:
        axes = figure.add_subplot()
        told = {}
        axes.axhline(0, color="#555555", linewidth=1.2, label="best blind control")
        written = scale(metric)
        if written.partial is not None and written.ceiling is None:
            label = f"leaks from {written.write(written.leaks, True)}"
            axes.axhline(written.leaks, color="#555555", linewidth=1, linestyle=(0, (2, 3)), label=label)
        for position, setting in enumerate(settings[:MOST_SETTINGS]):
            color, line, marker = _style(position)
            points = by_round(setting, attacker)
            if points:
                own = f"told-{position}"
                axes.plot(
                    [*points],
                    [*points.values()],
                    color=color,
                    linestyle=line,
                    marker=marker,
                    label=setting.name,
                    gid=own,
                )
                told[own] = [
                    f"{setting.name}, round {round}: {written.write(value, True)} beyond blind"
                    for round, value in points.items()
                ]
        axes.set_ylabel(_leakage(metric))
        rounds_axis(axes)
        figure.legend(loc="outside lower center", ncols=_LEGEND, fontsize=8.5)
        return told

    return svg(draw, 5.4, 3.9 + 0.09 * len(settings))


def by_round(setting: Setting, attacker: Attacker) -> dict[int, float]:
    """Return round -> mean skill of an attacker on the group that leaks most, each seed counting once."""
    row = setting.rows.get(attacker)
    if row is None or row.metric is None:
        return {}
    found: dict[int, list[float]] = {}
    for one in setting.runs:
        naming = one.analysis.naming
        own = [
            record
            for record in one.run.records
            if naming.attack(record) == attacker.attack and naming.defenses(record) == row.group
        ]
        of_seed: dict[int, list[float]] = {}
        for attempt in scored(own, row.metric):
            if attempt.skill is not None:
                of_seed.setdefault(attempt.attempt.round, []).append(attempt.skill)
        for round, values in of_seed.items():
            found.setdefault(round, []).append(math.fsum(values) / len(values))
    return {round: math.fsum(values) / len(values) for round, values in sorted(found.items())}
