"""The metrics, one row each.

The thresholds are conventions, stated in the report's legend; `fedsim.metrics.ratings` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedsim.exchange import Truth
from fedsim.findings import blind
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import FEATURES, IMAGES, LABELS, MEMBERSHIP, SOFT_LABELS
from fedsim.metrics import feature, image, label, membership
from fedsim.metrics.metric import Metric

PSNR_CAP = 150.0
"""Decibels that an exact copy scores in records: JSON has no infinity."""


def _psnr(found: image.Image, true: image.Image) -> float:
    return min(image.psnr(found, true, 1.0), PSNR_CAP)


def _ssim(found: image.Image, true: image.Image) -> float:
    return image.ssim(found, true, 1.0)


def _blind_recalls(truth: Truth, auxiliary: Auxiliary) -> dict[str, float]:
    known = {"prior": blind.frequencies(auxiliary.labels), "uniform": blind.uniform(auxiliary.labels)}
    return {control: blind.blind_recall(truth.labels, prior) for control, prior in known.items()}


def _mean_recall(truth: Truth, auxiliary: Auxiliary) -> float:
    return blind.expected_recall(len(truth.labels), blind.frequencies(auxiliary.labels))


_METRICS = {
    "psnr": Metric(
        title="PSNR",
        kind=IMAGES,
        summary=f"peak signal-to-noise ratio in dB, at most {PSNR_CAP:g}",
        function=_psnr,
        worse="higher",
        digits=1,
        unit=" dB",
        # 1 dB is what noise does to the best control; 6 dB means a quarter of its squared error.
        partial=1.0,
        leaks=6.0,
    ),
    "ssim": Metric(
        title="SSIM",
        kind=IMAGES,
        summary="structural similarity; 1 is an exact copy",
        function=_ssim,
        worse="higher",
        partial=0.05,
        leaks=0.2,
    ),
    "lpips": Metric(
        title="LPIPS",
        kind=IMAGES,
        summary="learned perceptual distance (AlexNet); needs its weights",
        function=image.lpips,
        worse="lower",
        partial=0.05,
        leaks=0.2,
    ),
    "fft2d": Metric(
        title="FFT2D",
        kind=IMAGES,
        summary="cosine distance of the amplitude spectra",
        function=image.fft2d,
        worse="lower",
        digits=4,
    ),
    "label_recall": Metric(
        title="Label recall",
        short="recall",
        kind=LABELS,
        summary="share of the batch's labels found, repeats counted",
        function=label.recalled,
        worse="higher",
        digits=2,
        partial=0.15,
        leaks=0.5,
        ceiling=1.0,
        blind=_blind_recalls,
        chance=_mean_recall,
        counts_hits=True,
    ),
    "soft_label_error": Metric(
        title="Soft-label error",
        short="soft-label error",
        kind=SOFT_LABELS,
        summary="largest error of a soft label's probabilities; 0 is exact",
        function=label.soft_label_errors,
        worse="lower",
        digits=4,
        # Half the control's error still tells which class is likely; a tenth tells the proportions of a mixture too.
        partial=0.5,
        leaks=0.9,
        ceiling=0.0,
        hit_chance="label_recall",  # whoever knows the distribution names the class
    ),
    "feature_error": Metric(
        title="Feature error",
        short="feature error",
        kind=FEATURES,
        summary="relative l2 error of the head's input; 1 is what zeros score",
        function=feature.feature_errors,
        worse="lower",
        digits=4,
        partial=0.5,
        leaks=0.9,
        ceiling=0.0,
    ),
    "pair_accuracy": Metric(
        title="Pair accuracy",
        short="pair accuracy",
        kind=MEMBERSHIP,
        summary="share of pairs in which the image that was trained on is told from the other",
        function=membership.hits,
        worse="higher",
        digits=2,
        partial=0.15,
        leaks=0.5,
        ceiling=1.0,
        chance=lambda truth, auxiliary: membership.COIN,
        counts_hits=True,
    ),
}
METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)
"""Name -> metric, in the order of `fedsim.scenario.METRICS`."""
