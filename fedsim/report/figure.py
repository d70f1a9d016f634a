"""One figure to publish: a column per client, the original on top, what each attack made of it below."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedsim.report.drawing import any_characters
from fedsim.report.gallery import Display, Strip
from fedsim.report.naming import NO_DEFENSE

_MOST_CLIENTS = 12
_INCHES = 1.25


def overview(found: Sequence[Display]) -> bytes | None:
    """Return a PNG of the first image of each client's first audited round; None when there are no images.

    Clients beyond the twelfth are left out; report.html shows them all.
    """
    columns = [display for display in found if display.panels and display.panels[0].strips][:_MOST_CLIENTS]
    if not columns:
        return None
    rows = list(dict.fromkeys(strip.title for display in columns for strip in display.panels[0].strips))
    figure = Figure(figsize=(_INCHES * len(columns) + 0.4, (_INCHES + 0.1) * len(rows) + 0.45), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for column, display in enumerate(columns):
        strips = {strip.title: strip for strip in display.panels[0].strips}
        for row, title in enumerate(rows):
            _draw(grid[row][column], strips.get(title))
        grid[0][column].set_title(f"client {display.client}\n{_defenses(display)}", fontsize=8, parse_math=False)
    for row, title in enumerate(rows):
        grid[row][0].set_ylabel(title, fontsize=8, parse_math=False)
    buffer = io.BytesIO()
    with any_characters():
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _defenses(display: Display) -> str:
    return "no defense" if display.defenses == NO_DEFENSE else display.defenses


def _draw(axes: Axes, strip: Strip | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if strip is None:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(strip.source.partition(",")[2]))).convert("RGB")
    first = picture.crop((0, 0, picture.height, picture.height))
    axes.imshow(np.asarray(first), interpolation="nearest" if strip.is_small else "antialiased")
    axes.set_xlabel(strip.score, fontsize=7)
