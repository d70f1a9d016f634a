"""A soft label out of the gradient of one input, where one number about it is unknown.

The gradient at the classifier is (p - y) h^T with p = softmax(W h + b). Its factors are known up to an x: either the length
of h (no bias gradient), or that of p - y (no scale). Each x has its label y(x) = p(x) - r(x), and a hypothesis about the
form of y says how far y(x) is from that form. That misfit is measured beside |r(x)|: what grows confident as x grows, p
close to one class, fits every form better in absolute terms, and no better beside its own residual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ClassVector = Float[Tensor, " class"]
Points = Float[Tensor, " point"]
Labels = Float[Tensor, "point class"]

Hypothesis = Literal["one_hot", "smoothing", "mixup"]
HYPOTHESES: tuple[Hypothesis, ...] = ("one_hot", "smoothing", "mixup")  # each is a special case of a later one

_PER_FOLD = 87  # points while x grows by a factor of e: 200 a decade
_PROMISING = 0.5  # misfit of a grid point next to a solution; 1 is that of saturated probabilities
_MOST_STARTS = 12  # of each hypothesis and sign, from the least misfit on
_STEPS, _LONGEST_STEP = 12, 0.05  # of Gauss-Newton, in log x
_TOLERANCE = 1e-5  # misfit that float32 gradients leave
_ROUNDING = 2e-6  # relative error of probabilities that float32 logits leave
_LARGEST_TOLERANCE = 0.1
_LEAST_RESIDUAL = 1e-36  # norm of p - y in float32
_SAME = 0.01  # difference in log x below which two solutions are one


@dataclass(frozen=True)
class Family:
    """The labels that one gradient leaves possible: p(x) - r(x).

    Args:
        slope: what logits gain a unit of x; zero where the head input is known.
        offset: logits at x = 0.
        residual: r is this over x where the head input is unknown, and this times x where it is known.
        is_input_known: which of the two.
    """

    slope: ClassVector
    offset: ClassVector
    residual: ClassVector
    is_input_known: bool

    def probabilities(self, x: Points) -> Labels:
        """Return p(x)."""
        return (x[:, None] * self.slope + self.offset).softmax(1)

    def residuals(self, x: Points) -> Labels:
        """Return r(x)."""
        return self.residual * (x if self.is_input_known else 1 / x)[:, None]

    def labels(self, x: Points) -> Labels:
        """Return y(x)."""
        return self.probabilities(x) - self.residuals(x)

    def derivatives(self, x: Points) -> Labels:
        """Return dy / d log|x|."""
        p, growth = self.probabilities(x), x[:, None] * self.slope
        return p * (growth - (p * growth).sum(1, keepdim=True)) - self.residuals(x) * (1 if self.is_input_known else -1)

    def range(self, longest: float) -> tuple[float, float]:
        """Return the least and largest |x|: |p - y| is at most sqrt(2), head inputs are no longer than `longest`."""
        size = float(self.residual.norm())
        if self.is_input_known:
            return _LEAST_RESIDUAL / size, math.sqrt(2) / size
        return size / math.sqrt(2), longest


class Candidate(NamedTuple):
    """A solution of one hypothesis.

    Args:
        x: the unknown.
        label: y(x).
        hypothesis: the form that y was given.
        misfit: distance from it, beside |p - y|.
        fits: whether noise explains the misfit.
    """

    x: float
    label: ClassVector
    hypothesis: Hypothesis
    misfit: float
    fits: bool

    def equals(self, other: Candidate) -> bool:
        """Return whether both stand for the same solution."""
        return self.x * other.x > 0 and abs(math.log(self.x / other.x)) < _SAME


def applicable(classes: int) -> tuple[Hypothesis, ...]:
    """Return the hypotheses that say something: those that leave two classes to be equal, or one to be zero."""
    return tuple(h for h in HYPOTHESES if h == "one_hot" or classes - _free(h) >= 2)


def deviation(labels: Labels, hypothesis: Hypothesis) -> tuple[Labels, Tensor]:
    """Return how far labels are from the form of a hypothesis, and the classes that it leaves free.

    One-hot: all but the largest entry are zero. Smoothing: all but the largest are equal. Mixup: all but the largest two.
    """
    top = labels.topk(_free(hypothesis), 1).indices
    free = torch.zeros_like(labels, dtype=torch.bool).scatter(1, top, True)
    return _restrict(labels, free, hypothesis), free


def judge(family: Family, x: float, hypothesis: Hypothesis, noise: float) -> Candidate:
    """Return the label at x, judged as one of a hypothesis.

    Args:
        family: of labels.
        x: the unknown.
        hypothesis: of their form.
        noise: relative, of the gradient.
    """
    point = torch.tensor([x], dtype=torch.float64)
    label, p, size = family.labels(point), family.probabilities(point), float(family.residuals(point).norm())
    off, free = deviation(label, hypothesis)
    # What rounding and noise do to the probabilities outside the free classes, which the hypothesis looks at.
    error = (_ROUNDING + noise * float((point * family.slope).norm())) * float(p.masked_fill(free, 0.0).norm())
    tolerance = min(_TOLERANCE + noise + error / size, _LARGEST_TOLERANCE)
    misfit = float(off.norm()) / size
    is_positive = float(label.min()) >= -tolerance * size
    return Candidate(x, label[0], hypothesis, misfit, misfit <= tolerance and is_positive)


def search(family: Family, signs: tuple[int, ...], longest: float, noise: float) -> list[Candidate]:
    """Return the solutions of every hypothesis, by |x|, from the inside out.

    A geometric grid over each sign, and Gauss-Newton from the least of its local minima.

    Args:
        family: of labels.
        signs: that x may have.
        longest: what the norm of a head input cannot exceed.
        noise: relative, of the gradient.
    """
    least, largest = (math.log(bound) for bound in family.range(longest))
    margin = 2 / _PER_FOLD
    count = max(math.ceil((largest - least + 2 * margin) * _PER_FOLD), 3)
    grid = torch.linspace(least - margin, largest + margin, count, dtype=torch.float64).exp()
    found = []
    for x in (sign * grid for sign in signs):
        for hypothesis, misfits in _misfits(family, x).items():
            here = misfits[1:-1]
            inner = (here < misfits[:-2]) & (here <= misfits[2:]) & (here < _PROMISING)
            order = here[inner].argsort()[:_MOST_STARTS]
            for start in x[1:-1][inner][order].tolist():
                found.append(judge(family, _refine(family, start, hypothesis), hypothesis, noise))
    return sorted(found, key=lambda candidate: abs(candidate.x))


def _misfits(family: Family, x: Points) -> dict[Hypothesis, Tensor]:
    """Return the misfits at many points, up to cancellation: good enough to find their minima."""
    labels, sizes = family.labels(x), family.residuals(x).norm(dim=1)
    top = labels.topk(2, 1).indices
    found = {}
    for hypothesis in applicable(labels.shape[1]):
        free = _free(hypothesis)
        rest = labels.scatter(1, top[:, :free], 0.0)
        squares = rest.square().sum(1)
        if hypothesis != "one_hot":
            squares = squares - rest.sum(1).square() / (labels.shape[1] - free)
        found[hypothesis] = squares.clamp_min(0).sqrt() / sizes
    return found


def _free(hypothesis: Hypothesis) -> int:
    return 2 if hypothesis == "mixup" else 1


def _restrict(values: Labels, free: Tensor, hypothesis: Hypothesis) -> Labels:
    rest = values.masked_fill(free, 0.0)
    if hypothesis == "one_hot":
        return rest
    mean = rest.sum(1, keepdim=True) / (~free).sum(1, keepdim=True)
    return (rest - mean).masked_fill(free, 0.0)


def _refine(family: Family, start: float, hypothesis: Hypothesis) -> float:
    x = torch.tensor([start], dtype=torch.float64)
    for _ in range(_STEPS):
        off, free = deviation(family.labels(x), hypothesis)
        slope = _restrict(family.derivatives(x), free, hypothesis)
        square = float(slope.square().sum())
        if square == 0:
            break
        step = -float((off * slope).sum()) / square
        x = x * math.exp(max(-_LONGEST_STEP, min(_LONGEST_STEP, step)))
        if abs(step) < torch.finfo(torch.float64).eps:
            break
    return float(x)
