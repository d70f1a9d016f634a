"""The index of phases: a small page that sets them side by side and links their reports; a pure function of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim.metrics.ratings import scale
from fedsim.phases.folder import Entry, PhasesFolder
from fedsim.recording.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"


def render(folder: PhasesFolder) -> Path:
    """Write index.html and return its path; the reports of the phases are made by themselves.

    Raises:
        RunFolderError: the manifest is damaged, or a run folder is of a schema that this version does not know.
    """
    # The plots take a second to import.
    from fedsim.report.rendering import html

    manifest = folder.read()
    values = {
        "title": f"Phases: {manifest.name}",
        "phases": [_phase(folder, entry) for entry in manifest.phases],
    }
    page = folder.path / "index.html"
    write_atomically(page, html(_TEMPLATES).get_template("phases.html.j2").render(values, contents=[]), folder.path)
    return page


def _phase(folder: PhasesFolder, entry: Entry) -> dict[str, Any]:
    from fedsim.report import reading
    from fedsim.report.analysis import Analysis

    shown: dict[str, Any] = {"name": entry.name, "status": entry.status, "link": None, "headline": None}
    if not folder.has_begun(entry):
        return {**shown, "status": "not begun", "rounds": "-", "accuracy": "-", "verdict": None, "worst": "-"}
    analysis = Analysis(reading.read(folder.run(entry)))
    rounds, planned = analysis.run.rounds, analysis.run.planned_rounds
    done = max((line.round for line in rounds), default=0)
    accuracy = rounds[-1].accuracy if rounds else None
    has_report = (folder.run(entry) / "report.html").is_file()
    return {
        **shown,
        "link": f"{quote(entry.folder)}/report.html" if has_report else None,
        "headline": analysis.headline,
        "rounds": f"{done} of {planned}",
        "accuracy": "-" if accuracy is None else f"{accuracy:.3f}",
        "verdict": analysis.verdict,
        "worst": _worst(analysis),
    }


def _worst(analysis: Any) -> str:
    """Return what leaks most: the finding that is furthest beyond its best blind control."""
    from fedsim.report.overview import severity

    if not analysis.entries:
        return "no attack has looked"
    leaking = [
        line for line in analysis.entries if line.verdict in ("leaks", "partial") and line.judge.mean is not None
    ]
    if not leaking:
        return "none found"
    found = max(leaking, key=lambda line: severity(line.judge))
    metric = scale(found.judge.metric)
    value = f"{metric.title} {metric.write(found.judge.mean)}"
    return f"{found.kind} of client {found.client} by {found.summary.attack}: {value}"
