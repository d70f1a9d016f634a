"""Whether an attack works at a round's weights at all: the same attack on unprotected updates that the auditor makes itself.

That an attack finds nothing in a client's update says something about the client only where the attack is known to work
without its defense. A calibration trains on images of the data set, drawn from all clients, with the round's global weights
and as much as the client does: as many images, of the same batch size, in as many steps, with the same optimizer and, where
the strategy has its clients clip, clipped, without any defense. It runs the attack with the same grants on several such
updates, and scores each finding beside what the same attack finds in another of them. It is one line of calibrations.jsonl per
round, attack and workload. No attack sees what it is scored against.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedsim.applicability import Workload
from fedsim.audit import assessment, attempt, scores
from fedsim.audit.attempt import Attempt
from fedsim.data.batches import FederatedData
from fedsim.exchange import Finding, Truth, Update, View
from fedsim.federation.training import NonFiniteUpdateError, Weights, local_update, proximal_mu
from fedsim.metrics import likeness
from fedsim.planning.inputs import run_id
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack
from fedsim.recording.records import SCHEMA, Calibration, Record, RecordedWorkload, Trial
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import derive, numpy_generator
from fedsim.verdicts.judge import Judge, kind_of
from fedsim.verdicts.scores import scored

# Images that a cheap attack is tried on in all: a single label may be right by luck, and a single image be a hard one.
_IMAGES = 8
# Updates that an attack is tried on at least: each is scored beside another one.
_CHEAP_TRIALS, _DEAR_TRIALS = 3, 2

MOST_WORKLOADS = 4
"""For so many workloads of a round's clients an attack is calibrated at most, those on which verdicts hang first."""


def clients_to_calibrate(plan: Plan, planned: PlannedAttack, own: Sequence[Record]) -> list[int]:
    """Return clients for whose workloads an attack is to be calibrated in a round, by `audit.calibrate`.

    A verdict hangs on the calibration of a workload where a client with a defense has it, the attack is made for it and finds
    nothing. Cheap attacks are calibrated for these workloads, and where there is none for the first one, so that a report tells
    whether they work at all. Others are with `auto` for those alone, where unprotected clients do not show that they work. With
    `all`, all attacks are for every workload. No more than `MOST_WORKLOADS` are.

    Args:
        plan: the run's plan.
        planned: the attack.
        own: its records of the round.
    """
    choice = plan.scenario.audit.calibrate
    # Nothing of an observed app is scored, so no verdict hangs on it.
    if planned.attack.is_control or plan.captured is not None or (choice == "none" and not planned.attack.is_cheap):
        return []
    applicable = [record for record in own if not record.inapplicable]
    by_workload: dict[Workload, list[Record]] = {}
    for record in sorted(applicable, key=lambda record: record.client):
        by_workload.setdefault(plan.workload_of(record.client), []).append(record)
    judge = Judge.of_records(applicable)
    workloads = list(by_workload.values())
    hanging = [alike for alike in workloads if any(_hangs(record) for record in alike)]
    if choice == "all":
        chosen = [*hanging, *(alike for alike in workloads if alike not in hanging)]
    elif planned.attack.is_cheap:
        chosen = hanging or workloads[:1]
    else:
        chosen = [alike for alike in hanging if any(_hangs(record, judge) for record in alike)]
    return [alike[0].client for alike in chosen[:MOST_WORKLOADS]]


def _hangs(record: Record, judge: Judge | None = None) -> bool:
    """Return whether the verdict on an attempt depends on whether the attack works; not where that is known already."""
    if not record.defenses or record.status != "found":
        return False
    for kind in {kind_of(metric) for metric in record.scores}:
        own = [one for metric in record.scores if kind_of(metric) == kind for one in scored([record], metric)]
        if not any(one.level == "leaks" for one in own) and (judge is None or not judge.is_proven(record, kind)):
            return True
    return False


