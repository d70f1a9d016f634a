"""Scores of a finding against the truth, and the same scores of blind guesses.

One assignment of found to true pictures serves every image metric; originals that nothing was found for score as grey. Soft
labels and features have assignments of their own, since an attack may find one and not the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedsim.errors import nearest
from fedsim.exchange import Finding, Images, Truth
from fedsim.metrics import blind, feature, image, label
from fedsim.metrics.blind import Auxiliary
from fedsim.metrics.feature import Features
from fedsim.metrics.matching import Found, Originals, match, match_patches
from fedsim.metrics.skill import FLOORS, Direction, skill
from fedsim.metrics.unavailable import MetricUnavailableError

if TYPE_CHECKING:
    from fedsim.models import PatchGrid

HeadInputs = Callable[[], Features]
Scores = dict[str, float]

PSNR_CAP = 150.0
"""Decibels that an exact copy scores in records: JSON has no infinity."""


@dataclass(frozen=True)
class Score:
    """One metric of one finding.

    Args:
        value: the mean over the true pictures; None when the metric is unavailable.
        per_example: one value per true picture, in the truth's order; None when the metric is unavailable.
        worse: the direction that means more leakage.
        unavailable: why there is no value.
    """

    value: float | None
    per_example: tuple[float, ...] | None
    worse: Direction
    unavailable: str | None = None


@dataclass(frozen=True)
class BestExample:
    """The picture of a batch that a finding shows best, beside controls of the same picture.

    A mean over a batch hides it: one exact copy among 500 pictures raises their mean by little.

    Args:
        index: which of the true pictures.
        value: its score.
        control: the score of the best blind guess of it that looks at no update.
        floor: the score of its own mean color; None where that is unknown.
        luck: skill of the best picture of the same attack on another client's update; 0 where there is none, or where it is
            below a blind guess.
    """

    index: int
    value: float
    control: float
    floor: float | None
    luck: float


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Args:
        function: for images, of one found and one true picture; else of all found and all true ones, with one value per
            true picture.
        worse: the direction that means more leakage.
        summary: one line for `fedsim list`.
        recovers: what a finding must hold for the metric to apply.
    """

    function: Callable[[Any, Any], Any]
    worse: Direction
    summary: str
    recovers: Literal["images", "labels", "soft labels", "features"]


def _psnr(found: image.Image, true: image.Image) -> float:
    return min(image.psnr(found, true, 1.0), PSNR_CAP)


def _ssim(found: image.Image, true: image.Image) -> float:
    return image.ssim(found, true, 1.0)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr": Metric(_psnr, "higher", f"peak signal-to-noise ratio in dB, at most {PSNR_CAP:g}", "images"),
        "ssim": Metric(_ssim, "higher", "structural similarity; 1 is an exact copy", "images"),
        "lpips": Metric(image.lpips, "lower", "learned perceptual distance (AlexNet); needs its weights", "images"),
        "fft2d": Metric(image.fft2d, "lower", "cosine distance of the amplitude spectra", "images"),
        "label_recall": Metric(
            label.recalled, "higher", "share of the batch's labels found, repeats counted", "labels"
        ),
        "soft_label_error": Metric(
            label.soft_label_errors, "lower", "largest error of a soft label's probabilities; 0 is exact", "soft labels"
        ),
        "feature_error": Metric(
            feature.feature_errors, "lower", "relative l2 error of the head's input; 1 is what zeros score", "features"
        ),
    }
)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}.{nearest(name, METRICS)} Metrics: {', '.join(METRICS)}.")


def _pixels(images: Images) -> Images:
    return images.detach().cpu().float().clamp(0, 1)


def _matched(finding: Finding, truth: Truth, grid: PatchGrid | None) -> Images | None:
    """Return what was found of each original, grey where there is nothing; None when the finding holds no pictures."""
    found = finding.images
    if found is None:
        return None
    if found.shape[1:] != truth.images.shape[1:]:
        raise ValueError(f"found pictures of shape {tuple(found.shape[1:])}, true ones {tuple(truth.images.shape[1:])}")
    broken = int((~torch.isfinite(found)).sum())
    if broken:
        raise ValueError(f"{broken} of {found.numel()} found pixel values are not finite")
    return _arranged(_pixels(found), _pixels(truth.images), grid)


def _arranged(candidates: Found, originals: Originals, grid: PatchGrid | None) -> Originals:
    """Return the candidate of each original, picture by picture or, with a grid, patch by patch."""
    matched = match(candidates, originals)
    if grid is not None:
        return grid.join(match_patches(grid.cut(candidates), grid.cut(originals), matched))
    rows = blind.grey(originals)
    for index, candidate in enumerate(matched):
        if candidate is not None:
            rows[index] = candidates[candidate]
    return rows


def _image_score(name: str, guesses: Images, originals: Images) -> Score:
    metric = METRICS[name]
    try:
        values = tuple(metric.function(guess, original) for guess, original in zip(guesses, originals, strict=True))
    except MetricUnavailableError as error:
        return Score(None, None, metric.worse, str(error))
    return Score(math.fsum(values) / len(values), values, metric.worse)


def _true(metric: Metric, truth: Truth, head_inputs: HeadInputs) -> tuple[Any, ...]:
    """Return what a metric of all found and all true items compares the found ones with."""
    if metric.recovers == "features":
        return (head_inputs(),)
    return (truth.labels, truth.pictures) if metric.recovers == "labels" else (truth.labels,)


