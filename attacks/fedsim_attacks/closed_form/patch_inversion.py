"""From the system of one image to the image: equations weighed by their noise, what is missing filled smoothly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images, Normalization
from fedsim.models import PatchGrid
from fedsim_attacks.closed_form.completion import RAISE, is_implausible, picture
from fedsim_attacks.closed_form.linear import (
    Completion,
    Decomposition,
    Patches,
    ProjectionGradient,
    Weights,
    complete,
    decompose,
)
from fedsim_attacks.closed_form.patch_system import PatchSystem
from fedsim_attacks.priors import ColorEdges, Roughness
from fedsim_attacks.update import TokenGradient

_Prior = Roughness | ColorEdges


class Conditioned(NamedTuple):
    """A^T X = G with equal noise in all rows of G, and independent noise in its columns.

    Args:
        system: rows scaled, columns in `basis`.
        variances: of the noise, per column, or per singular value and column.
        basis: orthonormal directions of patch values, one a column.
        foreign: leading directions in which something else than noise disturbs the system.
    """

    system: Decomposition
    variances: Weights | Patches
    basis: Float[Tensor, "value value"]
    foreign: int


class Inversion(NamedTuple):
    """An image, and how it came about.

    Args:
        images: one, in [0, 1].
        conditioned: the system that was solved last.
        weight: of the prior, in the column of most noise.
        raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
    """

    images: Images
    conditioned: Conditioned
    weight: float
    raised: float
    steps: int


def invert(found: PatchSystem, normalization: Normalization, smoothness: float, refinements: int) -> Inversion:
    """Return the image that a system holds.

    Args:
        found: the system.
        normalization: of the client's model.
        smoothness: expected difference of neighboring pixels.
        refinements: rounds in which noise and prior are fitted to the last round's image.
    """
    grid, tokens_and_target = found.grid, found.equations(normalization)
    conditioned = condition(found, normalization, *tokens_and_target, None)
    raised, steps = 1.0, 0

    def completed(prior: _Prior, start: Patches | None) -> Completion:
        nonlocal steps
        weights = (conditioned.variances * raised / smoothness**2).clamp_min(_floor(conditioned.system))
        solution = _complete(conditioned, weights, prior, grid, start)
        steps += solution.steps
        return solution

    prior: _Prior = Roughness.uniform(grid.join(torch.zeros_like(conditioned.system.data)[None]))
    solution = completed(prior, None)
    for attempt in range(refinements + 1):
        while is_implausible(solution.patches, raised):
            raised *= RAISE
            solution = completed(prior, solution.patches)
        if attempt == refinements or not _is_worth_refining(found, solution, raised):
            break
        if found.rounding is not None:
            conditioned = condition(found, normalization, *tokens_and_target, solution.patches)
        prior = _refined(found, grid.join(solution.patches[None]), smoothness)
        solution = completed(prior, solution.patches)
    weight = max(float(conditioned.variances.max()) / smoothness**2, _floor(conditioned.system)) * raised
    return Inversion(picture(solution.patches, grid), conditioned, weight, raised, steps)


def condition(
    found: PatchSystem,
    normalization: Normalization,
    tokens: TokenGradient,
    target: ProjectionGradient,
    estimate: Patches | None,
) -> Conditioned:
    """Return the system with its noise made equal over rows and independent over columns.

    Args:
        found: where the equations are from.
        normalization: of the client's model.
        tokens: A.
        target: G.
        estimate: X so far, on which the noise of rounding depends.
    """
    variances = found.explained(normalization)
    if found.rounding is not None:
        levels = found.rounded(normalization, estimate).log()
        scale = ((levels.mean() - levels.mean(1)) / 2).exp()
        tokens, target, variances = tokens * scale, target * scale[:, None], levels.mean(0).exp()
    system = decompose(tokens, target)
    identity = torch.eye(len(variances), dtype=variances.dtype)
    if found.occlusion is not None and found.occlusion.hidden.any():
        return _set_masked_apart(system, tokens, variances, found)
    if found.rounding is None:
        variances = torch.maximum(variances, found.shown(system))
    return Conditioned(system, variances, identity, 0)


def excess(found: PatchSystem, conditioned: Conditioned, normalization: Normalization) -> float:
    """Return the residual's variance over what is no sign of a second image, in the worst column; about 1 for one."""
    system, basis = conditioned.system, conditioned.basis
    if found.rounding is not None:
        allowed = conditioned.variances.reshape(-1, len(basis))[0]
    else:
        allowed = basis.square().T @ found.allowed(normalization)
    if not conditioned.foreign:
        return float((found.shown(system) / allowed).max())
    freedom = max(1, len(system.residual) - 1 - system.rank)
    others = slice(conditioned.foreign, None)
    shown = (system.residual @ basis).square().sum(0)[others] / freedom
    return float((shown / allowed[others]).mean()) if len(shown) else 0.0


