"""The factor of a classifier's gradient whose recipe is not known, from the counts that it would mean.

With p the mean probabilities, n the counts of B images and s the unknown factor, the bias gradient is (p - n / B) / s. Where
there are fewer images than classes some classes have none, and these show p up to the factor. Otherwise each number of
images of the least frequent class gives a factor, and with it expected counts of all classes, which must be near to whole
numbers. The likeliest factor has the largest

    log P(s) = (C - 1) log s - misfit / 2 + log P(n),

misfit the squared distance of the expected counts from whole ones in their covariance, and P(n) the probability of these counts
where classes are even or uneven (a mixture of Dirichlet distributions). The first term is the density of what s divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim_attacks.head.classifier import ClassVector, HeadGradient, References

_MOST_CANDIDATES = 25
_REFINEMENTS, _LARGEST_CHANGE = 2, 3.0  # of a candidate, and its factor in one of them
_CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of the Dirichlet distributions of the class frequencies
_TINY = torch.finfo(torch.float32).tiny


class Fit(NamedTuple):
    """Whole counts that a gradient means where its factor is one.

    Args:
        counts: one a class.
        confidence: probability that all are right.
        misfit: squared distance of the expected counts from these, in their covariance.
        factor: of the gradient, with which the misfit would be least for these counts.
    """

    counts: Tensor
    confidence: float
    misfit: float
    factor: float


class Scaled(NamedTuple):
    """A gradient times the likeliest factor.

    Args:
        head: the gradient.
        probability: that the factor is right.
        likelihood: its logarithm, up to a constant.
    """

    head: HeadGradient
    probability: float
    likelihood: float


class _Candidate(NamedTuple):
    factor: float
    counts: tuple[int, ...]
    likelihood: float


def rescale(head: HeadGradient, known: References, count: int, fit: Callable[[HeadGradient], Fit]) -> Scaled:
    """Return a gradient of unknown factor times the likeliest one.

    Args:
        head: the gradient.
        known: reference images.
        count: images behind the gradient.
        fit: returns the counts that a gradient means.
    """
    factors = _factors(head.residual, known.logits.softmax(1).mean(0), count)
    judged = [_judge(head, factor, fit) for factor in factors]
    best = max(judged, key=lambda candidate: candidate.likelihood)
    rivals = {candidate.counts: candidate.likelihood for candidate in judged}
    rivals[best.counts] = best.likelihood
    total = sum(math.exp(likelihood - best.likelihood) for likelihood in rivals.values())
    return Scaled(head.scaled(best.factor), 1 / total, best.likelihood)


def _factors(residual: ClassVector, shares: ClassVector, count: int) -> list[float]:
    """Return the factor that suits absent classes, and those of one or more images in the least frequent class."""
    ratios = (residual / shares).sort(descending=True)
    absent, least = ratios.values[: max(len(residual) - count, 1)].median(), int(ratios.indices[0])
    most = math.ceil(count * float(shares[least])) - 1
    numbers = torch.linspace(1, most, min(most, _MOST_CANDIDATES)).round() if most > 0 else torch.zeros(0)
    present = (shares[least] - numbers / count) / residual[least].clamp_min(_TINY)
    return [1 / max(float(absent), _TINY), *present.tolist()]


def _judge(head: HeadGradient, factor: float, fit: Callable[[HeadGradient], Fit]) -> _Candidate:
    """Return a candidate with its factor refined for its own counts."""
    found = fit(head.scaled(factor))
    for _ in range(_REFINEMENTS):
        if not 1 / _LARGEST_CHANGE < found.factor < _LARGEST_CHANGE:
            break
        factor *= found.factor
        found = fit(head.scaled(factor))
    freedom = len(found.counts) - 1
    likelihood = freedom * math.log(factor) - found.misfit / 2 + _log_probability(found.counts)
    return _Candidate(factor, tuple(found.counts.tolist()), likelihood)


def _log_probability(counts: Tensor) -> float:
    """Return the log probability of class counts, up to a constant, under a mixture of Dirichlet-multinomial distributions."""
    whole, classes = counts.double(), len(counts)
    concentrations = torch.tensor(_CONCENTRATIONS, dtype=torch.float64)
    total = torch.lgamma(classes * concentrations) - torch.lgamma(classes * concentrations + whole.sum())
    each = (
        torch.lgamma(whole[:, None] + concentrations) - torch.lgamma(concentrations) - torch.lgamma(whole + 1)[:, None]
    )
    return float(torch.logsumexp(total + each.sum(0), 0))