def _set_score(name: str, found: Tensor, truth: Truth, head_inputs: HeadInputs) -> Score:
    metric = METRICS[name]
    try:
        values = metric.function(found, *_true(metric, truth, head_inputs))
    except MetricUnavailableError as error:
        return Score(None, None, metric.worse, str(error))
    return Score(sum(values) / len(values), values, metric.worse)


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

    Pixels are clamped to [0, 1] and compared as float32 at their native size. A finding may hold fewer or more pictures,
    soft labels or features than the truth; of more, the best assignment counts, which flatters.

    Args:
        names: metrics.
        finding: what the attack claims.
        truth: the pictures and labels behind the update.
        head_inputs: returns the head input of every true picture, or raises MetricUnavailableError; asked where a metric
            needs it.
        grid: compares pictures patch by patch, in whatever order the patches were found; None compares them as they are.

    Raises:
        ValueError: an unknown metric; pictures of another shape than the true ones; pixels, soft labels or features that
            are not finite.
    """
    _check_names(names)
    guesses = _matched(finding, truth, grid)
    originals = _pixels(truth.images)
    labels = finding.labels
    soft = labels if labels is not None and labels.ndim == 2 else None
    held = {"labels": labels, "soft labels": soft, "features": finding.features}
    for what, tensor in held.items():
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"some found {what} are not finite")
    scores = {}
    for name in names:
        recovers = METRICS[name].recovers
        found = held.get(recovers)
        if recovers == "images" and guesses is not None:
            scores[name] = _image_score(name, guesses, originals)
        if found is not None:
            scores[name] = _set_score(name, found, truth, head_inputs)
    return scores


def controls(
    names: Sequence[str],
    truth: Truth,
    auxiliary: Auxiliary | None,
    wrong: Finding | None,
    head_inputs: HeadInputs = _unknown_inputs,
) -> dict[str, Scores]:
    """Return what blind guesses score on the same truth: control -> metric -> value.

    `grey` and `own_mean` are pictures, `dataset_mean` is the mean picture and the mean head input of other data. `prior` and
    `uniform` are the best label guesses from the class frequencies of other data and from the mere list of classes; as a soft
    label, the frequencies themselves, and 1 / C. `chance` is the label recall that `prior` has on average over batches.
    `wrong_update` is the same attack on another client's update. Metrics that are unavailable are left out, and controls
    without any metric too.

    Args:
        names: metrics; give those that the finding was scored on.
        truth: the pictures and labels behind the update.
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
    if auxiliary is not None and "label_recall" in names:
        chance = blind.expected_recall(len(truth.labels), blind.frequencies(auxiliary.labels))
        found["chance"] = {"label_recall": chance}
    return {control: values for control, values in found.items() if values}


def control_scores(
    names: Sequence[str],
    truth: Truth,
    auxiliary: Auxiliary | None,
    wrong: Finding | None,
    head_inputs: HeadInputs = _unknown_inputs,
    grid: PatchGrid | None = None,
) -> dict[str, dict[str, Score]]:
    """Return the controls that guess for a batch, with one value per true picture where there is one; see `controls`.

    With a grid, pictures are arranged patch by patch, as in `score`.
    """
    _check_names(names)
    originals = _pixels(truth.images)
    pictures = {"grey": blind.grey(originals), "own_mean": blind.own_mean(originals)}
    if auxiliary is not None:
        pictures["dataset_mean"] = _pixels(blind.dataset_mean(originals, auxiliary.image))
    if grid is not None:
        pictures = {control: _arranged(guesses, originals, grid) for control, guesses in pictures.items()}
    image_names = [name for name in names if METRICS[name].recovers == "images"]
    found = {
        control: {name: _image_score(name, guesses, originals) for name in image_names}
        for control, guesses in pictures.items()
    }
    if auxiliary is not None and auxiliary.features is not None and "feature_error" in names:
        rows = auxiliary.features.expand(len(originals), -1)
        found["dataset_mean"] |= {"feature_error": _set_score("feature_error", rows, truth, head_inputs)}
    if wrong is not None:
        found["wrong_update"] = score(names, wrong, truth, head_inputs, grid)
    if auxiliary is not None:
        found |= _label_controls(names, truth, auxiliary)
    return found


def best_examples(scores: Mapping[str, Score], controls: Mapping[str, Mapping[str, Score]]) -> dict[str, BestExample]:
    """Return the picture that is farthest beyond its own blind controls, by metric.

    Args:
        scores: of the finding.
        controls: of the same batch; see `control_scores`.
    """
    found = {}
    for name, own in scores.items():
        examples = {c: s[name].per_example for c, s in controls.items() if name in s}
        blind_ones = [values for c, values in examples.items() if values and c not in {*FLOORS, "wrong_update"}]
        if METRICS[name].recovers != "images" or own.per_example is None or not blind_ones:
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


def _label_controls(names: Sequence[str], truth: Truth, auxiliary: Auxiliary) -> dict[str, dict[str, Score]]:
    frequencies, classes = blind.frequencies(auxiliary.labels), auxiliary.num_classes
    known = {"prior": frequencies, "uniform": blind.uniform(auxiliary.labels)}
    rows = {"prior": frequencies, "uniform": dict.fromkeys(range(classes), 1 / classes)}
    found: dict[str, dict[str, Score]] = {}
    for control in known:
        scores = found.setdefault(control, {})
        if "label_recall" in names:
            recall = blind.blind_recall(truth.labels, known[control])
            scores["label_recall"] = Score(recall, None, METRICS["label_recall"].worse)
        if "soft_label_error" in names:
            guess = blind.same_label(rows[control], len(truth.labels), classes)
            scores["soft_label_error"] = _set_score("soft_label_error", guess, truth, _unknown_inputs)
    return found


def _values(scores: Mapping[str, Score]) -> Scores:
    return {name: score.value for name, score in scores.items() if score.value is not None}
