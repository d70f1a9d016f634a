"""The report: a pure function of a run folder. `render` writes report.html, report.md, tables and a figure."""

from fedsim.report.rendering import render

__all__ = ["render"]
