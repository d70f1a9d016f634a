"""One audit record: a stored finding, scored against the truth and beside its controls.

`SCHEMA` is the version of a line of records.jsonl; README documents its fields.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim import attempt, environment, pictures
from fedsim.attempt import Attempt
from fedsim.exchange import Truth
from fedsim.metrics import scoring
from fedsim.metrics.matching import match
from fedsim.plan import Plan, PlannedAttack, PlannedDefense
from fedsim.recording import RunFolder, write_atomically
from fedsim.scenario import Scenario

SCHEMA = 1

Record = dict[str, Any]


@dataclass(frozen=True, order=True)
class Task:
    """One attempt of the audit; the order is that of the records.

    Args:
        round: server round.
        client: partition number.
        attack: index in the scenario.
    """

    round: int
    client: int
    attack: int


def run_id(scenario: Scenario) -> str:
    """Return the run's identity: the same scenario and seed give the same, whatever the engine or the processes."""
    content = scenario.resolved()
    del content["engine"], content["audit"]["processes"], content["attacks"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{scenario.name}-{digest[:8]}"


def assess(plan: Plan, folder: RunFolder, task: Task, partner: int | None) -> Record:
    """Return the record of one attempt, and write its picture strips.

    Args:
        plan: the run's plan.
        folder: the run; the findings of this task and of the partner's are there.
        task: which attempt.
        partner: client of the same round whose finding is the wrong-update control; None when nobody else was captured.
    """
    planned = plan.attacks[task.attack]
    tried = attempt.run(plan, folder, task.round, task.client, planned)
    record: Record = {
        "schema": SCHEMA,
        "run": run_id(plan.scenario),
        "round": task.round,
        "client": task.client,
        "attack": _cited(planned, attempt.identity(planned)),
        "defenses": [_cited(d, {"name": d.info.name, "params": d.params}) for d in plan.defenses_of(task.client)],
        "grants": list(plan.scenario.threat.grants),
        "status": tried.status,
        "scores": {},
        "controls": {},
        "cautions": [*tried.finding.cautions, *plan.cautions_of(task.client)],
        "trace": dict(tried.finding.trace),
        "seconds": tried.seconds,
        "seed": tried.seed,
        "artifacts": {
            "finding": folder.relative(attempt.finding_path(folder, task.round, task.client, planned)),
        },
    }
    if tried.message is not None:
        record["message"] = tried.message
    if tried.status == "found":
        if environment.origin(folder.path) == "simulated":
            _score(plan, folder, task, partner, planned, tried, record)
        else:
            record["cautions"].append("no truth: the run was observed, not simulated, so nothing can be scored")
    return record


def _cited(planned: PlannedAttack | PlannedDefense, named: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON-able name of a plug-in together with its paper, so that a report needs no plug-in installed."""
    plugin = planned.attack if isinstance(planned, PlannedAttack) else planned.defense
    return {**json.loads(json.dumps(named, default=str)), "citation": getattr(plugin, "citation", None)}


def _score(
    plan: Plan,
    folder: RunFolder,
    task: Task,
    partner: int | None,
    planned: PlannedAttack,
    tried: Attempt,
    record: Record,
) -> None:
    truth = plan.data.truth(task.client, task.round, plan.scenario.training)
    scores = scoring.score(plan.scenario.audit.metrics, tried.finding, truth)
    wrong = None
    if partner is not None:
        other = attempt.run(plan, folder, task.round, partner, planned)
        wrong = other.finding if other.status == "found" else None
    if wrong is None:
        record["cautions"].append("no wrong-update control: no other client's update of this round gave a finding")
    found, true = tried.finding.images, truth.images
    if found is not None and len(found) > len(true):
        record["cautions"].append(
            f"{len(found)} pictures were returned for {len(true)} originals; the best assignment counts, which flatters"
        )
    mean, labels = _auxiliary(plan)
    record["scores"] = {name: _plain(score) for name, score in scores.items()}
    record["controls"] = scoring.controls(list(scores), truth, mean, labels, wrong)
    _write_strips(folder, task, planned, truth, tried, record)


def _plain(score: scoring.Score) -> dict[str, Any]:
    if score.unavailable is not None:
        return {"value": None, "worse": score.worse, "unavailable": score.unavailable}
    return {"value": score.value, "per_example": list(score.per_example or ()), "worse": score.worse}


@functools.cache
def _auxiliary(plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the mean picture and the labels of the auxiliary pool; plans are few and live as long as the process."""
    pool = plan.data.pools.auxiliary
    samples = pool.read(range(len(pool)))
    return samples.images.mean(0), samples.labels


def _write_strips(
    folder: RunFolder, task: Task, planned: PlannedAttack, truth: Truth, tried: Attempt, record: Record
) -> None:
    originals = folder.artifact(task.round, task.client, "originals.png")
    write_atomically(originals, pictures.png_strip(truth.images))
    record["artifacts"]["originals"] = folder.relative(originals)
    found = tried.finding.images
    if found is None or len(found) == 0:
        return
    shown = torch.full_like(truth.images, 0.5)
    for position, index in enumerate(match(found, truth.images)):
        if index is not None:
            shown[position] = found[index]
    path = folder.artifact(task.round, task.client, f"{planned.slug}.png")
    write_atomically(path, pictures.png_strip(shown))
    record["artifacts"]["reconstructions"] = folder.relative(path)