def is_current(plan: Plan, line: Calibration, attack: int) -> bool:
    """Return whether a line was made as this version does, with the grants of the plan; another one is made again.

    Args:
        plan: the run's plan.
        line: the calibration.
        attack: position of its attack in the plan.
    """
    is_whole = line.workload is not None and "trials" in line.model_fields_set
    return is_whole and line.grants == attempt.grants_of(plan, plan.attacks[attack])


def calibrate(
    plan: Plan,
    folder: RunFolder,
    round: int,
    client: int,
    planned: PlannedAttack,
    attack: Callable[[int], Attempt],
) -> Calibration:
    """Return the line of one calibration.

    Args:
        plan: the run's plan.
        folder: the run; the global weights of the round are there.
        round: server round.
        client: a client of the round, whose global weights and workload are used.
        planned: the attack.
        attack: returns the attempt on the update of a given number; see the function of this name.

    Raises:
        RunFolderError: the global weights are missing or corrupted.
    """
    started = time.perf_counter()
    wanted = trials_of(planned, plan.workload_of(client))
    tried: list[Attempt] = []
    for index in range(wanted):
        tried.append(attack(index))
        if 2 * sum(one.status != "found" for one in tried) >= wanted:
            break  # most cannot leak any more, and each may take as long as an attack may
    truths = [_truth(plan, client, round, index) for index in range(len(tried))]
    trials = [_trial(plan, folder, View.of_update(round, client), tried, truths, index) for index in range(len(tried))]
    first = next((one for one in tried if one.status != "found"), None)
    has_none = first is not None and all(one.status != "found" for one in tried)
    return Calibration(
        **_head(plan, folder.run, round, client, planned),
        **({"status": first.status, "message": first.message} if has_none and first else {"status": "found"}),
        trials=tuple(trials),
        seed=_seed(plan, round, client, planned),
        seconds=float(f"{time.perf_counter() - started:.4g}"),
    )


def trials_of(planned: PlannedAttack, workload: Workload) -> int:
    """Return how many updates an attack is tried on."""
    if not planned.attack.is_cheap:
        return _DEAR_TRIALS
    return max(_CHEAP_TRIALS, math.ceil(_IMAGES / workload.pictures))


def _truth(plan: Plan, client: int, round: int, index: int) -> Truth:
    return _unprotected(plan, client, round, index).truth([(round, 0)])


def _trial(
    plan: Plan, folder: RunFolder, view: View, tried: Sequence[Attempt], truths: Sequence[Truth], index: int
) -> Trial:
    """Return one trial, scored beside what the attack finds in that of the others which shows least of the same images."""
    own = tried[index]
    if own.status != "found":
        return Trial(status=own.status, message=own.message)
    after = [(index + step) % len(tried) for step in range(1, len(tried))]
    others = [other for other in after if tried[other].status == "found"]
    small = {one: likeness.thumbnails(truths[one].images) for one in (index, *others)}
    wrong = min(others, key=lambda other: likeness.alike(small[index], small[other]), default=None)
    found = scores.scores_of(
        plan, folder, view, truths[index], own.finding, None if wrong is None else tried[wrong].finding
    )
    return Trial(status="found", scores=found.scores, controls=found.controls, best_example=found.best_example)


def attack(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack, index: int) -> Attempt:
    """Make the unprotected update of a given number and run the attack on it.

    Raises:
        RunFolderError: the global weights are missing or corrupted.
    """
    weights, own = folder.read_global(round, client), _unprotected(plan, client, round, index)
    seed = _seed(plan, round, client, planned)
    try:
        update = local_update(own, 0, round, weights, proximal_mu(plan.scenario)).update
    except NonFiniteUpdateError as error:
        return Attempt("failed", Finding(), f"the unprotected update cannot be made: {error}", 0.0, seed)
    sent = _as_sent(update, weights, _clipping_norm(plan, folder, round))
    view = View.of_update(round, update.client)
    return attempt.attack(own, planned, [(sent, weights)], view, derive(seed, index), {})[0]


