"""A run as flat tables: the CSV files beside the report, and rows for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsim.recording.records import Attempted, Record, Round, ViewRecord
from fedsim.report import evaluations, mechanisms
from fedsim.report.analysis import Analysis
from fedsim.report.naming import Naming
from fedsim.report.summaries import Summary
from fedsim.verdicts.scores import scored

Row = dict[str, Any]

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also in full width


def record_rows(records: Sequence[Attempted], naming: Naming) -> list[Row]:
    """Return one row per attempt and metric; an attempt without a score has one row, its metric None."""
    return [
        {
            "run": record.run,
            "round": record.round,
            "client": record.place if isinstance(record, ViewRecord) else record.client,
            "defenses": naming.defenses(record),
            "attack": naming.attack(record),
            "version": record.attack.version,
            "params": record.attack.aware_key[1],
            "variant": record.attack.variant,
            **_budget_columns(record),
            "status": record.status,
            **_score_columns(record, metric),
            "cautions": len(record.cautions),
            "seconds": record.seconds,
            "seed": record.seed,
            "message": record.message,
        }
        for record in records
        for metric in list[str | None](record.scores) or [None]
    ]


def _budget_columns(record: Attempted) -> Row:
    """Return what the client behind an attempt claims over its rounds so far; empty where it claims nothing."""
    budget = record.budget
    return {
        "epsilon": budget.epsilon if budget else None,
        "delta": budget.delta if budget else None,
        "neighbors": budget.neighbors if budget else None,
    }


def _score_columns(record: Attempted, metric: str | None) -> Row:
    score = record.scores[metric] if metric else None
    found = next(iter(scored([record], metric)), None) if metric else None
    return {
        "metric": metric,
        "value": score.value if score else None,
        "worse": score.worse if score else None,
        "examples": len(score.examples) if score else 0,
        "best_control": found.best.name if found and found.best else None,
        "control_value": found.best.value if found and found.best else None,
        "skill": found.skill if found else None,
        "floor": found.floor.name if found and found.floor else None,
        "floor_value": found.floor.value if found and found.floor else None,
        "unavailable": score.unavailable if score else None,
    }


def summary_rows(summaries: Iterable[Summary]) -> list[Row]:
    """Return summaries as flat rows."""
    return [
        {
            "clients": " ".join(str(client) for client in summary.clients),
            "defenses": summary.defenses,
            "attack": summary.attack,
            "metric": summary.metric,
            "attempts": summary.attempts,
            "failed": summary.failed,
            "refused": summary.refused,
            "examples": summary.examples,
            "mean": summary.mean,
            "low": summary.spread.low if summary.spread else None,
            "high": summary.spread.high if summary.spread else None,
            "best_control": summary.best.name if summary.best else None,
            "control_value": summary.best.value if summary.best else None,
            "skill": summary.skill,
            "peak_round": summary.peak.round if summary.peak else None,
            "peak_client": summary.peak.client if summary.peak else None,
            "peak_value": summary.peak.value if summary.peak else None,
            "peak_skill": summary.peak.skill if summary.peak else None,
            "floor": summary.floor.name if summary.floor else None,
            "floor_value": summary.floor.value if summary.floor else None,
            "verdict": summary.verdict,
            "reason": summary.reason,
            "unavailable": summary.unavailable,
        }
        for summary in summaries
    ]


def round_rows(rounds: Iterable[Round]) -> list[Row]:
    """Return one row per round."""
    return [
        {
            "round": line.round,
            "accuracy": line.accuracy,
            "loss": line.loss,
            "participants": " ".join(str(client) for client in line.participants),
            "failed": " ".join(str(client) for client in line.failed),
            "seconds": line.seconds,
        }
        for line in rounds
    ]


def budget_rows(rounds: Iterable[Round]) -> list[Row]:
    """Return one row per round and client that states a privacy budget; epsilon counts all rounds so far."""
    return [
        {"round": line.round, "client": client, "epsilon": b.epsilon, "delta": b.delta, "neighbors": b.neighbors}
        for line in rounds
        for client, b in sorted(line.epsilon.items())
    ]


def logged_rows(rounds: Iterable[Round]) -> list[Row]:
    """Return one row per round, client and number that a defense logged of the client's training."""
    return [
        {"round": line.round, "client": client, "name": name, "value": value}
        for line in rounds
        for client, logged in sorted(line.logged.items())
        for name, value in logged.items()
    ]


def trajectory_rows(records: Sequence[Record], naming: Naming) -> list[Row]:
    """Return one row per frame that an attack saved on its way."""
    return [
        {
            "attack": naming.attack(record),
            "round": record.round,
            "client": record.client,
            "step": step,
            "loss": loss,
            "psnr": psnr,
        }
        for record in records
        if (trajectory := record.trajectory) is not None
        for step, loss, psnr in zip(trajectory.steps, trajectory.losses, trajectory.psnr, strict=True)
    ]


def view_rows(records: Sequence[ViewRecord]) -> list[Row]:
    """Return one row per attempt on several updates and metric; an attempt without a score has one row, its metric None."""
    return [
        {
            "attack": record.attack.title,
            "scope": record.view.scope,
            "rounds": " ".join(map(str, record.view.rounds)),
            "clients": " ".join(map(str, record.view.clients)),
            "is_sum": record.view.is_sum,
            **_budget_columns(record),
            "status": record.status,
            "metric": metric,
            "value": None if metric is None else record.scores[metric].value,
            **{f"control_{name}": record.controls.get(name, {}).get(metric or "") for name in names},
            "seconds": record.seconds,
            "message": record.message,
        }
        for names in [list(dict.fromkeys(name for record in records for name in record.controls))]
        for record in records
        for metric in list[str | None](record.scores) or [None]
    ]


def csv_files(analysis: Analysis) -> dict[str, str]:
    """Return the tables of a run by file name; a table without rows is left out."""
    run, naming = analysis.run, analysis.naming
    tables = {
        "records.csv": record_rows(run.records, naming),
        "by_client.csv": summary_rows(analysis.by_client),
        "by_defense.csv": summary_rows(analysis.by_defense),
        "rounds.csv": round_rows(run.rounds),
        "privacy.csv": budget_rows(run.rounds),
        "logged.csv": logged_rows(run.rounds),
        "films.csv": trajectory_rows(run.records, naming),
        "views.csv": view_rows(run.views),
        "evaluations.csv": evaluations.rows(run.evaluations),
        "claims.csv": mechanisms.rows(run.mechanisms),
    }
    return {name: as_csv(rows) for name, rows in tables.items() if rows}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns as CSV; nothing where there are none."""
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Return a value as a spreadsheet shows it: text that it would take for a formula begins with an apostrophe."""
    if isinstance(value, float):
        return f"{value:.10g}"
    if not isinstance(value, str):
        return value
    # The writer puts a line feed in quotes, and a carriage return not: it would begin a row.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
