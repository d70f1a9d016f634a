"""What masked jigsaw position embeddings (MJP) leave in an update, and how much of it can be undone.

Masked tokens have no position row of their own: their gradients A_n arrive as one sum, u, at the unknown position. With m of
them, the projection's gradient is sum over visible A_n x_n^T + u mean(x)^T + sum over masked (A_n - u/m) (x_n - mean(x))^T.
The last term is all that stays unknown, and it has rank m - 1: across the span of the centered masked patches the visible
patches, and the mean of the masked ones, are determined as if there were no jigsaw. Who was shuffled where does not matter:
mean and span are those of the image before the shuffle.

The localization loss acts on batches that are not masked, too. Its gradient is known but for a weight, which the gradient of
its head tells; a projection on principal axes has no head, but then the position rows do not sum to the projection's bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedsim.models import patch_grid, prefix_rows
from fedsim_attacks.update.tensors import PROJECTION_BIAS, TokenGradient

_UNKNOWN, _REGRESSORS = "mjp.unknown", "mjp.regressors"
_SILENT = 0.1  # of the largest row norm, below which a position counts as masked
_MEDIAN = 0.455  # of the square of a standard normal variable
_AGREEMENT = 0.9  # cosine, which rounding or noise does not reach by chance in dozens of dimensions
_NOISE_SPREAD = 4.0  # standard deviations by which the squared norm of a row of noise may exceed its mean


class Occlusion(NamedTuple):
    """Masked patches of one batch.

    Args:
        hidden: which patches shared the unknown position; none where several steps masked different ones.
        localization: weight of the localization loss whose gradient was subtracted; 0 where there was none.
    """

    hidden: Bool[Tensor, " token"]
    localization: float


def puzzle_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that MJP adds to a model."""
    return [name for name, _ in model.named_parameters() if name == _UNKNOWN or name.startswith(f"{_REGRESSORS}.")]


def restore(
    model: nn.Module, gradients: Mapping[str, Tensor], tokens: TokenGradient
) -> tuple[TokenGradient, Occlusion | None]:
    """Return the token gradients with each masked row at the masked rows' mean, and without the localization loss.

    Args:
        model: the global model.
        gradients: name -> gradient, those of `puzzle_names` among them.
        tokens: as shared.
    """
    unknown = gradients.get(_UNKNOWN)
    if unknown is None:
        return tokens, None
    if not unknown.any():
        weight, slope = _localization(model, gradients, torch.ones(len(tokens), dtype=torch.bool), tokens)
        return (tokens - weight * slope if weight else tokens), None
    noise = _noise_energy(tokens)
    if float(unknown.square().sum()) < noise:
        return tokens, None
    energy = tokens.square().sum(1)
    hidden = energy < max(_SILENT**2 * float(energy.max()), noise)
    if int(hidden.sum()) < 2 or hidden.all():
        return tokens, Occlusion(torch.zeros_like(hidden), 0.0)
    weight, slope = _localization(model, gradients, ~hidden, tokens)
    restored = tokens - weight * slope
    restored[hidden] = unknown.flatten() / hidden.sum()
    return restored, Occlusion(hidden, weight)


def _noise_energy(tokens: TokenGradient) -> float:
    """Return the squared norm that a row of noise seldom exceeds; rows of gradients would sum to zero."""
    median = float(tokens.sum(1).square().median()) / _MEDIAN
    return median * (1 + _NOISE_SPREAD * math.sqrt(2 / tokens.shape[1]))


def _localization(
    model: nn.Module, gradients: Mapping[str, Tensor], kept: Bool[Tensor, " token"], tokens: TokenGradient
) -> tuple[float, Float[Tensor, "token embed"]]:
    """Return the localization loss's weight, and its slope at the position rows for a weight of one.

    The loss is a function of weights and mask alone, and nothing else moves its head: the head's gradient tells the weight.
    """
    table: Tensor = model.pos_embed[0, prefix_rows(model) :].detach().double().requires_grad_()  # type: ignore[index]
    grid = patch_grid(model)
    coordinates = torch.cartesian_prod(torch.arange(grid.rows), torch.arange(grid.columns)).to(table)
    for kind, head in model.mjp.regressors.items():  # type: ignore[union-attr,operator]
        observed = {n: gradients.get(f"{_REGRESSORS}.{kind}.{n}") for n, _ in head.named_parameters()}
        if all(gradient is None or not gradient.any() for gradient in observed.values()):
            continue
        head = head.double()
        loss = (head(table[kept]) - coordinates[kept]).abs().mean()
        slope, *slopes = torch.autograd.grad(loss, [table, *head.parameters()])
        pairs = [(s, g) for s, g in zip(slopes, observed.values(), strict=True) if g is not None]
        energy = sum(float(s.square().sum()) for s, _ in pairs)
        return (sum(float((s * g).sum()) for s, g in pairs) / energy if energy else 0.0), slope
    rows = table[kept]
    axes = torch.linalg.svd((rows - rows.mean(0)).detach(), full_matrices=False).Vh[:2].T
    errors = [(sign * rows @ axes - coordinates[kept]).abs().sum(0) for sign in (1, -1)]
    (slope,) = torch.autograd.grad(torch.minimum(*errors).sum() / (2 * len(rows)), table)
    return _weight_by_sum(gradients, tokens, slope), slope


def _weight_by_sum(
    gradients: Mapping[str, Tensor], tokens: TokenGradient, slope: Float[Tensor, "token embed"]
) -> float:
    """Return the weight of a slope in the token gradients, from how far they are from summing to the bias's gradient."""
    bias = gradients.get(PROJECTION_BIAS)
    if bias is None:
        return 0.0
    excess, total = (tokens.sum(0) + gradients[_UNKNOWN].flatten() - bias).double(), slope.sum(0)
    agreement = float(nn.functional.cosine_similarity(excess, total, dim=0))
    return float(excess @ total / total.square().sum()) if agreement > _AGREEMENT else 0.0
