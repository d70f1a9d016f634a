"""The head input of every image of a batch, from the gradient at the classifier and the labels.

What is identifiable: with B images, C classes and the residuals r_b = p_b - y_b independent (B < C), the gradient's row space
holds all head inputs, and B x B coordinates face (C - 1) x (B + 1) equations: each head input is determined, repeated classes
included. Images of one class have nearly the same residual, so that their sum is determined well, and their differences only
as well as their probabilities differ: an error of the gradient reaches those multiplied by the gradient's condition number.
From B = C on, combinations that all residuals together do not tell apart are missing; a prior fills them. Which of a class's
images is which is not determined, nor is the order of the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Labels, Observation
from fedsim.labels import distributions, smooth
from fedsim_attacks.head.classifier import reference_images
from fedsim_attacks.head.shared_head import Features, SharedHead, read_shared_head
from fedsim_attacks.head.system import Coordinates, Distributions, HeadSystem, Penalty
from fedsim_attacks.update import NO_SCALE, local_steps

_STEPS, _LAST_STEPS = 60, 120  # of Levenberg-Marquardt, toward layer-normed inputs and without
_SOLVED = 1e-6  # relative residual that float32 leaves
_NOISE = 10.0  # residual that noise explains, in units of what it would be
_FLOOR = 1e-8  # relative noise that float32 has at least
_KINDS = 3  # of starts that are not random
_NORMED = (0.1, 1.0)  # weights of the layer norm on the way to a solution, beside the gradient's norm
_PRIOR = 1e-2  # weight of the start where equations are missing, likewise
_JITTER, _RESTART_JITTERS = 0.05, (0.3, 0.6, 1.0)  # of the starts, in an input's length; breaks ties in a class
_MOST_UNKNOWNS = 4500  # a square of these, in float64, is 160 MB
_LENGTHS = (0.05, 3.0, 400)  # of a start, in an input's usual length: least, largest, how many are tried


class RecoveredFeatures(NamedTuple):
    """Head inputs of a batch.

    Args:
        inputs: one row an image, in the order of the labels; heads of a distilled ViT side by side.
        errors: estimated relative l2 error of each row.
        residual: norm of what the inputs do not explain of the gradient, beside the gradient's.
        noise: norm of the noise in the gradient, beside the gradient's.
        is_solved: whether noise explains the residual.
        is_determined: whether there are as many independent equations as unknowns.
        starts: that were tried.
    """

    inputs: Features
    errors: Float[Tensor, " image"]
    residual: float
    noise: float
    is_solved: bool
    is_determined: bool
    starts: int


class _Prior(NamedTuple):
    """Head inputs of reference images: their mean in each class, their usual length, the standard deviation of an entry."""

    means: Float[Tensor, "class embed"]
    length: float
    spread: float


class _Solution(NamedTuple):
    """Where one start led, and what counts against it."""

    system: HeadSystem
    at: Coordinates
    cost: float


def recover_features(
    observation: Observation, labels: Labels, references: int, restarts: int, generator: torch.Generator
) -> RecoveredFeatures:
    """Return the head input of each labeled image.

    Args:
        observation: what the attack may know.
        labels: of every image of the batch, in any order; hard, or distributions.
        references: images of no client that the prior is taken from.
        restarts: random starts after the deterministic ones, as long as none has solved the equations.
        generator: draws reference images and starts.

    Raises:
        AttackRefusedError: the classifier's gradient was not shared, or its scale is unknown; several local steps; too many
            images.
    """
    head = read_shared_head(observation)
    if not head.is_scaled:
        raise AttackRefusedError(f"{NO_SCALE}.")
    if observation.update.kind == "delta" and local_steps(observation) != 1:
        raise AttackRefusedError("the update sums several local steps, each with head inputs of its own.")
    known = reference_images(observation, references, generator)
    inputs = torch.cat(known.inputs, 1)
    spread = float(inputs.std(0).square().mean().sqrt())
    prior = _Prior(known.shares.T @ inputs, float(inputs.square().sum(1).mean().sqrt()), spread)
    smoothing = observation.training.label_smoothing if observation.training and labels.ndim == 1 else 0.0
    targets = smooth(distributions(labels, len(head.weight)).double(), smoothing)
    return _solve(head, targets, prior, restarts, generator)


def _solve(
    head: SharedHead, labels: Distributions, prior: _Prior, restarts: int, generator: torch.Generator
) -> RecoveredFeatures:
    (count, classes), embed = labels.shape, head.weight.shape[1]
    rank = min(count, classes - 1, embed)
    if count * rank > _MOST_UNKNOWNS:
        raise AttackRefusedError(f"{count} images of {classes} classes are too many unknowns to solve for.")
    basis = torch.linalg.svd(head.weight_gradient, full_matrices=False).Vh[:rank]
    noise = max(head.noise * math.sqrt(head.weight_gradient.numel()) / float(head.weight_gradient.norm()), _FLOOR)
    enough, is_determined, tried = max(_SOLVED, _NOISE * noise), rank == count, 0
    starts = _starts(head, labels, prior, generator)
    found = []
    for start in itertools.islice(starts, 2 * _KINDS + restarts if is_determined else 0):
        normed, tried = _NORMED[tried // _KINDS % 2], tried + 1
        found.append(_descend(head, labels, basis, start, normed))
        if found[-1].cost <= enough**2:
            break
    if not found or found[-1].cost > enough**2:
        starts = itertools.islice(_starts(head, labels, prior, generator), _KINDS)
        found = [_approach(head, labels, basis, start, prior) for start in starts]
        tried += len(found)
    system, at, _ = min(found, key=lambda solution: solution.cost)
    misfit = system.misfit(at)
    errors = _errors(system, at, noise, prior)
    if is_determined and misfit > enough:
        errors = errors.clamp_min(prior.spread * math.sqrt(embed) / prior.length)
    return RecoveredFeatures(system.features(at), errors, misfit, noise, misfit <= enough, is_determined, tried)


def _descend(head: SharedHead, labels: Distributions, basis: Tensor, start: Features, normed: float) -> _Solution:
    """Solve the equations, which determine the head inputs; the layer norm helps on the way."""
    system = HeadSystem.of(head, labels, basis, torch.zeros_like(start))
    at = start @ basis.T
    nothing = Penalty(0.0, 0.0, at)
    at = system.solve(at, nothing._replace(normed=normed * system.size / math.sqrt(len(start))), _STEPS)
    at = system.solve(at, nothing, _LAST_STEPS)
    return _Solution(system, at, system.misfit(at) ** 2)


def _approach(head: SharedHead, labels: Distributions, basis: Tensor, start: Features, prior: _Prior) -> _Solution:
    """Return the head inputs nearest to a start and to outputs of the layer norm that the gradient allows."""
    at = start @ basis.T
    system = HeadSystem.of(head, labels, basis, start - at @ basis)
    penalty = Penalty(_NORMED[0] * system.size / math.sqrt(len(start)), _PRIOR * system.size / prior.length, at)
    at = system.solve(at, penalty, _STEPS)
    return _Solution(system, at, system.cost(at, penalty))


def _starts(head: SharedHead, labels: Distributions, prior: _Prior, generator: torch.Generator) -> Iterator[Features]:
    """Return head inputs to start from, without end: each kind twice, then at random.

    The row of a class in the gradient is mostly -(1 - p) times the input of its own image. Its length is that of an input,
    or the one at which 1 - p has the size that the row shows.
    """
    classes = labels.argmax(1)
    rows = -head.weight_gradient[classes]
    sizes = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    directions = rows / sizes
    same = torch.bincount(classes, minlength=labels.shape[1])[classes]
    shown = sizes[:, 0] * len(labels) / same

    def jittered(amount: float) -> Features:
        noise = torch.randn(directions.shape, generator=generator, dtype=directions.dtype)
        moved = directions + amount * noise / math.sqrt(directions.shape[1])
        unit: Features = moved / moved.norm(dim=1, keepdim=True)
        return unit

    def matched(along: Features) -> Features:
        least, largest, count = _LENGTHS
        lengths = prior.length * torch.logspace(math.log10(least), math.log10(largest), count, dtype=along.dtype)
        logits = lengths[:, None, None] * (along @ head.weight.T) + head.bias
        own = logits.softmax(2).gather(2, classes.expand(count, -1)[..., None])[..., 0]
        misses = (((1 - own) * lengths[:, None]).log() - shown.log()).abs()
        scaled: Features = lengths[misses.argmin(0)][:, None] * along
        return scaled

    for _ in _NORMED:
        yield matched(jittered(_JITTER))
        yield prior.length * jittered(_JITTER)
        noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        yield prior.means[classes] + prior.spread * _JITTER * noise
    for amount in itertools.cycle(_RESTART_JITTERS):
        yield matched(jittered(amount))


def _errors(system: HeadSystem, at: Coordinates, noise: float, prior: _Prior) -> Float[Tensor, " image"]:
    """Return the relative errors that noise and missing equations leave."""
    equations, unknowns = system.target.numel() - system.target.shape[1], at.numel()
    spare = max(equations - unknowns, 1) / equations
    entry = max(noise, system.misfit(at) / math.sqrt(spare)) * system.size / math.sqrt(system.target.numel())
    squares = system.variances(at, entry, prior.spread)
    missing = system.basis.shape[1] - at.shape[1]
    if at.shape[1] < len(at) and missing:
        residuals = system.residuals(at)
        told = (residuals @ torch.linalg.pinv(residuals)).diagonal()
        squares = squares + prior.spread**2 * missing * (1 - told).clamp_min(0)
    relative: Float[Tensor, " image"] = squares.sqrt() / system.features(at).norm(dim=1)
    return relative
