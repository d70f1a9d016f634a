"""How many pictures of each class an update holds, from the gradient at the classifier.

With p the predicted probabilities, the bias gradient is mean(p) - n / B: the counts n follow once mean(p) is known. The weight
gradient gives it: for the centered logits z, class sums S_c of z obey

    S_c - n_c zbar = B (residual_c zbar + cov(p_c, z) - T_c),     T_c = mean of (p_c - y_c) z,

and pictures of one class deviate from the batch's mean logits zbar by little and in no common direction, beyond what the
class itself explains. Weighted least squares over classes, with a prior from reference pictures, gives zbar; softmax around
zbar gives mean(p). Signed features and repeated labels are no obstacle.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import HardLabels, Observation
from fedsim_attacks._head import ClassVector, HeadGradient, References, read_head, reference_pictures

_ROUNDS, _DAMPING = 20, 0.5
_SYNTHETIC_DOUBT, _REAL_DOUBT = 0.3, 0.1  # variance of the batch's mean around the references', in a picture's variance
_SOFTENING = 0.5  # pictures, added to each class's count in its weight
_MODEL_ERROR = 0.1  # counts; what the approximations leave beside noise
_SYNTHETIC_MISFIT, _REAL_MISFIT = 1.0, 0.5  # how badly references tell a trained model's classes apart
_MOST_CLASSES = 256  # candidates of the integer search
_MOST_SWAPS = 1000
DOUBTFUL = 0.9


class LabelCounts(NamedTuple):
    """Class counts of the pictures behind an update.

    Args:
        counts: whole numbers, one a class.
        expected: what was rounded.
        confidence: probability that all counts are right, if the model of the classifier's inputs holds.
        noise: standard deviation of a gradient entry, from identities.
        cautions: reasons to doubt.
    """

    counts: Tensor
    expected: ClassVector
    confidence: float
    noise: float
    cautions: tuple[str, ...]

    @property
    def labels(self) -> HardLabels:
        """One label a picture, in class order."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)


class _Estimate(NamedTuple):
    expected: ClassVector
    deviations: Tensor  # (sample class): mean of outer products is the covariance of the counts


def picture_count(observation: Observation) -> int:
    """Return how many pictures the labels belong to: the batch of a gradient, everything a delta's client trained on."""
    if observation.update.kind == "gradient":
        if observation.batch_size is None:
            raise AttackRefusedError("batch_size is not granted; counts need their sum.")
        return observation.batch_size
    if observation.update.num_examples < 1:
        raise AttackRefusedError("the client reported no number of examples; counts need their sum.")
    epochs = observation.training.local_epochs if observation.training else None
    return observation.update.num_examples // (epochs or 1)


def count_labels(observation: Observation, references: int, generator: torch.Generator) -> LabelCounts:
    """Return the class counts behind an update.

    Args:
        observation: what the attack may know.
        references: pictures to run through the model, auxiliary ones where granted.
        generator: draws the others.

    Raises:
        AttackRefusedError: the classifier's gradient was not shared, or the client's optimizer is not linear.
    """
    count = picture_count(observation)
    look_up = functools.cache(lambda: reference_pictures(observation, references, generator))
    head = read_head(observation, look_up)
    cautions = []
    if head.is_derived:
        cautions.append(
            "The classifier's bias gradient is missing; what stands in for it makes the confidence too high."
        )
    if count == 1:
        counts, confidence = _single(head.residual)
        expected = counts.double()
    else:
        if not head.is_scaled:
            head = head.scaled(1 / _scale(head, look_up(), count))
            cautions.append(
                "The recipe that scales this update is not granted; the scale was set so that classes without a picture "
                "agree with the reference pictures."
            )
        estimate = _estimate(head, look_up(), count)
        counts, confidence = _nearest_counts(estimate, head, count, _model_error(look_up(), count))
        expected = estimate.expected
    if confidence < DOUBTFUL:
        cautions.append(f"The counts as a whole are right with a probability of about {confidence:.0%}.")
    return LabelCounts(counts, expected, confidence, head.noise, tuple(cautions))


def _single(residual: ClassVector) -> tuple[Tensor, float]:
    """Return the counts of one picture: its class alone has a negative residual."""
    ascending = residual.sort()
    counts = torch.zeros(len(residual), dtype=torch.int64)
    counts[ascending.indices[0]] = 1
    least, second = ascending.values[:2].clamp_max(0).tolist()
    return counts, 1 - second / least if least else 0.0


def _scale(head: HeadGradient, known: References, count: int) -> float:
    """Return the factor of a gradient, given that its absent classes must show the reference probabilities."""
    ratios = (head.residual / known.logits.softmax(1).mean(0)).sort(descending=True).values
    absent = ratios[: max(len(ratios) - count, 1)].median()
    return max(float(absent), torch.finfo(torch.float32).tiny)


