"""The report: a pure function of a run folder. `render` writes report.html, report.md and tables/*.csv into it."""

from fedsim.report.rendering import render

__all__ = ["render"]
