"""One audit record: a stored finding, scored against the truth and beside its controls.

README documents the fields of a line of records.jsonl.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import models, strips
from fedsim.audit import attempt, noise, replay
from fedsim.audit.attempt import Attempt
from fedsim.exchange import Finding, Images, Trajectory, Truth
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import KINDS
from fedsim.metrics import scoring
from fedsim.metrics import trajectory as trajectories
from fedsim.metrics.feature import Features
from fedsim.metrics.matching import match
from fedsim.metrics.ratings import PATCHES, TRAINED, scale, viewed
from fedsim.metrics.skill import best_control
from fedsim.metrics.unavailable import MetricUnavailableError
from fedsim.planning.inputs import run_id
from fedsim.planning.memory import per_plan
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack, PlannedDefense
from fedsim.recording import environment
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import seeded

# Auxiliary pictures behind the mean head input, whose error they leave at an eighth of a picture's spread.
_MEAN_OF = 64

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


def assess(plan: Plan, folder: RunFolder, task: Task, partner: int | None) -> Record:
    """Return the record of one attempt, and write its picture strips.

    Args:
        plan: the run's plan.
        folder: the run; the findings of this task and of the partner's are there.
        task: which attempt.
        partner: client of the same round whose finding is the wrong-update control; None when nobody else was captured.
    """
    planned = plan.attacks[task.attack]
    tried = attempt.read(plan, folder, task.round, task.client, planned)
    record: Record = {
        "schema": SCHEMA,
        "run": folder.run or run_id(plan.scenario),
        "round": task.round,
        "client": task.client,
        "attack": {
            **cited(planned, attempt.identity(planned)),
            "is_control": planned.attack.is_control,
            "recovers": sorted(planned.attack.recovers),
            **({"label": planned.label} if planned.label else {}),
        },
        "defenses": [
            *(
                {**cited(d, {"name": d.info.name, "params": d.params}), "adds_noise": adds_noise}
                for d, adds_noise in zip(
                    plan.defenses_of(task.client), _adds_noise(plan, folder, task.client, task.round), strict=True
                )
            ),
            *_by_strategy(plan),
        ],
        "grants": list(plan.scenario.threat.grants),
        "workload": None if plan.captured is not None else plan.workload_of(task.client)._asdict(),
        "status": tried.status,
        "inapplicable": _obstacles(plan, folder, task, planned),
        "scores": {},
        "controls": {},
        "best_example": {},
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
            record["found"] = _counted(tried.finding)
            _write_found(folder, task, planned, tried, record)
    return record


@per_plan(most=256)
def _adds_noise(plan: Plan, folder: RunFolder, client: int, round: int) -> tuple[bool, ...]:
    """Return which defenses of a client randomize its update in a round, in their order."""
    carried = plan.defenses_of(client)
    past = replay.past(folder, client, round) if carried else None
    return tuple(noise.adds_noise(plan, planned, client, round, past) for planned in carried)


def _by_strategy(plan: Plan) -> list[Record]:
    """Return what the strategy has every client do to its update: Flower's clipping on the client is a defense of theirs."""
    from fedsim.strategies.building import CLIENT_SIDE_MODS, all_parameters  # imports Flower

    federation = plan.scenario.federation
    if plan.captured is not None or federation.strategy not in CLIENT_SIDE_MODS:
        return []
    params = json.loads(json.dumps(all_parameters(federation), default=str))
    return [{"name": federation.strategy, "params": params, "citation": None, "adds_noise": False, "is_strategy": True}]


def _obstacles(plan: Plan, folder: RunFolder, task: Task, planned: PlannedAttack) -> list[str] | None:
    """Return why the attack is not made for this update; None where the attack does not say what it is made for."""
    applicability = planned.attack.applicability
    if applicability is None:
        return None
    if plan.captured is None:
        setting = plan.setting_of(task.client, task.round)
    else:
        setting = plan.setting_reported(folder.read_update(task.round, task.client))
    return list(applicability.obstacles(setting))


def _counted(finding: Finding) -> dict[str, Any]:
    """Return what a finding holds, in numbers: pictures, features, and labels by class."""
    counted: dict[str, Any] = {}
    if finding.images is not None:
        counted["pictures"] = len(finding.images)
    if finding.features is not None:
        counted["features"] = len(finding.features)
    if finding.labels is not None:
        is_soft = finding.labels.ndim == 2
        classes = finding.labels.argmax(1) if is_soft else finding.labels
        counts = Counter(int(label) for label in classes.tolist())
        counted["soft_labels" if is_soft else "labels"] = {str(label): counts[label] for label in sorted(counts)}
    return counted


def _write_found(folder: RunFolder, task: Task, planned: PlannedAttack, tried: Attempt, record: Record) -> None:
    """Write a picture strip of a finding in its own order: there are no originals to match it to."""
    found = tried.finding.images
    if found is not None and len(found):
        path = folder.artifact(task.round, task.client, f"{planned.slug}.png")
        folder.write(path, strips.png_strip(found))
        record["artifacts"]["reconstructions"] = folder.relative(path)


