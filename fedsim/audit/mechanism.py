"""An empirical check of a claimed privacy budget: the noise of one defense is drawn again and again, and tested.

Paper: Nasr, Hayes, Steinke, Balle, Tramer, Jagielski, Carlini, Terzis. "Tight Auditing of Differentially Private Machine
Learning". 2023. https://arxiv.org/abs/2302.07956 (section 4: bounds from false positives and negatives, and by mu-GDP)

Idea: of two neighboring updates, each is protected many times. A test that tells the outputs apart with false positive rate
a and false negative rate b shows that epsilon is at least log((1 - delta - b) / a). Of Gaussian noise more is known: mu is at
least Phi^-1(1 - a) + Phi^-1(1 - b), and the curve of mu gives epsilon at delta. The pair is the worst that an honest mechanism
has: an update as long as the clipping norm and its opposite (`replace`), or a zero update (`add_remove`).

Each output is projected on the difference of the two, as a whole and tensor by tensor, as soon as it is drawn. Half of the
draws choose the statistic and the threshold, the other half alone measure its errors, so nothing is chosen for its luck.

Differs from the paper: audits the protection of one update, not a training; the statistic is chosen among several, so that
noise which is missing on one tensor is noticed.

Needs: a defense that protects updates by `protect_update` alone; of one that protects local steps see
`fedsim.audit.private_step`. Cost: two protected updates a draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.defense import ClientContext, Defense, PrivacyBudget, acts_in_training
from fedsim.exchange import Update
from fedsim.gaussian_dp import gaussian_epsilon
from fedsim.seeds import seeded, torch_generator

DRAWS = 5_000
"""Of each of the two updates, unless another number is asked for."""

FEWEST_DRAWS = 100

CONFIDENCE = 0.95

# In clipping norms: longer than any update that clipping leaves alone, so that missing clipping is noticed.
_STRETCH = 10.0
_QUANTILES = np.linspace(0.002, 0.998, 499)  # of the values of a statistic: where a threshold may lie
# The inner quarter of these, where mu is measured best: few errors of either kind say little of it.
_CENTER = slice(187, 312)
_ROUNDING = 1e-9  # of a bound, which is stated rounded down

Floats = NDArray[np.float64]
Release = Literal["update", "step"]


@dataclass(frozen=True)
class MechanismCheck:
    """What draws from one defense say of the budget that it claims for one release.

    Args:
        status: `refuted` where the lower bound is above the claim; `not refuted` proves nothing; `not checked`.
        claimed: for one release.
        reason: why it was not checked.
        lower_bound: epsilon is at least this at the claimed delta, with this confidence; None where it was not checked.
        confidence: of the lower bound.
        draws: of each of the two neighbors.
        statistic: which one told the outputs apart best: `all tensors`, `likelihood` or the name of a tensor.
        release: what was drawn again: the protection of one `update`, or one local `step`.
    """

    status: Literal["refuted", "not refuted", "not checked"]
    claimed: PrivacyBudget
    reason: str | None = None
    lower_bound: float | None = None
    confidence: float | None = None
    draws: int = 0
    statistic: str | None = None
    release: Release = "update"


class Bound(NamedTuple):
    """A lower bound on epsilon, and the statistic that shows it."""

    epsilon: float
    statistic: str


class _Test(NamedTuple):
    statistic: int
    threshold: float


def check_mechanism(
    defense: Defense,
    update: Update,
    context: Callable[[], ClientContext],
    seed: int,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> MechanismCheck | None:
    """Return what draws from a defense say of its budget; None where it claims none.

    Args:
        defense: claims a budget for one update.
        update: what it gets, before it protects it.
        context: makes what its hooks get, once for each draw, so that no draw changes another one's state.
        seed: of all draws.
        draws: of each of the two updates; half of them measure.
        confidence: with which the lower bound holds.

    Raises:
        ValueError: too few draws, or an output that is not finite.
    """
    check_draws(draws)
    first = context()
    claimed = defense.budget(first)
    if claimed is None:
        return None
    reason = _obstacle(defense, claimed, update)
    if reason is not None:
        return MechanismCheck("not checked", claimed, reason)
    pair = neighbors(update, claimed.neighbors, defense.effects.clip_norm)
    difference = {name: tensor.double() - pair[1].tensors[name].double() for name, tensor in pair[0].tensors.items()}
    lengths = {name: float(tensor.norm()) for name, tensor in difference.items() if bool(tensor.any())}
    directions = {name: (difference[name] / length).flatten() for name, length in lengths.items()}
    rows = [_projections(defense, given, context, directions, seed, side, draws) for side, given in enumerate(pair)]
    is_gaussian = bool(defense.effects.noise)
    found = lower_bound(rows[1], rows[0], lengths, claimed.delta, confidence, is_gaussian)
    status: Literal["refuted", "not refuted"] = "refuted" if found.epsilon > claimed.epsilon else "not refuted"
    return MechanismCheck(status, claimed, None, found.epsilon, confidence, draws, found.statistic)


def check_draws(draws: int) -> None:
    """Refuse fewer draws than any bound can be read from.

    Raises:
        ValueError: there are too few.
    """
    if draws < FEWEST_DRAWS:
        raise ValueError(f"draws: expected at least {FEWEST_DRAWS}, got {draws}.")


def _obstacle(defense: Defense, claimed: PrivacyBudget, update: Update) -> str | None:
    """Return why a claim cannot be checked, or None."""
    if type(defense).protect_update is Defense.protect_update:
        return "it does nothing in protect_update, and computes no gradient in train_step: these alone are drawn again"
    if acts_in_training(defense):
        return "it takes part in the training, and its protect_update alone is no release that could be drawn again"
    if claimed.neighbors not in ("replace", "add_remove"):
        return f"its neighbors are {claimed.neighbors!r:.80}; replace and add_remove can be checked"
    if not math.isfinite(claimed.epsilon):
        return "it claims no finite epsilon"
    return None if any(bool(tensor.any()) for tensor in update.tensors.values()) else "the update is zero"


def neighbors(update: Update, relation: str, clip_norm: float | None) -> tuple[Update, Update]:
    """Return two neighboring updates that an honest mechanism keeps apart worst.

    Any update may be compared with another one, or with none, so this one is made longer until clipping, if there is any,
    brings it to the clipping norm.

    Args:
        update: not zero.
        relation: `replace`, against the opposite; `add_remove`, against a zero update.
        clip_norm: stated by the defense; None where it states none.
    """
    factor = max(1.0, _STRETCH * clip_norm / update.norm()) if clip_norm else _STRETCH
    opposite = -factor if relation == "replace" else 0.0
    return _scaled(update, factor), _scaled(update, opposite)


def _scaled(update: Update, factor: float) -> Update:
    return dataclasses.replace(update, tensors={name: factor * tensor for name, tensor in update.tensors.items()})


def _projections(
    defense: Defense,
    given: Update,
    context: Callable[[], ClientContext],
    directions: dict[str, Tensor],
    seed: int,
    side: int,
    draws: int,
) -> Floats:
    """Return what protected copies of one update are along a direction in each tensor, [draw tensor]."""
    found = np.empty((draws, len(directions)))
    with seeded(seed, "mechanism", side):
        for index in range(draws):
            copied = dataclasses.replace(
                given, tensors={name: tensor.clone() for name, tensor in given.tensors.items()}
            )
            sent = defense.protect_update(copied, context(), torch_generator(seed, "mechanism", side, index))
            for place, (name, direction) in enumerate(directions.items()):
                found[index, place] = float(torch.dot(sent.tensors[name].flatten().double(), direction))
    if not np.isfinite(found).all():
        raise ValueError("a protected update is not finite")
    return found


def lower_bound(
    without: Floats, with_it: Floats, lengths: dict[str, float], delta: float, confidence: float, is_gaussian: bool
) -> Bound:
    """Return a lower bound on epsilon from the outputs of a mechanism on two neighbors, [draw tensor] each.

    Args:
        without: projections where the input was the second neighbor.
        with_it: where it was the first, towards which the directions point.
        lengths: norm of the difference in each tensor, in the order of the columns.
        delta: at which epsilon is bounded.
        confidence: with which the bound holds.
        is_gaussian: whether the noise is stated to be Gaussian, so that the curve of mu holds.
    """
    half, quarter = len(without) // 2, len(without) // 4
    names = ["all tensors", *lengths, "likelihood"]
    statistics = _Statistics(without[:quarter], with_it[:quarter], list(lengths.values()))
    first, second = (statistics.of(rows[quarter:half]) for rows in (without, with_it))
    chosen = _chosen(first, second, delta, confidence, is_gaussian)
    measured = [statistics.of(rows[half:])[chosen.statistic] for rows in (without, with_it)]
    positives, negatives = (measured[0] > chosen.threshold).sum(), (measured[1] <= chosen.threshold).sum()
    rates = _highest_rates(np.array([positives, negatives]), len(measured[0]), confidence)
    found = float(_general(rates[:1], rates[1:], delta)[0])
    if is_gaussian and delta > 0:
        found = max(found, gaussian_epsilon(max(0.0, float(_mu(rates[:1], rates[1:])[0])), delta))
    return Bound(found * (1 - _ROUNDING), names[chosen.statistic])


class _Statistics:
    """What may tell two sets of outputs apart: the whole projection, that of each tensor, and the likelihood ratio of all.

    The last one has the means and variances of each tensor from draws of its own, and takes tensors as independent. If they
    are not, the statistic is weaker, and no bound is wrong.
    """

    def __init__(self, without: Floats, with_it: Floats, lengths: Sequence[float]) -> None:
        self._weights = np.array(lengths) / math.hypot(*lengths)
        self._means = [rows.mean(0) for rows in (without, with_it)]
        # Without noise the variance is zero.
        least = (1e-9 * (np.abs(self._means[0]) + np.abs(self._means[1]) + np.array(lengths))) ** 2 + 1e-300
        self._variances = [np.maximum(rows.var(0), least) for rows in (without, with_it)]

    def of(self, rows: Floats) -> Floats:
        """Return the values of all statistics, [statistic draw]."""
        logs = [
            -0.5 * ((rows - mean) ** 2 / variance + np.log(variance)).sum(1)
            for mean, variance in zip(self._means, self._variances, strict=True)
        ]
        return np.vstack([rows @ self._weights, rows.T, logs[1] - logs[0]])


def _chosen(without: Floats, with_it: Floats, delta: float, confidence: float, is_gaussian: bool) -> _Test:
    """Return the statistic and the threshold that show the largest epsilon, [statistic draw] each."""
    count = without.shape[1]
    thresholds = np.quantile(np.hstack([without, with_it]), _QUANTILES, axis=1, method="lower").T
    tests = list(zip(without, with_it, thresholds, strict=True))
    positives = np.array([count - np.searchsorted(np.sort(rows), limits, "right") for rows, _, limits in tests])
    negatives = np.array([np.searchsorted(np.sort(rows), limits, "right") for _, rows, limits in tests])
    positive, negative = (_highest_rates(events, count, confidence) for events in (positives, negatives))
    general = _general(positive, negative, delta)
    best = int(general.argmax())
    if is_gaussian and delta > 0:
        mu = np.full_like(general, -np.inf)
        mu[:, _CENTER] = _mu(positive, negative)[:, _CENTER]
        farthest = int(mu.argmax())
        if gaussian_epsilon(max(0.0, float(mu.flat[farthest])), delta) >= general.flat[best]:
            best = farthest
    return _Test(best // thresholds.shape[1], float(thresholds.flat[best]))


def _highest_rates(events: NDArray[np.int64], count: int, confidence: float) -> Floats:
    """Return the largest rates that so many events allow; two such limits hold together with the confidence.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
    """
    from scipy.special import betaincinv

    limits: Floats = betaincinv(events + 1, np.maximum(count - events, 1), (1 + confidence) / 2)
    return np.where(events >= count, 1.0, limits)


def _general(positive: Floats, negative: Floats, delta: float) -> Floats:
    """Return the least epsilon with which any mechanism can have at most these error rates."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.maximum((1 - delta - negative) / positive, (1 - delta - positive) / negative)
    return np.log(np.maximum(ratios, 1.0))


def _mu(positive: Floats, negative: Floats) -> Floats:
    """Return the least mu with which a mu-GDP mechanism can have at most these error rates."""
    from scipy.special import ndtri

    # A rate of 1 gives minus infinity.
    found: Floats = -ndtri(positive) - ndtri(negative)
    return found