def _estimate(head: HeadGradient, known: References, count: int) -> _Estimate:
    logits = known.logits - known.logits.mean(1, keepdim=True)
    class_means = known.shares.T @ logits
    prior = 1 / ((_REAL_DOUBT if known.is_real else _SYNTHETIC_DOUBT) + 1 / count)
    shares = torch.full_like(head.residual, 1 / len(head.residual))
    center, pull = shares @ class_means, count * head.residual
    for _ in range(_ROUNDS):
        mean, weights = shares @ class_means, known.shares @ shares
        around = logits - mean
        probabilities = (center + around).softmax(1)
        expected = count * (weights @ probabilities - head.residual)
        filled = expected.clamp_min(0)
        leverage = pull / (filled + _SOFTENING)
        target, precision = prior * mean, prior
        moment = head.with_logits(leverage)
        if moment is not None:
            covariance = (weights * (probabilities @ leverage)) @ around * (count - 1) / count
            target = target + count * (moment - covariance) + (leverage * filled) @ (class_means - mean)
            precision = prior + float(leverage @ pull)
        center = (1 - _DAMPING) * center + _DAMPING * target / precision
        shares = (1 - _DAMPING) * shares + _DAMPING * _onto_simplex(expected, count) / count
    return _Estimate(expected, _deviations(weights, around, probabilities, precision, count))


def _model_error(known: References, count: int) -> float:
    """Return the standard deviation of a count that the approximations leave, larger where the model tells classes apart."""
    opinions = known.shares.T @ known.logits.softmax(1)
    classes = len(opinions)
    sharpness = (float(opinions.diagonal().sum()) - 1) / (classes - 1)
    misfit = _REAL_MISFIT if known.is_real else _SYNTHETIC_MISFIT
    return math.hypot(_MODEL_ERROR, misfit * sharpness * count / classes)


def _deviations(weights: Tensor, around: Tensor, probabilities: Tensor, precision: float, count: int) -> Tensor:
    """Return rows whose outer products sum to the covariance of the expected counts."""
    average = weights @ probabilities
    # How the mean softmax follows the logits, applied to each reference picture's deviation.
    linear = around * average - (around @ probabilities.T * weights) @ probabilities
    curved = probabilities - average - linear
    roots = count * weights.sqrt()[:, None]
    return torch.cat([roots * linear / precision**0.5, roots * curved / count**0.5])


def _nearest_counts(estimate: _Estimate, head: HeadGradient, count: int, model_error: float) -> tuple[Tensor, float]:
    """Return the whole counts nearest to the expected ones in their covariance, and how likely those are all right."""
    active = estimate.expected.topk(min(_MOST_CLASSES, len(estimate.expected))).indices
    expected, rows = estimate.expected[active], estimate.deviations[:, active]
    spread = model_error**2 + (count * head.noise) ** 2
    precision = torch.linalg.inv(rows.T @ rows + spread * torch.eye(len(active), dtype=rows.dtype))
    whole = _largest_remainder(expected, count)
    least = (-count * head.residual[active] - 1).floor()  # mean(p) is not negative
    for _ in range(_MOST_SWAPS):
        costs = _swap_costs(whole, expected, precision, least)
        best = int(costs.argmin())
        if not costs.flatten()[best] < 0:
            break
        whole = whole.clone()
        whole[best // len(active)] -= 1
        whole[best % len(active)] += 1
    confidence = 1 / (1 + float((-costs / 2).exp().sum()))
    counts = torch.zeros(len(estimate.expected), dtype=torch.int64)
    counts[active] = whole.long()
    return counts, confidence


def _swap_costs(whole: Tensor, expected: Tensor, precision: Tensor, least: Tensor) -> Tensor:
    """Return what moving one picture from the class of the row to that of the column adds to the squared distance."""
    slope, own = 2 * precision @ (whole - expected), precision.diagonal()
    costs = slope[None] - slope[:, None] + own[:, None] + own[None] - 2 * precision
    allowed = (whole >= 1) & (whole > least)
    return costs.masked_fill(~allowed[:, None] | torch.eye(len(whole), dtype=torch.bool), torch.inf)


def _largest_remainder(expected: Tensor, count: int) -> Tensor:
    projected = _onto_simplex(expected, count)
    whole = projected.floor()
    rest = round(count - float(whole.sum()))
    whole[(projected - whole).topk(rest).indices] += 1
    return whole


def _onto_simplex(values: Tensor, total: int) -> Tensor:
    """Return the nearest point with entries of at least 0 that sum to `total`."""
    descending = values.sort(descending=True).values
    excess = (descending.cumsum(0) - total) / torch.arange(1, len(values) + 1, dtype=values.dtype)
    return (values - excess[int((descending > excess).nonzero()[-1])]).clamp_min(0)