def cited(planned: PlannedAttack | PlannedDefense, named: dict[str, Any]) -> dict[str, Any]:
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
    wrong = None
    if partner is not None:
        other = attempt.read(plan, folder, task.round, partner, planned)
        wrong = other.finding if other.status == "found" else None
    if wrong is None:
        record["cautions"].append("no wrong-update control: no other client's update of this round gave a finding")
    record |= scored_fields(plan, folder, task, truth, tried.finding, wrong)
    if plan.defenses_of(task.client):
        _add_views(plan, folder, task, truth, tried.finding, wrong, record)
    record["cautions"] += _surplus(tried, len(truth.images), record["scores"])
    _write_strips(folder, task, planned, truth, tried, record)
    trajectory = tried.finding.trajectory
    if trajectory is not None and trajectory.images.numel():
        has_psnr = "psnr" in record["scores"]
        blind = record["controls"] if has_psnr else scoring.controls(["psnr"], truth, _auxiliary(plan), wrong)
        _show_trajectory(folder, task, planned, truth, trajectory, blind, record)


def _add_views(
    plan: Plan, folder: RunFolder, task: Task, own: Truth, finding: Finding, wrong: Finding | None, record: Record
) -> None:
    """Add what a finding scores against what a defended client really trained on, and patch by patch.

    The metrics are those that are rated, each under a name of its own in the record's scores, controls and best examples.
    """
    rated = [name for name in record["scores"] if scale(name).partial is not None]
    images = [name for name in rated if scale(name).follows == "pictures"]
    labels = [name for name in rated if scale(name).follows == "labels"]
    grid = _patch_grid(plan)
    views: list[tuple[str, list[str], Truth, models.PatchGrid | None]] = []
    trained = _trained_on(plan, folder, task.client, task.round)
    if isinstance(trained, str):
        record["trained_on"] = {"unknown": trained}
    elif trained is not None:
        truth = trained.truth
        record["trained_on"] = {
            "inputs": len(truth.images),
            "other_pictures": trained.has_other_pictures,
            "other_labels": trained.has_other_labels,
        }
        changed = [*(images if trained.has_other_pictures else []), *(labels if trained.has_other_labels else [])]
        views.append((TRAINED, changed, truth, None))
        if trained.has_other_pictures and grid is not None:
            views.append((f"{TRAINED}+{PATCHES}", images, truth, grid))
    if grid is not None:
        views.append((PATCHES, images, own, grid))
    for view, names, truth, arranged in views:
        if not names:
            continue
        found = scored_fields(plan, folder, task, truth, finding, wrong, names, arranged)
        for field in ("scores", "best_example"):
            record[field] |= {viewed(name, view): value for name, value in found[field].items()}
        for control, values in found["controls"].items():
            own_values = record["controls"].setdefault(control, {})
            own_values |= {viewed(name, view): value for name, value in values.items()}


def _patch_grid(plan: Plan) -> models.PatchGrid | None:
    """Return how the model cuts pictures; None for one that does not."""
    try:
        return models.patch_grid(plan.model())
    except models.ModelInterfaceError:
        return None


@per_plan(most=8)
def _trained_on(plan: Plan, folder: RunFolder, client: int, round: int) -> replay.TrainedOn | str | None:
    """Return what a client trained on, or why that is not known; None where no defense has a say in it."""
    own = plan.data.truth(client, round, plan.scenario.training)
    try:
        return replay.trained_on(plan, folder, client, round, own)
    except replay.NotReproducedError as error:
        return str(error)


def scored_fields(
    plan: Plan,
    folder: RunFolder,
    task: Task,
    truth: Truth,
    finding: Finding,
    wrong: Finding | None,
    metrics: Sequence[str] | None = None,
    grid: models.PatchGrid | None = None,
) -> Record:
    """Return the fields of a record that hold scores and what blind guesses score on the same truth.

    Args:
        plan: the run's plan.
        folder: the run; the global weights that the task's client got are there.
        task: which round, client and attack.
        truth: the pictures and labels behind the update.
        finding: what the attack found.
        wrong: what it found in another client's update; None without one.
        metrics: names; None for those of the scenario.
        grid: compares pictures patch by patch; None compares them as they are.
    """
    true_inputs = functools.cache(lambda: _head_inputs(plan, folder, task, truth.images))
    names = list(plan.scenario.audit.metrics if metrics is None else metrics)
    scores = scoring.score(names, finding, truth, true_inputs, grid)
    auxiliary, names = _auxiliary(plan), list(scores)
    if "feature_error" in scores and scores["feature_error"].value is not None:
        auxiliary = replace(auxiliary, features=_mean_input(plan, folder, task.round, task.client))
    scored = scoring.control_scores(names, truth, auxiliary, wrong, true_inputs, grid)
    return {
        "scores": {name: _plain(score) for name, score in scores.items()},
        "controls": scoring.control_values(names, scored, truth, auxiliary),
        "best_example": {name: asdict(best) for name, best in scoring.best_examples(scores, scored).items()},
    }