def _set_masked_apart(
    system: Decomposition, tokens: TokenGradient, variances: Weights, found: PatchSystem
) -> Conditioned:
    """Return the system with the span of the centered masked patches, seen in the residual, as noisy directions.

    A masked token's gradient is as far from the others' span as a visible one's, so the residual's energy tells that of the
    centered patches. That energy is the noise of the visible patches in these directions, and the spread of the masked
    patches, of which the system knows the mean alone.
    """
    assert found.occlusion is not None
    hidden = found.occlusion.hidden
    differences, visible = int(hidden.sum()) - 1, tokens[~hidden]
    energy, basis = torch.linalg.eigh(system.residual.T @ system.residual)
    energy, basis = energy.flip(0).clamp_min(0), basis.flip(1)
    foreign = min(differences, len(energy))
    energy[foreign:] = 0
    distance = _squared_distance(visible)
    noise = basis.square().T @ variances
    freedom = max(1, len(system.residual) - 1 - system.rank)
    spread = energy / distance
    values, data = system.values.clone(), system.data @ basis
    rows = system.directions[~hidden]
    centered = values.square() * (rows - rows.mean(0)).square().sum(0) / len(visible)
    levels = noise + torch.maximum(energy / freedom, centered[:, None] * spread)
    values[system.rank :], data[system.rank :] = 1, 0
    levels[system.rank :] = noise / distance + spread / differences
    return Conditioned(system._replace(values=values, data=data), levels, basis, foreign)


def _squared_distance(tokens: TokenGradient) -> float:
    """Return the mean squared distance of a row from the span of the others."""
    left, values, _ = torch.linalg.svd(tokens, full_matrices=False)
    if len(values) < len(tokens):
        return float(values[-1] ** 2)
    inverse = (left / values.clamp_min(torch.finfo(values.dtype).tiny)).square().sum(1)  # diagonal of (A A^T)^-1
    return float((1 / inverse).mean())


def _is_worth_refining(found: PatchSystem, solution: Completion, raised: float) -> bool:
    """Edges pay where few directions are missing and the others are sharp; among noise they cost and gain nothing."""
    if found.rounding is not None or found.occlusion is not None:
        return raised == 1
    return 0 < solution.filled <= found.grid.count // 2


def _refined(found: PatchSystem, images: Images, smoothness: float) -> _Prior:
    if found.occlusion is not None:
        hidden = found.occlusion.hidden[:, None].expand(-1, found.grid.values).to(images)
        return ColorEdges.fitted(images, smoothness, found.grid.join(hidden[None])[0, 0] > 0)
    if found.rounding is not None:
        return ColorEdges.fitted(images, smoothness)
    return Roughness.around_edges(images, smoothness)


def _complete(
    conditioned: Conditioned, weights: Weights | Patches, prior: _Prior, grid: PatchGrid, start: Patches | None
) -> Completion:
    basis = conditioned.basis

    def pulled(patches: Patches) -> Patches:
        return grid.cut(prior.gradient(grid.join((patches @ basis.T)[None])))[0] @ basis

    solution = complete(conditioned.system, weights, pulled, None if start is None else start @ basis)
    return solution._replace(patches=solution.patches @ basis.T)


def _floor(system: Decomposition) -> float:
    return float((torch.finfo(torch.float64).eps * system.values[0]) ** 2)
