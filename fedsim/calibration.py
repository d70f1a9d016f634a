"""Whether an attack works at a round's weights at all: the same attack on unprotected updates that the auditor makes itself.

That an attack finds nothing in a client's update says something about the client only where the attack is known to work
without its defense. A calibration trains on pictures of the data set, drawn from all clients, with the round's global weights
and the clients' batch size, steps and optimizer, without any defense; it runs the attack with the same grants, and scores the
finding. It is one line of calibrations.jsonl per round and attack. No attack sees what it is scored against.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedsim import assessment, attempt
from fedsim.assessment import Record, Task
from fedsim.attempt import Attempt
from fedsim.data.batches import FederatedData
from fedsim.exchange import Finding
from fedsim.lines import SCHEMA
from fedsim.metrics.ratings import KIND_OF_FIELD
from fedsim.metrics.skill import skill
from fedsim.plan import Plan, PlannedAttack
from fedsim.recording import RunFolder
from fedsim.report import evidence
from fedsim.report.scores import scored
from fedsim.report.verdicts import kind_of
from fedsim.seeds import derive, numpy_generator
from fedsim.training import NonFiniteUpdateError, local_update, proximal_mu

# Pictures that a cheap attack is tried on in all: a single label may be right by luck, and a single picture be a hard one.
_PICTURES = 8


def is_called_for(plan: Plan, planned: PlannedAttack, records: Sequence[Record]) -> bool:
    """Return whether an attack is to be calibrated in a round, by `audit.calibrate`.

    Cheap attacks always are. Others are with `all`, and with `auto` where a verdict hangs on it: the attack applies to a client
    of which it finds nothing, and no unprotected client shows that it works.

    Args:
        plan: the run's plan.
        planned: the attack.
        records: its records of the round.
    """
    choice = plan.scenario.audit.calibrate
    # Nothing of an observed app is scored, so no verdict hangs on it.
    if planned.attack.is_control or plan.captured is not None:
        return False
    if planned.attack.is_cheap or choice == "all":
        return True
    if choice == "none":
        return False
    typed = [evidence.Record.model_validate(record) for record in records]
    return any(
        not _leaks([record for record in typed if not record.defenses], kind)
        and any(record.status == "found" and not record.inapplicable and not _leaks([record], kind) for record in typed)
        for kind in {KIND_OF_FIELD[field] for field in planned.attack.recovers}
    )


def _leaks(records: Sequence[evidence.Record], kind: str) -> bool:
    metrics = {metric for record in records for metric in record.scores if kind_of(metric) == kind}
    return any(one.level == "leaks" for metric in metrics for one in scored(records, metric))


def calibrate(
    plan: Plan,
    folder: RunFolder,
    round: int,
    client: int,
    planned: PlannedAttack,
    attack: Callable[[int], Attempt],
) -> Record:
    """Return the line of one calibration.

    Args:
        plan: the run's plan.
        folder: the run; the global weights of the round are there.
        round: server round.
        client: a client of the round, whose global weights are used.
        planned: the attack.
        attack: returns the attempt on the update of a given number; see the function of this name.

    Raises:
        RunFolderError: the global weights are missing or corrupted.
    """
    held = _held(plan, folder, round)
    pictures = _unprotected(plan, held, round, 0).setting_of(0, round).pictures or 1
    updates = max(1, math.ceil(_PICTURES / pictures)) if planned.attack.is_cheap else 1
    started = time.perf_counter()
    line = {
        **failure(plan, folder.run, round, planned, ""),
        "status": "found",
        "pictures": pictures,
        "updates": updates,
    }
    del line["message"]
    trials = []
    for index in range(updates):
        tried = attack(index)
        if tried.status != "found":
            return {**line, "status": tried.status, "message": tried.message, "seconds": _since(started)}
        truth = _unprotected(plan, held, round, index).data.truth(0, round, plan.scenario.training)
        task = Task(round, client, planned.index)
        trials.append(assessment.scored_fields(plan, folder, task, truth, tried.finding, None))
    return {**line, **_together(trials), "seconds": _since(started)}


def attack(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack, index: int) -> Attempt:
    """Make the unprotected update of a given number and run the attack on it.

    Raises:
        RunFolderError: the global weights are missing or corrupted.
    """
    weights, own = folder.read_global(round, client), _unprotected(plan, _held(plan, folder, round), round, index)
    try:
        update = local_update(own, 0, round, weights, proximal_mu(plan.scenario)).update
    except NonFiniteUpdateError as error:
        return Attempt(
            "failed", Finding(), f"the unprotected update cannot be made: {error}", 0.0, _seed(plan, round, planned)
        )
    return attempt.attack(own, planned, update, weights, derive(_seed(plan, round, planned), index), {})[0]


def _seed(plan: Plan, round: int, planned: PlannedAttack) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    return derive(plan.scenario.seed, "calibration", planned.info.name, params, round)


def failure(plan: Plan, run: str | None, round: int, planned: PlannedAttack, message: str) -> Record:
    """Return the line of a calibration that failed in a way that it could not survive to tell.

    Args:
        plan: the run's plan.
        run: what the run is called; None where nobody has named it yet.
        round: server round.
        planned: the attack.
        message: what happened.
    """
    return {
        "schema": SCHEMA,
        "run": run or assessment.run_id(plan.scenario),
        "round": round,
        "attack": {
            **assessment.cited(planned, attempt.identity(planned)),
            **({"label": planned.label} if planned.label else {}),
        },
        "status": "failed",
        "message": message,
        "seed": _seed(plan, round, planned),
        "seconds": 0.0,
    }


def _held(plan: Plan, folder: RunFolder, round: int) -> int:
    """Return how many pictures the auditor trains on: as many as the audited client that has most, the hardest case."""
    clients = [client for client in plan.audit_clients if client in folder.captured(round)]
    return min(max(len(plan.data.partition[client]) for client in clients), len(plan.data.pools.train))


def _unprotected(plan: Plan, held: int, round: int, index: int) -> Plan:
    """Return the plan of a federation of one client, without defenses, whose pictures are drawn from those of all clients."""
    seed, pool = plan.scenario.seed, plan.data.pools.train
    drawn = numpy_generator(seed, "calibration", round, index).choice(len(pool), held, replace=False)
    data = FederatedData(plan.data.pools, (tuple(drawn.tolist()),), derive(seed, "calibration", round, index))
    return replace(plan, data=data, defenses=(), audit_clients=(0,))


def _since(started: float) -> float:
    return float(f"{time.perf_counter() - started:.4g}")


def _together(trials: Sequence[Record]) -> Record:
    """Return the scores of several trials as those of one: examples side by side, controls averaged over them."""
    scores: dict[str, Any] = {}
    controls: dict[str, dict[str, float]] = {}
    best: dict[str, Any] = {}
    for name, first in trials[0]["scores"].items():
        found = [(trial, trial["scores"][name]) for trial in trials if trial["scores"].get(name, {}).get("per_example")]
        if not found:
            scores[name] = first
            continue
        examples = [value for _, score in found for value in score["per_example"]]
        scores[name] = {"value": math.fsum(examples) / len(examples), "per_example": examples, "worse": first["worse"]}
        for control in dict.fromkeys(control for trial, _ in found for control in trial["controls"]):
            values = [
                (trial["controls"][control][name], len(score["per_example"]))
                for trial, score in found
                if name in trial["controls"].get(control, {})
            ]
            if values:
                total = sum(weight for _, weight in values)
                mean = math.fsum(value * weight for value, weight in values) / total
                controls.setdefault(control, {})[name] = mean
        examples_shown = [trial["best_example"][name] for trial, _ in found if name in trial["best_example"]]
        if examples_shown:
            best[name] = max(examples_shown, key=lambda e: skill(e["value"], e["control"], first["worse"]))
    return {"scores": scores, "controls": controls, "best_example": best}
