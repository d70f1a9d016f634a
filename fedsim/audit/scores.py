"""A finding against the truth: its scores beside those of blind guesses, and against what a defended client trained on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.audit import replay
from fedsim.exchange import Finding, Images, Truth, View
from fedsim.findings.blind import Auxiliary
from fedsim.metrics import scoring
from fedsim.metrics.feature import Features
from fedsim.metrics.ratings import PATCHES, TRAINED, scale, viewed
from fedsim.metrics.unavailable import MetricUnavailableError
from fedsim.planning.memory import per_plan
from fedsim.planning.plan import Plan, together
from fedsim.recording.records import (
    BestExample,
    RecordedScore,
    Scores,
    TrainedOn,
)
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import seeded

# Auxiliary images behind the mean head input, whose error they leave at an eighth of an image's spread.
_MEAN_OF = 64


def by_view(
    plan: Plan, folder: RunFolder, view: View, own: Truth, finding: Finding, wrong: Finding | None, scored: Scores
) -> tuple[list[Scores], TrainedOn | None]:
    """Return what a finding scores against what a defended client really trained on, and patch by patch.

    The metrics are those that are rated, each under a name of its own.
    """
    rated = [name for name in scored.scores if scale(name).partial is not None]
    images = [name for name in rated if scale(name).follows == "images"]
    labels = [name for name in rated if scale(name).follows == "labels"]
    grid = _patch_grid(plan)
    compared: list[tuple[str, list[str], Truth, models.PatchGrid | None]] = []
    trained, stated = _trained_together(plan, folder, view), None
    if isinstance(trained, str):
        stated = TrainedOn(unknown=trained)
    elif trained is not None:
        stated = TrainedOn(
            inputs=len(trained.truth.images),
            other_pictures=trained.has_other_images,
            other_labels=trained.has_other_labels,
        )
        changed = [*(images if trained.has_other_images else []), *(labels if trained.has_other_labels else [])]
        compared.append((TRAINED, changed, trained.truth, None))
        if trained.has_other_images and grid is not None:
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


def joined(parts: Sequence[Scores]) -> Scores:
    """Return scores of different metrics as one."""
    controls: dict[str, dict[str, float]] = {}
    for part in parts:
        for control, values in part.controls.items():
            controls.setdefault(control, {}).update(values)
    return Scores(
        scores={name: score for part in parts for name, score in part.scores.items()},
        controls=controls,
        best_example={name: best for part in parts for name, best in part.best_example.items()},
    )


@per_plan(most=1)
def _patch_grid(plan: Plan) -> models.PatchGrid | None:
    """Return how the model cuts images; None for one that does not."""
    try:
        return models.patch_grid(plan.model())
    except models.ModelInterfaceError:
        return None


def _trained_together(plan: Plan, folder: RunFolder, view: View) -> replay.TrainedOn | str | None:
    """Return what the clients of a view trained on, or why that is not known; None where no defense has a say in it."""
    truths, changed = [], []
    for round, client in folder.captures_of(view):
        trained = _trained_on(plan, folder, client, round) if plan.defenses_of(client) else None
        if isinstance(trained, str):
            return trained
        if trained is not None:
            changed.append(trained)
        own = plan.data.truth(client, round, plan.scenario.training) if trained is None else trained.truth
        truths.append((client, own))
    if not changed:
        return None
    return replay.TrainedOn(
        together(truths),
        has_other_images=any(one.has_other_images for one in changed),
        has_other_labels=any(one.has_other_labels for one in changed),
    )


def _bytes(trained: replay.TrainedOn | str | None) -> int:
    return trained.truth.images.nbytes if isinstance(trained, replay.TrainedOn) else 0


# Attacks are scored one after another, each on all clients: what the clients trained on is kept from one to the next.
@per_plan(most=256 * 2**20, size=_bytes)
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
        truth: the images and labels behind it.
        finding: what the attack found.
        wrong: what it found in another view; None without one.
        metrics: names; None for those of the scenario.
        grid: compares images patch by patch; None compares them as they are.
    """
    true_inputs = functools.cache(lambda: _head_inputs(plan, folder, view, truth.images))
    names = list(plan.scenario.audit.metrics if metrics is None else metrics)
    scores = scoring.score(names, finding, truth, true_inputs, grid)
    auxiliary, names = auxiliary_of(plan), list(scores)
    if auxiliary.image is not None and "feature_error" in scores and scores["feature_error"].value is not None:
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


@per_plan(most=1)
def auxiliary_of(plan: Plan) -> Auxiliary:
    """Return what the auxiliary pool tells a blind guesser; of an observed app whose data nobody names, its list of classes."""
    if plan.captured is not None and not (
        plan.has_stated_data and len(plan.data.pools.class_names) == plan.num_classes
    ):
        return Auxiliary(None, torch.arange(plan.num_classes), plan.num_classes)
    pool = plan.data.pools.auxiliary
    samples = pool.read(range(len(pool)))
    return Auxiliary(samples.images.mean(0), samples.labels, plan.num_classes)


def _head_inputs(plan: Plan, folder: RunFolder, view: View, images: Images) -> Features:
    """Return what images bring to the classifier at the round's global weights, defenses aside.

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


@per_plan(most=256)
def _mean_input(plan: Plan, folder: RunFolder, round: int, client: int) -> Tensor:
    """Return the mean head input of auxiliary images at the round's global weights."""
    pool = plan.data.pools.auxiliary
    images = pool.read(range(min(len(pool), _MEAN_OF))).images
    model = _global_model(plan, folder, round, client)
    return models.head_inputs(model, plan.normalization.normalize(images))[0].mean(0)


def _global_model(plan: Plan, folder: RunFolder, round: int, client: int) -> nn.Module:
    return plan.model(folder.read_global(round, client))
