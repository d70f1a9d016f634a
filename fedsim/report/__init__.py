"""The report: a pure function of a run folder. `render` writes report.html, report.md, tables and a figure."""

from __future__ import annotations

from pathlib import Path

__all__ = ["render"]


def render(folder: Path) -> Path:
    """Write the report of a run into its folder; see `fedsim.report.rendering.render`."""
    # The plots take a second to import, and every process that judges records imports this package.
    from fedsim.report import rendering

    return rendering.render(folder)
