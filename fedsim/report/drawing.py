"""How plots look: palette, style, and SVG whose bytes are the same for the same numbers with the same matplotlib."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart with any color vision; line styles and markers say the same again.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

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


Told = Mapping[str, Sequence[str]]
"""What a plot says of its points: the gid of a line -> one text for each of its markers, in their order."""

NAMESPACE = "http://www.w3.org/2000/svg"
LINK = "http://www.w3.org/1999/xlink"

_NO_XML = re.compile(
    r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]"
)  # names in a run folder may hold anything
_MOST_TOLD = 4000  # points of one plot that say their value; beyond them a pointer could not tell them apart


def svg(draw: Callable[[Figure], Told | None], width: float, height: float) -> bytes:
    """Return what a function draws, of a size in inches.

    Args:
        draw: draws on the figure, and returns what the points say when a pointer rests on them.
        width: in inches.
        height: in inches.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(), any_characters():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        told = draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _with_titles(buffer.getvalue(), told) if told else buffer.getvalue()


@contextlib.contextmanager
def any_characters() -> Iterator[None]:
    """Draw names in any writing: one whose characters the font lacks has boxes in their place, and is no fault."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        yield


def parsed(drawn: bytes) -> ElementTree.Element:
    """Return the elements of an SVG, without characters of names that XML has no place for and matplotlib takes over."""
    return ElementTree.fromstring(_NO_XML.sub("", drawn.decode("utf-8", "ignore")).encode())


def _with_titles(drawn: bytes, told: Told) -> bytes:
    """Return an SVG whose markers say their values, which browsers show without a script."""
    if sum(map(len, told.values())) > _MOST_TOLD:
        return drawn
    ElementTree.register_namespace("", NAMESPACE)
    ElementTree.register_namespace("xlink", LINK)
    root = parsed(drawn)
    for group in root.iter(f"{{{NAMESPACE}}}g"):
        texts = told.get(group.get("id", ""), ())
        markers = list(group.iter(f"{{{NAMESPACE}}}use"))
        # A point outside of the axes has no marker, and then nothing says which one is missing.
        if len(texts) == len(markers):
            for marker, text in zip(markers, texts, strict=True):
                ElementTree.SubElement(marker, f"{{{NAMESPACE}}}title").text = _NO_XML.sub("", text)
    titled: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return titled


def rounds_axis(axes: Axes) -> None:
    """Make the horizontal axis one of rounds."""
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