def _seed(plan: Plan, round: int, client: int, planned: PlannedAttack) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    variant = [] if not planned.is_plain else ["plain"]
    path = ["calibration", planned.info.name, params, *variant]
    return derive(plan.scenario.seed, *path, round, *plan.workload_of(client))


def failure(plan: Plan, run: str | None, round: int, client: int, planned: PlannedAttack, message: str) -> Calibration:
    """Return the line of a calibration that failed in a way that it could not survive to tell.

    Args:
        plan: the run's plan.
        run: what the run is called; None where nobody has named it yet.
        round: server round.
        client: a client of the round, whose workload is used.
        planned: the attack.
        message: what happened.
    """
    return Calibration(
        **_head(plan, run, round, client, planned),
        status="failed",
        message=message,
        trials=(),
        seed=_seed(plan, round, client, planned),
        seconds=0.0,
    )


def _head(plan: Plan, run: str | None, round: int, client: int, planned: PlannedAttack) -> dict[str, Any]:
    """Return what a line says of the attack and of the updates that it belongs to."""
    return {
        "schema": SCHEMA,
        "run": run or run_id(plan.scenario),
        "round": round,
        "attack": assessment.attack_use(planned),
        "grants": attempt.grants_of(plan, planned),
        "workload": RecordedWorkload(**plan.workload_of(client)._asdict()),
    }


def _unprotected(plan: Plan, client: int, round: int, index: int) -> Plan:
    """Return the plan of a federation of one client, without defenses, that trains as much as a client of the run.

    Its images are drawn from those of all clients. As many updates as these are enough for share none of them.
    """
    seed, pool, workload = plan.scenario.seed, plan.data.pools.train, plan.workload_of(client)
    training = plan.scenario.training
    # With mixup, partners are drawn from all that a client holds; with Poisson sampling, batches are.
    draws = training.mixup is not None or training.sampling == "poisson"
    held = len(plan.data.partition[client]) if draws else workload.pictures
    turn, place = divmod(index, max(1, len(pool) // held))
    order = numpy_generator(seed, "calibration", round, *workload, turn).permutation(len(pool))
    drawn = tuple(order[place * held : (place + 1) * held].tolist())
    for again in itertools.count():
        path = (index, again) if again else (index,)
        data = FederatedData(plan.data.pools, (drawn,), derive(seed, "calibration", round, *workload, *path))
        if data.images_used(0, round, training):  # Poisson sampling may draw none, of which nothing could leak
            break
    return replace(plan, data=data, defenses=(), audit_clients=(0,))


def _clipping_norm(plan: Plan, folder: RunFolder, round: int) -> float:
    """Return the norm to which the strategy had its clients clip in a round; infinity where it did not.

    An adaptive one is not on record, but a clipped update has it.
    """
    from fedsim.strategies.building import CLIENT_SIDE_MODS, all_parameters  # imports Flower

    federation = plan.scenario.federation
    if federation.strategy not in CLIENT_SIDE_MODS:
        return math.inf
    stated = all_parameters(federation).get("clipping_norm")
    if stated is not None:
        return float(stated)
    clipped = [
        client for client in folder.captured(round) if folder.read_header(round, client)["metrics"].get("norm_bit") == 1
    ]
    return max((_norm(folder.read_update(round, client)) for client in clipped[:1]), default=math.inf)


def _norm(update: Update) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in update.tensors.values()))


def _as_sent(update: Update, weights: Weights, clipping_norm: float) -> Update:
    """Return an update as the server gets it: clipped, and a delta rounded as the difference of the weights that travel."""
    if update.kind == "gradient":
        return update
    norm = _norm(update)
    factor = min(1.0, clipping_norm / norm) if norm else 1.0
    tensors = {n: (weights[n] + factor * delta) - weights[n] for n, delta in update.tensors.items()}
    return replace(update, tensors=tensors)
