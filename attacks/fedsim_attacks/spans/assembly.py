"""From tokens in no order to pictures: the scale of each token, which tokens are of one picture, and where each belongs.

1. The MLP's layer norm hides the scale of a token. The gradient before it is outer + (1 / scale) * direction, and lies in the
   column space of the gradient of the attention's projection, which tells the scale.
2. Gradients of tokens of one picture are nearly parallel, since all come back from one loss; those of two pictures are not,
   unless an untrained model sees one label twice. What the attention adds is alike in a picture too. Both sort tokens into
   pictures, alone and together, and the way that fits positions best is taken.
3. Attention knows no order: with the tokens of a picture, whatever their places, what it adds to each can be computed and taken
   off, in a few rounds. What is left of a token outside of the span of the patch projection, no pixel has put there: it is the
   position embedding, or a prefix token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform
from torch import Tensor

from fedsim_attacks.solvers import fixed_point
from fedsim_attacks.spans.block import FirstBlock
from fedsim_attacks.spans.tokens import Token

EMPTY = -1
_ROUNDS, _SETTLED = 20, 1e-6
_PASSES = 4

Rows = list[int]
"""Row of a picture, prefixes first -> index of its token, or `EMPTY`."""
Tokens = Float[Tensor, "token embed"]
Distances = Float[Tensor, "token token"]


class _Placement(NamedTuple):
    """Tokens in rows; see `Assembly`. `misfit` is how far they are from what their rows hold, the mean."""

    pictures: list[Rows]
    margin: float
    misfit: float


@dataclass(frozen=True)
class Assembly:
    """Tokens in their places.

    Args:
        streams: tokens before the MLP's layer norm, centered; what the attention added is in them.
        pictures: of each picture the token of each row.
        margin: how much nearer tokens are to their rows than to the next best ones, the median.
    """

    streams: Tokens
    pictures: Sequence[Rows]
    margin: float


def centered(tokens: Tensor) -> Tensor:
    """Return tokens minus their means over entries."""
    return tokens - tokens.mean(-1, keepdim=True)


def assemble(block: FirstBlock, tokens: Sequence[Token], pictures: int) -> Assembly:
    """Put tokens in their places.

    Args:
        block: the first block.
        tokens: of all pictures.
        pictures: how many there are.
    """
    streams, rows_outside = _streams(block, tokens), _outside(block, row_embeddings(block))
    gradients = torch.stack([token.outer for token in tokens])
    outside = _outside(block, streams)
    apart = _relative(_angles(gradients)), _relative(torch.cdist(outside, outside))
    tried = []
    for distances in (*apart, apart[0] + apart[1]):
        groups = _groups(distances, pictures, block.tokens_per_image)
        for _ in range(_PASSES):
            tried.append(_placed(block, streams, groups, rows_outside))
            groups = [group for rows in tried[-1].pictures if (group := [token for token in rows if token != EMPTY])]
    best = min(tried, key=lambda placement: placement.misfit)
    return Assembly(streams, best.pictures, best.margin)


def row_embeddings(block: FirstBlock) -> Float[Tensor, "row embed"]:
    """Return what each row of a picture holds whatever its pixels: prefix tokens, and positions with the projection's bias."""
    model, grid = block.model, block.grid
    blank = torch.zeros(1, grid.channels, grid.rows * grid.patch, grid.columns * grid.patch, dtype=torch.float64)
    tokens: Tensor = model._pos_embed(model.patch_embed(blank))[0]
    return tokens


def _streams(block: FirstBlock, tokens: Sequence[Token]) -> Tokens:
    """Return tokens before the layer norm, centered, by the scale that fits the attention's gradient."""
    mlp: Any = block.block.mlp
    norm: Any = block.block.norm2
    outer = torch.stack([token.outer for token in tokens])
    inner = torch.stack([token.inner for token in tokens])
    white = block.whitened(torch.stack([token.input for token in tokens]))
    back = centered(inner @ mlp.fc1.weight * norm.weight)
    back = back - white * (back * white).mean(1, keepdim=True)
    attention = block.attention
    outer, back = (part - (part @ attention) @ attention.T for part in (outer, back))
    inverse_scales = -(outer * back).sum(1) / back.square().sum(1)
    # An inverse below zero fits no token; a scale of zero lets it explain nothing.
    scales = torch.where(inverse_scales > 0, 1 / inverse_scales, torch.zeros_like(inverse_scales))
    return white * scales[:, None]


