"""Plots as parts of a page: SVG inside the HTML, so that points can be asked for their values and colors follow the theme."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from fedsim.report.drawing import LINK, NAMESPACE, parsed

_PARTS = ("path", "g", "use", "defs", "clipPath", "rect", "title")
_OF_THE_PAGE = {
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#555555": "var(--soft)",
    "#e4e4e4": "var(--line)",
    "#ffffff": "var(--page)",
}  # colors that carry no meaning, and what they are in a page, light or dark
_COLOR = re.compile("|".join(_OF_THE_PAGE))
_REFERENCE = re.compile(r"#([\w.-]+)")


@dataclass(frozen=True)
class Plot:
    """A figure: its caption, what it shows in words, and the drawing as an SVG element."""

    caption: str
    alt: str
    drawing: Markup


def plot(caption: str, alt: str, svg: bytes) -> Plot:
    """Return a drawing of matplotlib as a figure of a page; the same bytes give the same element.

    Names inside the SVG get a prefix, since all plots of a page share one space of names. Elements that a plot has no use for,
    such as a script, are left out.
    """
    root = parsed(svg)
    parts = list(root.iter())
    # A color such as #555555 looks like a reference as well, and names nothing.
    used = {name for part in parts for value in part.attrib.values() for name in _REFERENCE.findall(value)}
    prefix = f"plot-{hashlib.sha256(svg + caption.encode()).hexdigest()[:10]}-"
    for part in parts:
        part.tag = part.tag.removeprefix(f"{{{NAMESPACE}}}") if isinstance(part.tag, str) else "comment"
        attributes = {name.replace(f"{{{LINK}}}href", "href"): value for name, value in part.attrib.items()}
        part.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    part.set("id", prefix + value)
            elif name == "style":
                part.set(name, _COLOR.sub(lambda found: _OF_THE_PAGE[found.group()], _renamed(value, prefix)))
            else:
                part.set(name, _renamed(value, prefix))
    for part in parts:
        for inner in list(part):
            if inner.tag not in _PARTS:
                part.remove(inner)
    # What matplotlib says of joints and ends of lines in a style of its own, which would be one of the whole page.
    inherited = "fill: currentColor; stroke-linejoin: round; stroke-linecap: butt"
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt, "style": inherited}
    for part in root.iter():
        part.tail = None
    return Plot(caption, alt, Markup(ElementTree.tostring(root, encoding="unicode")))


def _renamed(value: str, prefix: str) -> str:
    """Return an attribute whose references, whole or inside `url(...)`, have the prefix."""
    if value.startswith("#"):
        return f"#{prefix}{value[1:]}"
    return value.replace("url(#", f"url(#{prefix}")
