"""From a run folder to report.html, report.md, tables and a figure; no clock, one fixed seed for the intervals."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, summary, tables
from fedsim.report.analysis import Analysis
from fedsim.report.figure import overview
from fedsim.report.view import context

_TEMPLATES = Path(__file__).parent / "templates"
_LONG_TABLE = 8  # rows, beyond which a table has a filter
_DENSE_TABLE = 9  # columns, beyond which a table is printed in small type on landscape pages
_PACKED_TABLE = 15  # columns, beyond which words break where they must


def render(folder: Path) -> Path:
    """Write the report of a run into its folder, summary, tables and a figure too; returns the path of report.html.

    The same folder gives the same bytes. Whatever is missing or damaged is said in the report.

    Args:
        folder: a run folder, finished or not.

    Raises:
        RunFolderError: no run folder, one of a schema that this version does not know, or one in which a part of the report
            would have to be written through a link.
    """
    analysis = Analysis(reading.read(folder))
    values = context(analysis)
    page = folder / "report.html"
    write = RunFolder(folder).write
    write(folder / "report.md", _markdown().get_template("report.md.j2").render(values))
    write(folder / "summary.json", summary.as_json(analysis))
    for name, content in tables.csv_files(analysis).items():
        write(folder / "tables" / name, content)
    picture = overview(values["displays"])
    if picture is not None:
        write(folder / "figures" / "overview.png", picture)
    write(page, html().get_template("report.html.j2").render(values, contents=[]))
    return page


@functools.cache
def html(*more: Path) -> jinja2.Environment:
    """Return the environment of pages; templates come from these folders too, and may include those of the report.

    A page is rendered with a list `contents`, which its sections fill. It loads nothing, and runs the one script that it holds:
    the policy names its digest, so that nothing that a run folder brings along can run.
    """
    environment = jinja2.Environment(autoescape=True, **_options(more))
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "script": Markup(script),
        "policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        "LONG_TABLE": _LONG_TABLE,
        "DENSE_TABLE": _DENSE_TABLE,
        "PACKED_TABLE": _PACKED_TABLE,
    }
    return environment


@functools.cache
def _markdown() -> jinja2.Environment:
    # Autoescape makes macros return Markup, which `finalize` leaves alone; everything else is escaped for Markdown.
    environment = jinja2.Environment(autoescape=True, finalize=_finalized, **_options())
    environment.filters["fenced"] = _fenced
    return environment


def _options(more: tuple[Path, ...] = ()) -> dict[str, Any]:
    return {
        "loader": jinja2.FileSystemLoader([*more, _TEMPLATES]),
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }


def _finalized(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(_escaped(str(value)))


def _escaped(text: str) -> str:
    """Return text that GitHub's Markdown shows as it is, inside a table cell too."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;")
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", text)
    # An underscore between letters is no emphasis, and names are full of them.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|^#", lambda found: f"\\{found.group()}", text)


def _fenced(text: str, language: str) -> Markup:
    """Return a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * (max([2, *map(len, re.findall("`+", text))]) + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")
