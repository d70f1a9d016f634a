"""One audit record: a stored finding, scored against the truth and beside its controls.

README documents the fields of a line of records.jsonl.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import models, strips
from fedsim.applicability import together
from fedsim.audit import attempt, noise, replay
from fedsim.audit.attempt import Attempt
from fedsim.exchange import Finding, Images, Trajectory, Truth, View
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
from fedsim.recording.records import (
    SCHEMA,
    AnyRecord,
    BestExample,
    Found,
    Line,
    PluginUse,
    Record,
    RecordedScore,
    RecordedTrajectory,
    RecordedView,
    RecordedWorkload,
    Scores,
    TrainedOn,
    TrajectoryControl,
    ViewRecord,
)
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import seeded

# Auxiliary pictures behind the mean head input, whose error they leave at an eighth of a picture's spread.
_MEAN_OF = 64


@dataclass(frozen=True, order=True)
class Task:
    """One attempt of the audit; the order is that of the records.

    Args:
        view: what is attacked.
        attack: index in the scenario.
    """

    view: View
    attack: int


def assess(plan: Plan, folder: RunFolder, task: Task, partner: View | None) -> AnyRecord:
    """Return the record of one attempt, and write its picture strips.

    Args:
        plan: the run's plan.
        folder: the run; the findings of this task and of the partner's are there.
        task: which attempt.
        partner: the view whose finding is the wrong-update control; None when there is no other.
    """
    planned, view = plan.attacks[task.attack], task.view
    tried = attempt.read(plan, folder, view, planned)
    assessed = _assessed(plan, folder, task, partner, planned, tried)
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "run": folder.run or run_id(plan.scenario),
        "round": view.round,
        "client": view.client,
        "attack": attack_use(
            planned, is_control=planned.attack.is_control, recovers=tuple(sorted(planned.attack.recovers))
        ),
        "defenses": tuple(_defenses(plan, folder, view)),
        "grants": tuple(plan.scenario.threat.grants),
        "workload": workload_of(plan, view),
        "status": tried.status,
        "inapplicable": _obstacles(plan, folder, view, planned),
        "scores": assessed.scored.scores,
        "controls": assessed.scored.controls,
        "best_example": assessed.scored.best_example,
        "cautions": (*tried.finding.cautions, *_stated(plan, view), *assessed.cautions),
        "trace": dict(tried.finding.trace),
        "seconds": tried.seconds,
        "seed": tried.seed,
        "artifacts": {
            "finding": folder.relative(attempt.finding_path(folder, view, planned)),
            **{name: folder.relative(path) for name, path in assessed.artifacts.items()},
        },
        **({} if tried.message is None else {"message": tried.message}),
        **{name: value for name, value in assessed.optional.items() if value is not None},
    }
    if view.client is not None:
        return Record(**fields)
    return ViewRecord(**fields, view=RecordedView(**asdict(view)))


@dataclass(frozen=True)
class _Assessed:
    """What the truth, or its absence, adds to a record."""

    scored: Scores = field(default_factory=Scores)
    cautions: tuple[str, ...] = ()
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    optional: Mapping[str, Line | None] = field(default_factory=dict)


def _assessed(
    plan: Plan, folder: RunFolder, task: Task, partner: View | None, planned: PlannedAttack, tried: Attempt
) -> _Assessed:
    if tried.status != "found":
        return _Assessed()
    if environment.origin(folder.path) == "simulated":
        return _against_truth(plan, folder, task, partner, planned, tried)
    return _Assessed(
        cautions=("no truth: the run was observed, not simulated, so nothing can be scored",),
        artifacts=_write_found(folder, task.view, planned, tried),
        optional={"found": _counted(tried.finding)},
    )


def workload_of(plan: Plan, view: View) -> RecordedWorkload | None:
    """Return how much the client of a single update trained on; None of an observed app, and of a view of several updates."""
    if plan.captured is not None or view.client is None:
        return None
    return RecordedWorkload(**plan.workload_of(view.client)._asdict())


def _defenses(plan: Plan, folder: RunFolder, view: View) -> Iterator[PluginUse]:
    """Yield the defenses that any client of a view carries, in order of application."""
    found: dict[int, tuple[PlannedDefense, bool]] = {}
    for client in view.clients:
        carried = plan.defenses_of(client)
        noisy = [_adds_noise(plan, folder, client, round) for round in view.rounds] if carried else []
        for position, planned in enumerate(carried):
            adds = any(each[position] for each in noisy)
            found[planned.index] = planned, adds or found.get(planned.index, (planned, False))[1]
    for _, (planned, adds_noise) in sorted(found.items()):
        yield PluginUse(
            name=planned.info.name,
            params=_plain(planned.params),
            citation=getattr(planned.defense, "citation", None),
            adds_noise=adds_noise,
        )
    yield from _by_strategy(plan)


def _stated(plan: Plan, view: View) -> list[str]:
    """Return the cautions about the clients of a view, each once."""
    return list(dict.fromkeys(text for client in view.clients for text in plan.cautions_of(client)))


@per_plan(most=256)
def _adds_noise(plan: Plan, folder: RunFolder, client: int, round: int) -> tuple[bool, ...]:
    """Return which defenses of a client randomize its update in a round, in their order."""
    carried = plan.defenses_of(client)
    past = replay.past(folder, client, round) if carried else None
    return tuple(noise.adds_noise(plan, planned, client, round, past) for planned in carried)


def _by_strategy(plan: Plan) -> list[PluginUse]:
    """Return what the strategy has every client do to its update: Flower's clipping on the client is a defense of theirs."""
    from fedsim.strategies.building import CLIENT_SIDE_MODS, all_parameters  # imports Flower

    federation = plan.scenario.federation
    if plan.captured is not None or federation.strategy not in CLIENT_SIDE_MODS:
        return []
    params = _plain(dict(all_parameters(federation)))
    return [PluginUse(name=federation.strategy, params=params, citation=None, adds_noise=False, is_strategy=True)]


