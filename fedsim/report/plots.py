"""Curves over rounds as SVG; the same numbers give the same bytes with the same matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report.evidence import Record, Round
from fedsim.report.ratings import Scale, scale
from fedsim.report.summaries import NO_DEFENSE, Naming, Scored, mean_controls, rated_by, scored

# Okabe and Ito's palette: told apart with any color vision; line styles and markers say the same again.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fedsim",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _rounds_axis(axes: Axes) -> None:
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def leakage(records: Sequence[Record], attack: str, metric: str) -> bytes:
    """Return one attack over rounds: a line per client, colored by its defenses.

    Pictures are drawn by skill, so that zero is a blind guess. Labels and features are drawn by value, beside the best blind
    control on average over the clients: on a small batch a single blind label guess is all luck.

    Args:
        records: all records of the run.
        attack: name of the attack, as `Naming` gives it.
        metric: name of the metric.
    """
    naming, written = Naming(records), scale(metric)
    chosen = scored([record for record in records if naming.attack(record) == attack], metric)
    sets = sorted({naming.defenses(record) for record in records}, key=lambda name: (name != NO_DEFENSE, name))
    clients = sorted({record.client for record in records})
    by_skill = written.recovers == "images"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if by_skill:
            _draw_thresholds(axes, written)
        else:
            _draw_control(axes, chosen, metric)
        for position, defenses in enumerate(sets):
            points = [
                (one.record.client, one.record.round, one.skill if by_skill else one.value)
                for one in chosen
                if naming.defenses(one.record) == defenses
            ]
            _draw_clients(axes, points, position, "no defense" if defenses == NO_DEFENSE else defenses, clients)
        unit = f" ({written.unit.strip()})" if written.unit else ""
        is_lower = not by_skill and any(one.score.worse == "lower" for one in chosen)
        meaning = " beyond blind" if by_skill else ", lower leaks more" if is_lower else ""
        axes.set_ylabel(f"{written.title}{meaning}{unit}")
        _rounds_axis(axes)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)

    return _svg(draw, 5.4, 3.9)


def _draw_thresholds(axes: Axes, written: Scale) -> None:
    axes.axhline(0, color="#555555", linewidth=1.2, label="best blind control")
    if written.partial is not None:
        label = f"leaks from {written.write(written.leaks, True)}"
        axes.axhline(written.leaks, color="#555555", linewidth=1, linestyle=(0, (2, 3)), label=label)


def _draw_control(axes: Axes, chosen: Sequence[Scored], metric: str) -> None:
    blind: dict[int, float] = {}
    for round in sorted({one.record.round for one in chosen}):
        own = [one for one in chosen if one.record.round == round]
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
    axes: Axes, points: Sequence[tuple[int, int, float | None]], position: int, label: str, clients: Sequence[int]
) -> None:
    own = sorted({client for client, _, _ in points})
    for client in own:
        # Clients stand side by side within a round, so that equal values do not hide one another.
        shift = 0.3 * ((clients.index(client) + 0.5) / len(clients) - 0.5)
        drawn = sorted((round, value) for c, round, value in points if c == client and value is not None)
        axes.plot(
            [round + shift for round, _ in drawn],
            [value for _, value in drawn],
            color=_COLORS[position % len(_COLORS)],
            linestyle=_LINES[position % len(_LINES)],
            marker=_MARKERS[position % len(_MARKERS)],
            label=label if client == own[0] else None,
        )


def utility(rounds: Sequence[Round]) -> bytes:
    """Return accuracy and loss of the global model over rounds, side by side."""

    def draw(figure: Figure) -> None:
        for axes, name, color in zip(figure.subplots(1, 2), ("accuracy", "loss"), ("#0072B2", "#333333"), strict=True):
            points = [(line.round, getattr(line, name)) for line in rounds if getattr(line, name) is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o")
            axes.set_ylabel(f"Test {name}")
            _rounds_axis(axes)
            if name == "accuracy":
                axes.set_ylim(0, 1)

    return _svg(draw, 6.4, 2.6)
