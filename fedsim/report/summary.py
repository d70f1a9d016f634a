"""The result of a run for programs: summary.json, and the question whether it is bad enough to fail a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedsim.report import mechanisms, reading
from fedsim.report.analysis import Analysis
from fedsim.report.overview import Entry
from fedsim.verdicts.judge import CORRECTION, ORDER, Verdict
from fedsim.verdicts.separation import of_run
from fedsim.verdicts.several import ViewEntry

SCHEMA = 1


def of(analysis: Analysis) -> dict[str, Any]:
    """Return the result of a run as plain data.

    README documents the fields. Values are means over all attempts of a line, except of a round and its image that decide.
    """
    run, lines = analysis.run, analysis.entries
    separated = of_run(run)
    return {
        "schema": SCHEMA,
        "name": run.name,
        "run": next((record.run for record in (*run.records, *run.views)), None),
        "headline": analysis.headline,
        "verdict": analysis.verdict,
        "correction": CORRECTION,
        "clients": {
            str(client): {"verdict": found.verdict, "kinds": dict(found.kinds)}
            for client, found in analysis.client_verdicts.items()
        },
        "attacks": [_line(line) for line in lines],
        **({"views": [_view(entry) for entry in analysis.views]} if analysis.views else {}),
        **({"separation": {str(client): round for client, round in separated.items()}} if separated else {}),
        **({"claims": mechanisms.rows(run.mechanisms)} if run.mechanisms else {}),
    }


def _line(line: Entry) -> dict[str, Any]:
    found = line.judge
    peak = found.peak
    return {
        "client": line.client,
        "defenses": found.defenses,
        "attack": found.attack,
        "is_control": found.is_control,
        "kind": line.kind,
        "verdict": line.verdict,
        "reason": line.reason or None,
        "metric": found.metric,
        "value": found.mean,
        "control": None if found.best is None else found.best._asdict(),
        "floor": None if found.floor is None else found.floor._asdict(),
        "skill": found.skill,
        "round": None if peak is None else peak.round,
        "round_value": None if peak is None else peak.value,
        "picture": None if peak is None or peak.example is None else peak.example.model_dump(),
        "attempts": found.attempts,
        "failed": found.failed,
        "refused": found.refused,
    }


def _view(entry: ViewEntry) -> dict[str, Any]:
    attempts, failed, refused = entry.attempts
    return {
        "attack": entry.attack,
        "is_control": entry.is_control,
        "scope": entry.scope,
        "is_sum": entry.is_sum,
        "kind": entry.kind,
        "verdict": entry.verdict,
        "reason": entry.reason or None,
        "metric": entry.metric,
        "value": entry.mean,
        "control": None if entry.best is None else entry.best._asdict(),
        "defenses": entry.defenses,
        "place": entry.place,
        "place_value": None if entry.decider is None else entry.peak[0],
        "place_control": None if entry.decider is None else entry.peak[1],
        "leaking": [record.view.model_dump(mode="json") for record in entry.leaking] if entry.is_leak else [],
        "attempts": attempts,
        "failed": failed,
        "refused": refused,
    }


def as_json(analysis: Analysis) -> str:
    """Return the text of summary.json."""
    return json.dumps(of(analysis), indent=2, allow_nan=False) + "\n"


def verdict_of(folder: Path) -> Verdict:
    """Return the verdict of a whole run from its folder.

    Raises:
        RunFolderError: no run folder, or one of a schema that this version does not know.
    """
    return Analysis(reading.read(folder)).verdict


def is_failure(verdict: Verdict, fail_on: Verdict) -> bool:
    """Return whether a verdict is as bad as the one to fail on, or worse."""
    return ORDER.index(verdict) >= ORDER.index(fail_on)