def _obstacles(plan: Plan, folder: RunFolder, view: View, planned: PlannedAttack) -> tuple[str, ...] | None:
    """Return why the attack is not made for this view; None where the attack does not say what it is made for."""
    applicability = planned.attack.applicability
    if applicability is None:
        return None
    if plan.captured is None:
        settings = [plan.setting_of(client, round) for round, client in folder.captures_of(view)]
    else:
        settings = [plan.setting_reported(folder.read_update(*place)) for place in folder.captures_of(view)]
    return applicability.obstacles(together(settings))


def _counted(finding: Finding) -> Found:
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
        counted["soft_labels" if is_soft else "labels"] = {label: counts[label] for label in sorted(counts)}
    return Found(**counted)


def _write_found(folder: RunFolder, view: View, planned: PlannedAttack, tried: Attempt) -> dict[str, Path]:
    """Write a picture strip of a finding in its own order: there are no originals to match it to."""
    found = tried.finding.images
    if found is None or not len(found):
        return {}
    path = folder.artifact(view, f"{planned.slug}.png")
    folder.write(path, strips.png_strip(found))
    return {"reconstructions": path}


def attack_use(planned: PlannedAttack, **facts: Any) -> PluginUse:
    """Return how a line names an attack, with its paper, so that a report needs no plug-in installed.

    Args:
        planned: the attack.
        facts: other fields that the line states.
    """
    named = {**_plain(attempt.identity(planned)), "citation": getattr(planned.attack, "citation", None), **facts}
    return PluginUse(**named, label=planned.label) if planned.label else PluginUse(**named)


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON can hold of parameters."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def _against_truth(
    plan: Plan, folder: RunFolder, task: Task, partner: View | None, planned: PlannedAttack, tried: Attempt
) -> _Assessed:
    view, finding = task.view, tried.finding
    truth = plan.truth(folder.captures_of(view))
    wrong = None
    if partner is not None:
        other = attempt.read(plan, folder, partner, planned)
        wrong = other.finding if other.status == "found" else None
    cautions: list[str] = []
    if wrong is None:
        others = "other client's update of this round" if view.client is not None else "other view of this kind"
        cautions.append(f"no wrong-update control: no {others} gave a finding")
    scored = scores_of(plan, folder, view, truth, finding, wrong)
    cautions += _surplus(tried, len(truth.images), scored)
    trained: TrainedOn | None = None
    if view.client is not None and plan.defenses_of(view.client):
        seen, trained = _by_view(plan, folder, view, truth, finding, wrong, scored)
        scored = _joined([scored, *seen])
    artifacts = _write_strips(folder, view, planned, truth, finding)
    trajectory: RecordedTrajectory | None = None
    if finding.trajectory is not None and finding.trajectory.images.numel():
        blind = dict(scored.controls)
        if "psnr" not in scored.scores:
            blind = scoring.controls(["psnr"], truth, _auxiliary(plan), wrong)
        path, trajectory = _show_trajectory(folder, view, planned, truth, finding.trajectory, blind)
        artifacts["film"] = path
    return _Assessed(scored, tuple(cautions), artifacts, {"trained_on": trained, "trajectory": trajectory})