def _outside(block: FirstBlock, tokens: Tokens) -> Tokens:
    """Return what of tokens no pixel can have put there, and no mean over entries."""
    basis, _ = torch.linalg.qr(block.pixel_directions)
    left: Tensor = tokens - (tokens @ basis) @ basis.T
    return left


def _angles(gradients: Tokens) -> Distances:
    """Return one minus the cosine of each two tokens' gradients."""
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    angles: Tensor = (1 - unit @ unit.T).clamp_min(0)
    return angles


def _relative(distances: Distances) -> Distances:
    return distances / distances.mean()


def _groups(distances: Distances, pictures: int, most: int) -> list[list[int]]:
    """Return the largest groups of tokens that are near to each other, at most as many as there are pictures.

    The tree of groups is cut where these hold the most tokens, and none more than a picture has.
    """
    if len(distances) == 1:
        return [[0]]
    symmetric = ((distances + distances.T) / 2).fill_diagonal_(0)
    tree = linkage(squareform(symmetric.numpy(), checks=False), "average")
    best: list[list[int]] = []
    for height in tree[:, 2]:
        of = torch.as_tensor(fcluster(tree, height, "distance"))
        sizes, labels = torch.bincount(of).sort(descending=True, stable=True)
        if int(sizes[0]) <= most and int(sizes[:pictures].sum()) > sum(map(len, best)):
            best = [(of == label).nonzero()[:, 0].tolist() for label in labels[:pictures]]
    return [group for group in best if group]


def _placed(
    block: FirstBlock, streams: Tokens, groups: Sequence[Sequence[int]], rows: Float[Tensor, "row embed"]
) -> _Placement:
    """Return the token of each row of each picture, all tokens tried in all pictures.

    What all tokens of a picture have in common, the attention's mean among it, is fitted beside.
    """
    found = [_outside(block, without_attention(block, streams, group)) for group in groups]
    patches = rows[block.prefixes :].mean(0)
    common = [own[list(group)].mean(0) - patches for own, group in zip(found, groups, strict=True)]
    placed = _matched(found, common, rows)
    for _ in range(_PASSES - 1):
        for picture, tokens in enumerate(placed.pictures):
            filled = [row for row, token in enumerate(tokens) if token != EMPTY]
            if not filled:
                continue
            common[picture] = (found[picture][[tokens[row] for row in filled]] - rows[filled]).mean(0)
        placed = _matched(found, common, rows)
    return placed


def _matched(found: Sequence[Tensor], common: Sequence[Tensor], rows: Tensor) -> _Placement:
    """Return the cheapest places of all tokens together."""
    costs = torch.stack([torch.cdist(own - mean, rows) for own, mean in zip(found, common, strict=True)], 1)
    placed = [[EMPTY] * len(rows) for _ in found]
    margins, misfits = [], []
    for token, place in zip(*linear_sum_assignment(costs.flatten(1).numpy()), strict=True):
        picture, row = divmod(int(place), len(rows))
        placed[picture][row] = int(token)
        best, second = costs[token].flatten().sort().values[:2]
        margins.append(float(second / best.clamp_min(torch.finfo(best.dtype).tiny)))
        misfits.append(float(costs[token, picture, row]))
    return _Placement(placed, float(torch.tensor(margins).median()), sum(misfits) / len(misfits))


def without_attention(block: FirstBlock, streams: Tokens, members: Sequence[int]) -> Tokens:
    """Return centered tokens before the attention, as if they were of the picture of some of them, whatever the order.

    Args:
        block: the first block.
        streams: tokens after the attention.
        members: which of them are the picture's; each token attends to these and to itself.
    """
    module = block.block
    shut = torch.full((len(streams),) * 2, -torch.inf, dtype=streams.dtype).fill_diagonal_(0)
    shut[:, list(members)] = 0

    def taken_off(before: Tokens) -> Tokens:
        return streams - centered(module.attn(module.norm1(before[None]), attn_mask=shut[None, None]))[0]

    return fixed_point(taken_off, streams, _ROUNDS, _SETTLED)
