"""Curves over rounds and over iterations as SVG; the same numbers give the same bytes with the same matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from fedsim.metrics.ratings import Scale, scale
from fedsim.report.evidence import Record, Round
from fedsim.report.scores import Scored, rated_by, scored
from fedsim.report.summaries import NO_DEFENSE, Naming, mean_controls

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
    sets = _sets(records, naming)
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
                if isinstance(one.record, Record) and naming.defenses(one.record) == defenses
            ]
            _draw_clients(axes, points, position, _carried(defenses), clients)
        unit = f" ({written.unit.strip()})" if written.unit else ""
        is_lower = not by_skill and any(one.score.worse == "lower" for one in chosen)
        meaning = " beyond blind" if by_skill else ", lower leaks more" if is_lower else ""
        axes.set_ylabel(f"{written.title}{meaning}{unit}")
        _rounds_axis(axes)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)

    return _svg(draw, 5.4, 3.9)


def _sets(records: Sequence[Record], naming: Naming) -> list[str]:
    """Return the sets of defenses in the order of their colors, which is one for all plots of a run."""
    return sorted({naming.defenses(record) for record in records}, key=lambda name: (name != NO_DEFENSE, name))


def _carried(defenses: str) -> str:
    return "no defense" if defenses == NO_DEFENSE else defenses


def _draw_thresholds(axes: Axes, written: Scale) -> None:
    axes.axhline(0, color="#555555", linewidth=1.2, label="best blind control")
    if written.partial is not None:
        label = f"leaks from {written.write(written.leaks, True)}"
        axes.axhline(written.leaks, color="#555555", linewidth=1, linestyle=(0, (2, 3)), label=label)


def _draw_control(axes: Axes, chosen: Sequence[Scored], metric: str) -> None:
    blind: dict[int, float] = {}
    for round in sorted({one.attempt.round for one in chosen}):
        own = [one for one in chosen if one.attempt.round == round]
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


def film(records: Sequence[Record], naming: Naming) -> bytes:
    """Return loss (left, dotted) and PSNR (right) of one attack in one round against iteration, a line per client.

    Args:
        records: those of the attack and round that have a film.
        naming: names of the run's defenses.
    """
    films = [(record, record.film) for record in records if record.film is not None]
    sets = _sets(naming.records, naming)
    controls = [film.control.value for _, film in films if film.control is not None]

    def draw(figure: Figure) -> None:
        left = figure.add_subplot()
        right = left.twinx()
        named = set[str]()
        for record, film in films:
            defenses = naming.defenses(record)
            color = _COLORS[sets.index(defenses) % len(_COLORS)]
            label = None if defenses in named else f"PSNR, {_carried(defenses)}"
            named.add(defenses)
            losses = [math.nan if loss is None else loss for loss in film.losses]
            left.plot(film.steps, losses, color=color, linestyle=":", marker=_lone(film.steps, "x"))
            right.plot(film.steps, film.psnr, color=color, marker=_lone(film.steps, "o"), label=label)
        left.plot([], [], color="#555555", linestyle=":", label="loss")
        if controls:
            blind = math.fsum(controls) / len(controls)
            right.axhline(blind, color="#555555", linestyle="--", label="best blind control, mean")
        # A logarithm leaves out zeros as well; losses below zero have none at all.
        known = [loss for _, film in films for loss in film.losses if loss]
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

    return _svg(draw, 5.4, 3.9)


def _lone(steps: Sequence[int], marker: str) -> str | None:
    """Return a marker where there is one point alone, which makes no line."""
    return marker if len(steps) == 1 else None


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