def _by_view(
    plan: Plan, folder: RunFolder, view: View, own: Truth, finding: Finding, wrong: Finding | None, scored: Scores
) -> tuple[list[Scores], TrainedOn | None]:
    """Return what a finding scores against what a defended client really trained on, and patch by patch.

    The metrics are those that are rated, each under a name of its own.
    """
    rated = [name for name in scored.scores if scale(name).partial is not None]
    images = [name for name in rated if scale(name).follows == "pictures"]
    labels = [name for name in rated if scale(name).follows == "labels"]
    grid = _patch_grid(plan)
    compared: list[tuple[str, list[str], Truth, models.PatchGrid | None]] = []
    assert view.client is not None
    trained, stated = _trained_on(plan, folder, view.client, view.round), None
    if isinstance(trained, str):
        stated = TrainedOn(unknown=trained)
    elif trained is not None:
        stated = TrainedOn(
            inputs=len(trained.truth.images),
            other_pictures=trained.has_other_pictures,
            other_labels=trained.has_other_labels,
        )
        changed = [*(images if trained.has_other_pictures else []), *(labels if trained.has_other_labels else [])]
        compared.append((TRAINED, changed, trained.truth, None))
        if trained.has_other_pictures and grid is not None:
            compared.append((f"{TRAINED}+{PATCHES}", images, trained.truth, grid))
    if grid is not None:
        compared.append((PATCHES, images, own, grid))
    return [
        _renamed(scores_of(plan, folder, view, truth, finding, wrong, names, arranged), suffix)
        for suffix, names, truth, arranged in compared
        if names
    ], stated


def _renamed(scored: Scores, suffix: str) -> Scores:
    return Scores(
        scores={viewed(name, suffix): score for name, score in scored.scores.items()},
        controls={
            control: {viewed(name, suffix): value for name, value in values.items()}
            for control, values in scored.controls.items()
        },
        best_example={viewed(name, suffix): best for name, best in scored.best_example.items()},
    )


def _joined(parts: Sequence[Scores]) -> Scores:
    controls: dict[str, dict[str, float]] = {}
    for part in parts:
        for control, values in part.controls.items():
            controls.setdefault(control, {}).update(values)
    return Scores(
        scores={name: score for part in parts for name, score in part.scores.items()},
        controls=controls,
        best_example={name: best for part in parts for name, best in part.best_example.items()},
    )


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


