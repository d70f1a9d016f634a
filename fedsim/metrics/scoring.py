"""Scores of a finding against the truth, and the same scores of blind guesses.

One assignment of found to true images serves every image metric; originals that nothing was found for score as grey. Soft
labels and features have assignments of their own, since an attack may find one and not the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedsim.errors import nearest
from fedsim.exchange import Finding, Images, Truth
from fedsim.findings import blind
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import KINDS, FindingKind, HeadInputs
from fedsim.metrics.feature import Features
from fedsim.metrics.matching import Found, Originals, match, match_patches
from fedsim.metrics.metric import Metric
from fedsim.metrics.skill import CONTROL_TITLES, FLOORS, Direction, skill
from fedsim.metrics.table import METRICS
from fedsim.metrics.unavailable import MetricUnavailableError

if TYPE_CHECKING:
    from fedsim.models import PatchGrid

Scores = dict[str, float]


@dataclass(frozen=True)
class Score:
    """One metric of one finding.

    Args:
        value: the mean over the true images; None when the metric is unavailable.
        per_example: one value per true image, in the truth's order; None when the metric is unavailable.
        worse: the direction that means more leakage.
        unavailable: why there is no value.
    """

    value: float | None
    per_example: tuple[float, ...] | None
    worse: Direction
    unavailable: str | None = None


@dataclass(frozen=True)
class BestExample:
    """The image of a batch that a finding shows best, beside controls of the same image.

    A mean over a batch hides it: one exact copy among 500 images raises their mean by little.

    Args:
        index: which of the true images.
        value: its score.
        control: the score of the best blind guess of it that looks at no update.
        floor: the score of its own mean color; None where that is unknown.
        luck: skill of the best image of the same attack on another client's update; 0 where there is none, or where it is
            below a blind guess.
    """

    index: int
    value: float
    control: float
    floor: float | None
    luck: float


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}.{nearest(name, METRICS)} Metrics: {', '.join(METRICS)}.")


def _pixels(images: Images) -> Images:
    return images.detach().cpu().float().clamp(0, 1)


def _matched(found: Tensor, originals: Originals, grid: PatchGrid | None) -> Originals:
    """Return what was found of each original, grey where there is nothing."""
    if found.shape[1:] != originals.shape[1:]:
        raise ValueError(f"found images of shape {tuple(found.shape[1:])}, true ones {tuple(originals.shape[1:])}")
    broken = int((~torch.isfinite(found)).sum())
    if broken:
        raise ValueError(f"{broken} of {found.numel()} found pixel values are not finite")
    return _arranged(_pixels(found), originals, grid)


def _arranged(candidates: Found, originals: Originals, grid: PatchGrid | None) -> Originals:
    """Return the candidate of each original, image by image or, with a grid, patch by patch."""
    matched = match(candidates, originals)
    if grid is not None:
        return grid.join(match_patches(grid.cut(candidates), grid.cut(originals), matched))
    rows = blind.grey(originals)
    for index, candidate in enumerate(matched):
        if candidate is not None:
            rows[index] = candidates[candidate]
    return rows


def _score(metric: Metric, found: Tensor, truth: Truth, head_inputs: HeadInputs) -> Score:
    """Return the score of what was found; of a kind whose items are paired, each beside its true one."""
    paired = metric.kind.is_paired
    try:
        true = metric.kind.truth(truth, head_inputs)
        if paired:
            values = tuple(metric.function(*pair) for pair in zip(found, *true, strict=True))
        else:
            values = metric.function(found, *true)
    except MetricUnavailableError as error:
        return Score(None, None, metric.worse, str(error))
    return Score((math.fsum if paired else sum)(values) / len(values), values, metric.worse)


def _unknown_inputs() -> Features:
    raise MetricUnavailableError("the true head inputs are not known")


def score(
    names: Sequence[str],
    finding: Finding,
    truth: Truth,
    head_inputs: HeadInputs = _unknown_inputs,
    grid: PatchGrid | None = None,
) -> dict[str, Score]:
    """Return those of the named metrics that apply to what the finding holds, in the order of `names`.

    Pixels are clamped to [0, 1] and compared as float32 at their native size. A finding may hold fewer or more images,
    soft labels or features than the truth; of more, the best assignment counts, which flatters.

    Args:
        names: metrics.
        finding: what the attack claims.
        truth: the images and labels behind the update.
        head_inputs: returns the head input of every true image, or raises MetricUnavailableError; asked where a metric
            needs it.
        grid: compares images patch by patch, in whatever order the patches were found; None compares them as they are.

    Raises:
        ValueError: an unknown metric; images of another shape than the true ones; pixels, soft labels or features that
            are not finite.
    """
    _check_names(names)
    truth = replace(truth, images=_pixels(truth.images))
    held: dict[FindingKind, Tensor] = {}
    for kind in KINDS.values():
        found = kind.held(finding)
        if found is None:
            continue
        if kind.is_paired:
            found = _matched(found, truth.images, grid)
        elif not bool(torch.isfinite(found).all()):
            raise ValueError(f"some found {kind.name} are not finite")
        held[kind] = found
    metrics = {name: METRICS[name] for name in names}
    return {
        name: _score(metric, held[metric.kind], truth, head_inputs)
        for name, metric in metrics.items()
        if metric.kind in held
    }


def controls(
    names: Sequence[str],
    truth: Truth,
    auxiliary: Auxiliary | None,
    wrong: Finding | None,
    head_inputs: HeadInputs = _unknown_inputs,
) -> dict[str, Scores]:
    """Return what blind guesses score on the same truth: control -> metric -> value.

    `grey` and `own_mean` are images, `dataset_mean` is the mean image and the mean head input of other data. `prior` and
    `uniform` are the best label guesses from the class frequencies of other data and from the mere list of classes; as a soft
    label, the frequencies themselves, and 1 / C. `chance` is the label recall that `prior` has on average over batches.
    `wrong_update` is the same attack on another client's update. Metrics that are unavailable are left out, and controls
    without any metric too.

    Args:
        names: metrics; give those that the finding was scored on.
        truth: the images and labels behind the update.
        auxiliary: other data; None leaves `dataset_mean`, `prior`, `uniform` and `chance` out.
        wrong: what the attack found in another client's update; None leaves `wrong_update` out.
        head_inputs: see `score`.

    Raises:
        ValueError: see `score`.
    """
    return control_values(names, control_scores(names, truth, auxiliary, wrong, head_inputs), truth, auxiliary)


def control_values(
    names: Sequence[str], scored: Mapping[str, Mapping[str, Score]], truth: Truth, auxiliary: Auxiliary | None
) -> dict[str, Scores]:
    """Return the values of scored controls, and `chance`, which is an expectation and guesses for no batch."""
    found = {control: _values(scores) for control, scores in scored.items()}
    for name in names:
        chance = METRICS[name].chance
        if auxiliary is not None and chance is not None:
            found.setdefault("chance", {})[name] = chance(truth, auxiliary)
    return {control: values for control, values in found.items() if values}


def control_scores(
    names: Sequence[str],
    truth: Truth,
    auxiliary: Auxiliary | None,
    wrong: Finding | None,
    head_inputs: HeadInputs = _unknown_inputs,
    grid: PatchGrid | None = None,
) -> dict[str, dict[str, Score]]:
    """Return the controls that guess for a batch, with one value per true image where there is one; see `controls`.

    With a grid, images are arranged patch by patch, as in `score`.
    """
    _check_names(names)
    truth = replace(truth, images=_pixels(truth.images))
    found: dict[str, dict[str, Score]] = {}
    for kind in KINDS.values():
        metrics = {name: METRICS[name] for name in names if METRICS[name].kind is kind}
        for control, guess in _guesses(kind, truth, auxiliary, grid).items() if metrics else ():
            own = found.setdefault(control, {})
            own |= {name: _score(metric, guess, truth, head_inputs) for name, metric in metrics.items()}
        for name, metric in metrics.items():
            values = metric.blind(truth, auxiliary) if metric.blind is not None and auxiliary is not None else {}
            for control, value in values.items():
                found.setdefault(control, {})[name] = Score(value, None, metric.worse)
    if wrong is not None:
        found["wrong_update"] = score(names, wrong, truth, head_inputs, grid)
    order = [*CONTROL_TITLES, *found]  # records and reports have them in the order of their titles
    return {control: found[control] for control in sorted(found, key=order.index)}


def _guesses(kind: FindingKind, truth: Truth, auxiliary: Auxiliary | None, grid: PatchGrid | None) -> dict[str, Tensor]:
    """Return what blind guessers would claim of a kind; paired items are in the order of the true ones, or in the best."""
    found = {control: guessed(truth, auxiliary) for control, guessed in kind.guesses.items()}
    guesses = {control: guess for control, guess in found.items() if guess is not None}
    if kind.is_paired:
        guesses = {control: _pixels(guess) for control, guess in guesses.items()}
        if grid is not None:
            guesses = {control: _arranged(guess, truth.images, grid) for control, guess in guesses.items()}
    return guesses


def best_examples(scores: Mapping[str, Score], controls: Mapping[str, Mapping[str, Score]]) -> dict[str, BestExample]:
    """Return the image that is farthest beyond its own blind controls, by metric.

    Args:
        scores: of the finding.
        controls: of the same batch; see `control_scores`.
    """
    found = {}
    for name, own in scores.items():
        examples = {c: s[name].per_example for c, s in controls.items() if name in s}
        blind_ones = [values for c, values in examples.items() if values and c not in {*FLOORS, "wrong_update"}]
        if not METRICS[name].kind.is_paired or own.per_example is None or not blind_ones:
            continue
        best = [(max if own.worse == "higher" else min)(values) for values in zip(*blind_ones, strict=True)]
        skills = [skill(value, control, own.worse) for value, control in zip(own.per_example, best, strict=True)]
        index = max(range(len(skills)), key=skills.__getitem__)
        floors = [values[index] for c, values in examples.items() if values and c in FLOORS]
        wrong = examples.get("wrong_update") or ()
        luck = max((skill(value, control, own.worse) for value, control in zip(wrong, best, strict=False)), default=0.0)
        found[name] = BestExample(
            index, own.per_example[index], best[index], floors[0] if floors else None, max(0.0, luck)
        )
    return found


def _values(scores: Mapping[str, Score]) -> Scores:
    return {name: score.value for name, score in scores.items() if score.value is not None}
