"""Scores of a finding against the truth, and the same scores of blind guesses.

One assignment of found to true pictures serves every image metric; originals that nothing was found for score as grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.errors import nearest
from fedsim.exchange import Finding, HardLabels, Images, Truth
from fedsim.metrics import blind, image, label
from fedsim.metrics.matching import match
from fedsim.metrics.skill import Direction

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
class Metric:
    """A row of `METRICS`.

    Args:
        function: for images, of one found and one true picture; for labels, of the found and the true labels.
        worse: the direction that means more leakage.
        summary: one line for `fedsim list`.
        recovers: what a finding must hold for the metric to apply.
    """

    function: Callable[[Any, Any], float]
    worse: Direction
    summary: str
    recovers: Literal["images", "labels"]


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
            label.label_recall, "higher", "share of the batch's labels found, repeats counted", "labels"
        ),
    }
)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}.{nearest(name, METRICS)} Metrics: {', '.join(METRICS)}.")


def _pixels(images: Images) -> Images:
    return images.detach().cpu().float().clamp(0, 1)


def _matched(finding: Finding, truth: Truth) -> Images | None:
    """Return the found picture of each original, grey where there is none; None when the finding holds no pictures."""
    found = finding.images
    if found is None:
        return None
    if found.shape[1:] != truth.images.shape[1:]:
        raise ValueError(f"found pictures of shape {tuple(found.shape[1:])}, true ones {tuple(truth.images.shape[1:])}")
    broken = int((~torch.isfinite(found)).sum())
    if broken:
        raise ValueError(f"{broken} of {found.numel()} found pixel values are not finite")
    originals, candidates = _pixels(truth.images), _pixels(found)
    rows = blind.grey(originals)
    for index, candidate in enumerate(match(candidates, originals)):
        if candidate is not None:
            rows[index] = candidates[candidate]
    return rows


def _image_score(name: str, guesses: Images, originals: Images) -> Score:
    metric = METRICS[name]
    try:
        values = tuple(metric.function(guess, original) for guess, original in zip(guesses, originals, strict=True))
    except image.MetricUnavailableError as error:
        return Score(None, None, metric.worse, str(error))
    return Score(math.fsum(values) / len(values), values, metric.worse)


def score(names: Sequence[str], finding: Finding, truth: Truth) -> dict[str, Score]:
    """Return those of the named metrics that apply to what the finding holds, in the order of `names`.

    Pixels are clamped to [0, 1] and compared as float32 at their native size. A finding may hold fewer or more pictures
    than the truth; of more, the best assignment counts, which flatters.

    Raises:
        ValueError: an unknown metric; pictures of another shape than the true ones; pixels or soft labels that are not
            finite.
    """
    _check_names(names)
    guesses = _matched(finding, truth)
    originals = _pixels(truth.images)
    if finding.labels is not None and not bool(torch.isfinite(finding.labels).all()):
        raise ValueError("some found labels are not finite")
    scores = {}
    for name in names:
        metric = METRICS[name]
        if metric.recovers == "images" and guesses is not None:
            scores[name] = _image_score(name, guesses, originals)
        if metric.recovers == "labels" and finding.labels is not None:
            shares = label.recalled(finding.labels, truth.labels)
            scores[name] = Score(metric.function(finding.labels, truth.labels), shares, metric.worse)
    return scores


def controls(
    names: Sequence[str],
    truth: Truth,
    auxiliary_mean: Float[Tensor, "channel height width"] | None,
    auxiliary_labels: HardLabels | None,
    wrong: Finding | None,
) -> dict[str, Scores]:
    """Return what blind guesses score on the same truth: control -> metric -> value.

    `grey`, `own_mean` and `dataset_mean` are pictures; `prior` and `uniform` are the best label guesses from the
    auxiliary class frequencies and from the mere list of classes; `wrong_update` is the same attack on another client's
    update. Metrics that are unavailable are left out, and controls without any metric too.

    Args:
        names: metrics; give those that the finding was scored on.
        truth: the pictures and labels behind the update.
        auxiliary_mean: mean picture of the auxiliary pool; None leaves `dataset_mean` out.
        auxiliary_labels: labels of the auxiliary pool; None leaves `prior` and `uniform` out.
        wrong: what the attack found in another client's update; None leaves `wrong_update` out.

    Raises:
        ValueError: see `score`.
    """
    _check_names(names)
    originals = _pixels(truth.images)
    pictures = {"grey": blind.grey(originals), "own_mean": blind.own_mean(originals)}
    if auxiliary_mean is not None:
        pictures["dataset_mean"] = _pixels(blind.dataset_mean(originals, auxiliary_mean))
    image_names = [name for name in names if METRICS[name].recovers == "images"]
    found = {
        control: _values({name: _image_score(name, guesses, originals) for name in image_names})
        for control, guesses in pictures.items()
    }
    if wrong is not None:
        found["wrong_update"] = _values(score(names, wrong, truth))
    if auxiliary_labels is not None and "label_recall" in names:
        for control, prior in (("prior", blind.frequencies), ("uniform", blind.uniform)):
            found[control] = {"label_recall": blind.blind_recall(truth.labels, prior(auxiliary_labels))}
    return {control: values for control, values in found.items() if values}


def _values(scores: Mapping[str, Score]) -> Scores:
    return {name: score.value for name, score in scores.items() if score.value is not None}