def scores_of(
    plan: Plan,
    folder: RunFolder,
    view: View,
    truth: Truth,
    finding: Finding,
    wrong: Finding | None,
    metrics: Sequence[str] | None = None,
    grid: models.PatchGrid | None = None,
) -> Scores:
    """Return what a finding scores, and what blind guesses score on the same truth.

    Args:
        plan: the run's plan.
        folder: the run; the global weights that the view's clients got are there.
        view: what was attacked.
        truth: the pictures and labels behind it.
        finding: what the attack found.
        wrong: what it found in another view; None without one.
        metrics: names; None for those of the scenario.
        grid: compares pictures patch by patch; None compares them as they are.
    """
    true_inputs = functools.cache(lambda: _head_inputs(plan, folder, view, truth.images))
    names = list(plan.scenario.audit.metrics if metrics is None else metrics)
    scores = scoring.score(names, finding, truth, true_inputs, grid)
    auxiliary, names = _auxiliary(plan), list(scores)
    if "feature_error" in scores and scores["feature_error"].value is not None:
        auxiliary = replace(auxiliary, features=_mean_input(plan, folder, *folder.captures_of(view)[0]))
    scored = scoring.control_scores(names, truth, auxiliary, wrong, true_inputs, grid)
    return Scores(
        scores={name: _recorded(score) for name, score in scores.items()},
        controls=scoring.control_values(names, scored, truth, auxiliary),
        best_example={
            name: BestExample(**asdict(best)) for name, best in scoring.best_examples(scores, scored).items()
        },
    )


def _recorded(score: scoring.Score) -> RecordedScore:
    if score.unavailable is not None:
        return RecordedScore(value=None, worse=score.worse, unavailable=score.unavailable)
    return RecordedScore(value=score.value, per_example=score.per_example or (), worse=score.worse)


def _surplus(tried: Attempt, originals: int, scored: Scores) -> list[str]:
    """Return a caution for each kind of item of which there are more found than true ones; hard labels pay for it."""
    measured = {scale(name).kind for name in scored.scores}
    found = {
        kind.name: kind.held(tried.finding)
        for kind in KINDS.values()
        # Pictures are shown in the order of their assignment, scored or not.
        if kind.is_paired or (kind.assigned and kind in measured)
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


def _head_inputs(plan: Plan, folder: RunFolder, view: View, images: Images) -> Features:
    """Return what pictures bring to the classifier at the round's global weights, defenses aside.

    Raises:
        MetricUnavailableError: there are several classifiers, the weights of several rounds, or dropout drew the client's own
            head inputs.
    """
    if len(view.rounds) > 1:
        raise MetricUnavailableError("head inputs belong to the weights of one round, and this view is of several")
    model, inputs = _global_model(plan, folder, *folder.captures_of(view)[0]), plan.normalization.normalize(images)
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
    folder: RunFolder, view: View, planned: PlannedAttack, truth: Truth, finding: Finding
) -> dict[str, Path]:
    originals = folder.artifact(view, "originals.png")
    folder.write(originals, strips.png_strip(truth.images))
    found = finding.images
    if found is None or len(found) == 0:
        return {"originals": originals}
    shown = torch.full_like(truth.images, 0.5)
    for position, index in enumerate(match(found, truth.images)):
        if index is not None:
            shown[position] = found[index]
    path = folder.artifact(view, f"{planned.slug}.png")
    folder.write(path, strips.png_strip(shown))
    return {"originals": originals, "reconstructions": path}


def _show_trajectory(
    folder: RunFolder,
    view: View,
    planned: PlannedAttack,
    truth: Truth,
    trajectory: Trajectory,
    controls: dict[str, scoring.Scores],
) -> tuple[Path, RecordedTrajectory]:
    """Write some frames of a trajectory as a picture; returns its place, and the trajectory's curves."""
    frames = trajectories.arranged(trajectory, truth.images)
    shown = strips.spread(len(trajectory.steps), strips.SHOWN)
    path = folder.artifact(view, f"{planned.slug}-film.png")
    folder.write(path, strips.png_trajectory(frames[shown], truth.images))
    best = best_control("psnr", controls, "higher")
    return path, RecordedTrajectory(
        steps=trajectory.steps,
        losses=tuple(loss if math.isfinite(loss) else None for loss in trajectory.losses),
        psnr=tuple(trajectories.psnr_by_frame(frames, truth.images)),
        control=None if best is None else TrajectoryControl(**best._asdict()),
        shown=tuple(trajectory.steps[position] for position in shown),
    )
