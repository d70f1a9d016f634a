"""The soft label and the head input of a single image, from the gradient at the classifier.

Paper: Wang, Liang, He. "Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks". ICLR 2024.
https://arxiv.org/abs/2402.03124

Idea: the gradient at the classifier is G_W = (p - y) h^T and G_b = p - y, with p = softmax(W h + b). With both, h is the
ratio of the two and y = softmax(W h + b) - G_b, whatever the label. Without the bias gradient, G_W alone is of rank one and
leaves a family of pairs, h = x v and y(x) = softmax(x W v + b) - (p - y)(x): one for every length x of the head input. So no
method can do without a constraint on y or on h (the necessary condition): here a form of the label, {one-hot, smoothing,
mixup}, each searched over x on both signs, from the inside out; and that h came out of a layer norm, where it did. A delta of
unknown scale leaves the same choice for the length of p - y, with h known. All three forms are tried; the simplest that fits
is reported with its misfit.

Differs from the paper: a grid over every length that a head input can have and Gauss-Newton, where the official code runs
L-BFGS and particle swarms and compares with the true scale to know when to stop: nothing here needs the truth. The misfit
is relative to |p - y|, which removes the spurious solution at infinity. All rows of G_W count, weighted by |p - y|, so that
confident images lose no precision. The layer norm decides between solutions, and stands in where no form fits.

Needs: an update of one image, which the rank of G_W shows; the classifier's weight gradient; a gradient, or a delta of one
step of local SGD. Without both bias gradient and scale it refuses. Uses `batch_size` and `training` where granted. Cost:
one singular value decomposition of classes x width; a few thousand softmaxes without the bias gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation
from fedsim_attacks.head import (
    Candidate,
    ClassVector,
    Direction,
    Family,
    FeatureNorm,
    RankOne,
    SharedHead,
    applicable,
    image_count,
    judge,
    read_shared_head,
    search,
)
from fedsim_attacks.solvers import onto_simplex
from fedsim_attacks.update import NO_SCALE, local_steps, told_cautions

_ROUNDING = 1e-5  # relative second singular value that float32 explains
_NOISE = 2.0  # second singular value that noise explains, in units of what sums over classes show
_NOTABLE = 1e-4  # relative noise
_NOT_NORMED = 0.02  # deviation from the output of a layer norm, whose eps explains less
_NEGATIVE = 1e-2  # what the entries of a label may fall below zero
_TELLING = 5  # classes, from which on every form of the label has equations to spare
_LONGEST = 10.0  # norm of a head input in units of its square root of width, where no layer norm bounds it


class _Solution(NamedTuple):
    """One label with its head input.

    Args:
        label: before it is brought onto the simplex.
        feature: head input.
        hypothesis: the form of the label; `none` where no form fits.
        misfit: of that form, or the least one.
        confidence: 1 minus the misfit beside that of the next best solution.
        cautions: reasons to doubt.
    """

    label: ClassVector
    feature: Direction
    hypothesis: str
    misfit: float
    confidence: float
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Attack):
    """Soft label and head input of one image from the classifier's gradient.

    Args:
        layer_norm: use that head inputs come out of a layer norm, where the model has one there: it decides between labels
            that fit, and stands in where none does. The paper's search does without.
    """

    citation: ClassVar[str] = (
        "Wang et al. Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks. ICLR 2024. "
        "https://arxiv.org/abs/2402.03124"
    )
    needs: ClassVar[frozenset[Need]] = frozenset()
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels", "features"})
    applies: ClassVar[Applicability] = Applicability(pictures=1, steps=1, model=("linear classifier",))
    is_cheap: ClassVar[bool] = True

    layer_norm: bool = True

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Recover label and head input; draws nothing."""
        _check_count(observation)
        head = read_shared_head(observation)
        factors = head.rank_one()
        cautions = _check_rank(observation, factors)
        solution = self._solve(head, factors)
        normed = None if head.norm is None else float(head.norm.deviations(solution.feature[None]))
        if normed is not None and normed > _NOT_NORMED:
            cautions += ("The head input is not what the model's last layer norm puts out.",)
        trace = {
            "hypothesis": solution.hypothesis,
            "misfit": solution.misfit,
            "confidence": solution.confidence,
            "second_singular_value": factors.ratio,
            "noise": factors.noise,
            "layer_norm_deviation": normed,
        }
        label = onto_simplex(solution.label, 1).float()[None]
        cautions += solution.cautions + told_cautions(observation, shuffles=False)
        return Finding(None, label, solution.feature.float()[None], trace, cautions)

    def _solve(self, head: SharedHead, factors: RankOne) -> _Solution:
        if head.bias_gradient is not None:
            return _with_bias(head, factors.noise)
        if not head.is_scaled:
            raise AttackRefusedError(
                f"the bias gradient is missing and {NO_SCALE}, so the lengths of p - y and of the head input are both free."
            )
        norm = head.norm if self.layer_norm else None
        return _without_bias(head, factors, norm)