def _plain(score: scoring.Score) -> dict[str, Any]:
    if score.unavailable is not None:
        return {"value": None, "worse": score.worse, "unavailable": score.unavailable}
    return {"value": score.value, "per_example": list(score.per_example or ()), "worse": score.worse}


def _surplus(tried: Attempt, originals: int, scores: Record) -> list[str]:
    """Return a caution for each kind of item of which there are more found than true ones; hard labels pay for it."""
    scored = {scale(name).kind for name in scores}
    found = {
        kind.name: kind.held(tried.finding)
        for kind in KINDS.values()
        # Pictures are shown in the order of their assignment, scored or not.
        if kind.is_paired or (kind.assigned and kind in scored)
    }
    return [
        f"{len(items)} {what} were returned for {originals} originals; the best assignment counts, which flatters"
        for what, items in found.items()
        if items is not None and len(items) > originals
    ]


@per_plan(most=1)
def _auxiliary(plan: Plan) -> Auxiliary:
    """Return what the auxiliary pool tells a blind guesser."""
    pool = plan.data.pools.auxiliary
    samples = pool.read(range(len(pool)))
    return Auxiliary(samples.images.mean(0), samples.labels, plan.num_classes)


def _head_inputs(plan: Plan, folder: RunFolder, task: Task, images: Images) -> Features:
    """Return what pictures bring to the classifier at the round's global weights, defenses aside.

    Raises:
        MetricUnavailableError: there are several classifiers, or dropout drew the client's own head inputs.
    """
    model, inputs = _global_model(plan, folder, task.round, task.client), plan.normalization.normalize(images)
    first, *others = models.head_inputs(model, inputs)
    if others:
        raise MetricUnavailableError("the model has two classifiers, each with a head input of its own")
    if plan.scenario.training.mode == "train":
        with seeded(plan.scenario.seed, "head inputs"):
            drawn = models.head_inputs(model.train(), inputs)[0]
        if not torch.equal(first, drawn):
            raise MetricUnavailableError(
                "the client's head inputs were random, drawn by dropout or the like; training.mode: eval has fixed ones"
            )
    return first


@per_plan(most=8)
def _mean_input(plan: Plan, folder: RunFolder, round: int, client: int) -> Tensor:
    """Return the mean head input of auxiliary pictures at the round's global weights."""
    pool = plan.data.pools.auxiliary
    images = pool.read(range(min(len(pool), _MEAN_OF))).images
    model = _global_model(plan, folder, round, client)
    return models.head_inputs(model, plan.normalization.normalize(images))[0].mean(0)


def _global_model(plan: Plan, folder: RunFolder, round: int, client: int) -> nn.Module:
    return plan.model(folder.read_global(round, client))


def _write_strips(
    folder: RunFolder, task: Task, planned: PlannedAttack, truth: Truth, tried: Attempt, record: Record
) -> None:
    originals = folder.artifact(task.round, task.client, "originals.png")
    folder.write(originals, strips.png_strip(truth.images))
    record["artifacts"]["originals"] = folder.relative(originals)
    found = tried.finding.images
    if found is None or len(found) == 0:
        return
    shown = torch.full_like(truth.images, 0.5)
    for position, index in enumerate(match(found, truth.images)):
        if index is not None:
            shown[position] = found[index]
    path = folder.artifact(task.round, task.client, f"{planned.slug}.png")
    folder.write(path, strips.png_strip(shown))
    record["artifacts"]["reconstructions"] = folder.relative(path)


def _show_trajectory(
    folder: RunFolder,
    task: Task,
    planned: PlannedAttack,
    truth: Truth,
    trajectory: Trajectory,
    controls: dict[str, scoring.Scores],
    record: Record,
) -> None:
    """Put a trajectory's curves into the record, and write some of its frames as a picture."""
    frames = trajectories.arranged(trajectory, truth.images)
    shown = strips.spread(len(trajectory.steps), strips.SHOWN)
    path = folder.artifact(task.round, task.client, f"{planned.slug}-film.png")
    folder.write(path, strips.png_trajectory(frames[shown], truth.images))
    record["artifacts"]["film"] = folder.relative(path)
    best = best_control("psnr", controls, "higher")
    record["film"] = {
        "steps": list(trajectory.steps),
        "losses": [loss if math.isfinite(loss) else None for loss in trajectory.losses],
        "psnr": list(trajectories.psnr_by_frame(frames, truth.images)),
        "control": None if best is None else best._asdict(),
        "shown": [trajectory.steps[position] for position in shown],
    }
