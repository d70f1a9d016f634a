"""One audit record: a stored finding, scored against the truth and beside its controls.

README documents the fields of a line of records.jsonl.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic
import torch

from fedsim import strips
from fedsim.applicability import strange, together
from fedsim.audit import attempt, noise, replay
from fedsim.audit.attempt import Attempt
from fedsim.audit.scores import auxiliary_of, by_view, joined, scores_of
from fedsim.audit.text import plain
from fedsim.errors import RunFolderError
from fedsim.exchange import Finding, Trajectory, Truth, View
from fedsim.findings.kinds import KINDS
from fedsim.metrics import scoring
from fedsim.metrics import trajectory as trajectories
from fedsim.metrics.matching import match
from fedsim.metrics.ratings import scale
from fedsim.metrics.skill import best_control
from fedsim.planning.inputs import run_id
from fedsim.planning.memory import per_plan
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack, PlannedDefense
from fedsim.recording.records import (
    SCHEMA,
    AnyRecord,
    Budget,
    Found,
    Line,
    PluginUse,
    Record,
    RecordedTrajectory,
    RecordedView,
    RecordedWorkload,
    Scores,
    TrainedOn,
    TrajectoryControl,
    ViewRecord,
    fault,
)
from fedsim.recording.run_folder import RunFolder


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
    """Return the record of one attempt, and write its image strips.

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
        "grants": attempt.grants_of(plan, planned),
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
        **({} if (budget := _budget(plan, folder, view)) is None else {"budget": budget}),
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
    if plan.has_truth:
        return _against_truth(plan, folder, task, partner, planned, tried)
    return _Assessed(
        cautions=("no truth: the run was observed, not simulated, so nothing can be scored without --truth",),
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
            params=plain(planned.params),
            citation=getattr(planned.defense, "citation", None),
            adds_noise=adds_noise,
        )
    yield from _by_strategy(plan)


def _budget(plan: Plan, folder: RunFolder, view: View) -> Budget | None:
    """Return what a view's only client claims over its rounds so far; None of several clients, and of an observed app.

    Each of several clients has a budget of its own, and none is stated for what they sent together. What an observed app says
    of its privacy is not of fedsim's defenses.

    Raises:
        RunFolderError: what the client stated is no budget.
    """
    from fedsim.wire import PRIVACY  # imports Flower

    if plan.captured is not None or len(view.clients) != 1:
        return None
    last = folder.captures_of(view)[-1]
    stated = folder.read_side(*last).get(PRIVACY)
    try:
        return None if stated is None else Budget.model_validate(stated)
    except pydantic.ValidationError as error:
        raise RunFolderError(
            f"{folder.capture_path(*last)}: the privacy budget that it states is none: {fault(error)}. Restore the file."
        ) from None


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
    params = plain(dict(all_parameters(federation)))
    return [PluginUse(name=federation.strategy, params=params, citation=None, adds_noise=False, is_strategy=True)]


def _obstacles(plan: Plan, folder: RunFolder, view: View, planned: PlannedAttack) -> tuple[str, ...] | None:
    """Return why the attack is not made for this view; None where the attack does not say what it is made for."""
    applicability = planned.attack.applicability
    if plan.captured is None:
        settings = [plan.setting_of(client, round) for round, client in folder.captures_of(view)]
    else:
        headers = [folder.read_header(*place) for place in folder.captures_of(view)]
        settings = [plan.setting_reported(one["kind"], folder.reported_examples(one)) for one in headers]
    if applicability is None:
        return strange(together(settings)) or None
    # The mean of a round is that of one large batch; rounds follow one another.
    rounds = [round for round, _ in folder.captures_of(view)]
    size = sum(one.batch_size for one, round in zip(settings, rounds, strict=True) if round == view.rounds[0])
    return applicability.obstacles(replace(together(settings), batch_size=size))


def _counted(finding: Finding) -> Found:
    """Return what a finding holds, in numbers: images, features, and labels by class."""
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
    """Write an image strip of a finding in its own order: there are no originals to match it to."""
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
    named = {**plain(attempt.identity(planned)), "citation": getattr(planned.attack, "citation", None), **facts}
    stated: dict[str, Any] = {"label": planned.label, "variant": planned.variant}
    return PluginUse(**named, **{name: value for name, value in stated.items() if value is not None})


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
    # The defenses of an observed app are its own, and cannot be run again.
    if plan.captured is None and any(plan.defenses_of(client) for client in view.clients):
        seen, trained = by_view(plan, folder, view, truth, finding, wrong, scored)
        scored = joined([scored, *seen])
    artifacts = _write_strips(folder, view, planned, truth, finding)
    trajectory: RecordedTrajectory | None = None
    if finding.trajectory is not None and finding.trajectory.images.numel():
        blind = dict(scored.controls)
        if "psnr" not in scored.scores:
            blind = scoring.controls(["psnr"], truth, auxiliary_of(plan), wrong)
        path, trajectory = _show_trajectory(folder, view, planned, truth, finding.trajectory, blind)
        artifacts["film"] = path
    optional: dict[str, Line | None] = {"trained_on": trained, "trajectory": trajectory}
    if plan.captured is not None:
        optional["found"] = _counted(finding)
    return _Assessed(scored, tuple(cautions), artifacts, optional)


def _surplus(tried: Attempt, originals: int, scored: Scores) -> list[str]:
    """Return a caution for each kind of item of which there are more found than true ones; hard labels pay for it."""
    measured = {scale(name).kind for name in scored.scores}
    found = {
        kind.name: kind.held(tried.finding)
        for kind in KINDS.values()
        # Images are shown in the order of their assignment, scored or not.
        if kind.is_paired or (kind.assigned and kind in measured)
    }
    return [
        f"{len(items)} {what} were returned for {originals} originals; the best assignment counts, which flatters"
        for what, items in found.items()
        if items is not None and len(items) > originals
    ]


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
    """Write some frames of a trajectory as an image; returns its place, and the trajectory's curves."""
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