def _with_bias(head: SharedHead, noise: float) -> _Solution:
    """Return the input, the ratio of both gradients in least squares over all classes, and the label."""
    left, values, right = torch.linalg.svd(head.joined, full_matrices=False)
    feature, residual = right[0, :-1] / right[0, -1], left[:, 0] * values[0] * right[0, -1]
    if not bool(torch.isfinite(feature).all()):
        raise AttackRefusedError("the bias gradient has nothing in common with the weight gradient.")
    logits = head.logits(feature[None])[0]
    family = Family(torch.zeros_like(logits), logits, residual, is_input_known=True)
    judged = [judge(family, 1.0, hypothesis, noise) for hypothesis in applicable(len(logits))] if head.is_scaled else []
    direct = next((candidate for candidate in judged if candidate.fits), None)
    if direct is not None:
        return _solution(direct, feature, [], ())
    found = search(family, (1,), 0.0, noise) if not judged or len(logits) >= _TELLING else []
    fitting = [candidate for candidate in found if candidate.fits]
    if judged and not fitting:
        return _Solution(judged[0].label, feature, "none", min(c.misfit for c in judged), 1.0)
    doubt = (
        "The label fits its form only if the gradient was scaled after it was computed, as clipping does."
        if judged
        else "The update's scale is not known; it was set so that the label fits its form."
    )
    solution = _choose(found, fitting, lambda _: feature)
    return solution._replace(cautions=(*solution.cautions, doubt))


def _without_bias(head: SharedHead, factors: RankOne, norm: FeatureNorm | None) -> _Solution:
    """Return input and label by the length of the former."""
    direction = factors.direction
    family = Family(head.weight @ direction, head.bias, factors.residual * factors.size, is_input_known=False)
    longest = norm.longest() if norm else _LONGEST * math.sqrt(len(direction))
    found = search(family, (1, -1), longest, factors.noise)
    fitting = [candidate for candidate in found if candidate.fits]
    if norm is None:
        return _choose(found, fitting, lambda x: x * direction)
    normed = [c for c in fitting if float(norm.deviations((c.x * direction)[None])) <= _NOT_NORMED]
    if not fitting:
        standing_in = _of_normed_length(family, direction, norm)
        if standing_in is not None:
            return standing_in
    return _choose(found, normed or fitting, lambda x: x * direction)


def _of_normed_length(family: Family, direction: Direction, norm: FeatureNorm) -> _Solution | None:
    """Return the label at the length that the layer norm gives the input; None where no sign makes it a label."""
    lengths = torch.tensor(norm.lengths(direction), dtype=torch.float64)
    labels = family.labels(lengths)
    misfits = norm.deviations(lengths[:, None] * direction) + labels.amin(1).clamp_max(0).abs()
    if len(lengths) == 0 or not misfits.min() <= _NEGATIVE:
        return None
    best, other = misfits.argsort().tolist()
    doubt = (
        "No hypothesis on the label's form fits. The label rests on the length that the layer norm gives the head input, "
        "to about 1e-3, and on the update's scale."
    )
    confidence = 1 - float(misfits[best] / misfits[other]) if misfits[other] > 0 else 0.0
    return _Solution(labels[best], lengths[best] * direction, "none", float(misfits[best]), confidence, (doubt,))


def _choose(found: list[Candidate], fitting: list[Candidate], feature: Callable[[float], Direction]) -> _Solution:
    """Return the simplest solution that fits, the innermost of several, or else that of the least misfit."""
    if not found:
        raise AttackRefusedError("no length of the head input and of p - y gives a label.")
    order = applicable(len(found[0].label))
    if fitting:
        chosen = min(fitting, key=lambda candidate: (order.index(candidate.hypothesis), abs(candidate.x)))
    else:
        chosen = min(found, key=lambda candidate: candidate.misfit)
    rivals = [candidate for candidate in fitting if not candidate.equals(chosen)]
    listed = []
    if len(chosen.label) < _TELLING:
        listed.append(f"With {len(chosen.label)} classes a label of another form can fit by chance.")
    if not fitting:
        listed.append("No hypothesis on the label's form fits; the one that misses by the least was taken.")
    if rivals:
        forms = ", ".join(sorted({candidate.hypothesis for candidate in rivals}))
        listed.append(f"Another label fits as well ({forms}); the simplest form was taken.")
    others = [candidate for candidate in found if not candidate.equals(chosen)]
    return _solution(chosen, feature(chosen.x), others, tuple(listed))


def _solution(chosen: Candidate, feature: Direction, others: list[Candidate], cautions: tuple[str, ...]) -> _Solution:
    best_other = min((candidate.misfit for candidate in others), default=1.0)
    confidence = 1 - min(chosen.misfit / best_other, 1.0) if best_other > 0 else 0.0
    hypothesis = chosen.hypothesis if chosen.fits else "none"
    return _Solution(chosen.label, feature, hypothesis, chosen.misfit, confidence, cautions)


def _check_count(observation: Observation) -> None:
    size, update = observation.batch_size, observation.update
    count = size if size is not None else update.num_examples if update.kind == "gradient" else 1
    if count > 1:
        raise AttackRefusedError(f"the update is of {count} images; soft labels come back from a single one.")


def _check_rank(observation: Observation, factors: RankOne) -> tuple[str, ...]:
    """Return doubts about the gradient being that of one input.

    Raises:
        AttackRefusedError: it is not.
    """
    steps = local_steps(observation) if observation.update.kind == "delta" else 1
    excess = factors.ratio > max(_ROUNDING, _NOISE * factors.noise)
    is_one_image = observation.batch_size == 1 and image_count(observation) == 1
    if excess and not is_one_image:
        raise AttackRefusedError(
            f"the gradient of the classifier is not that of one input: its second singular value is {factors.ratio:.1e} of "
            "the first. It holds several images, several steps, or weight decay that is not granted."
        )
    listed = []
    if excess or (steps or 1) > 1:
        listed.append(
            "The update sums several local steps: the label is that of a mean gradient at the global weights, fit to start "
            "an optimization."
        )
    if factors.noise > _NOTABLE:
        listed.append(
            f"Noise of {factors.noise:.1e} of the classifier's gradient carries over to label and head input."
        )
    return tuple(listed)
