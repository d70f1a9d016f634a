"""From placed tokens to pixels: what the attention added is computed from the picture itself, in a few rounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images
from fedsim_attacks.solvers import fixed_point
from fedsim_attacks.spans.assembly import EMPTY, Assembly, Rows, Tokens, centered, row_embeddings, without_attention
from fedsim_attacks.spans.block import FirstBlock

_ROUNDS = 60
_SETTLED = 1e-9
_OFF = 0.03  # share of an MLP input outside of the span up to which it is one of the client's


class Picture(NamedTuple):
    """One picture.

    Args:
        image: model input, (channel, height, width), float64.
        shares: of each row, how large what lies outside of the spans of both layers is, computed from the image alone.
        rows: token of each row.
    """

    image: Float[Tensor, "channel height width"]
    shares: Float[Tensor, " row"]
    rows: Rows

    @property
    def confidence(self) -> float:
        """Share of its tokens that lie in both spans of the update: 1 for an image of the client, near 0 for others."""
        return float((self.shares < _OFF).double().mean())

    @property
    def missing(self) -> int:
        """Rows without a token."""
        return self.rows.count(EMPTY)


def solve_pictures(block: FirstBlock, assembly: Assembly) -> list[Picture]:
    """Return the pictures behind placed tokens; those without a patch are left out."""
    return [
        _solved(block, assembly.streams, rows)
        for rows in assembly.pictures
        if any(token != EMPTY for token in rows[block.prefixes :])
    ]


def shares_outside(block: FirstBlock, images: Images) -> Float[Tensor, "image row"]:
    """Return how large what lies outside of both spans of the MLP is for each row of given images: near 0 for the client's.

    Args:
        block: with the spans of the update.
        images: normalized, float64.
    """
    module: Any = block.block
    before = _before(block, images)
    inputs = module.norm2(before + module.attn(module.norm1(before)))
    flat = inputs.flatten(0, 1)
    activations = module.mlp.act(module.mlp.fc1(flat))
    worst = torch.maximum(block.inputs.outside(flat), block.hidden.outside(activations))
    return worst.view(inputs.shape[:2])


def _before(block: FirstBlock, images: Images) -> Tensor:
    model = block.model
    tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return tokens


def _solved(block: FirstBlock, streams: Tokens, rows: Rows) -> Picture:
    """Return a picture by rounds of: pixels from tokens minus what attention adds, attention from pixels."""
    fixed = row_embeddings(block)
    patches = [row for row in range(block.prefixes, len(rows)) if rows[row] != EMPTY]
    seen = streams[[rows[row] for row in patches]]
    solve = torch.linalg.pinv(block.pixel_directions)[:-1]
    places = [row - block.prefixes for row in patches]
    missing = [place for place in range(block.grid.count) if place not in set(places)]
    module: Any = block.block

    def pixels(added: Tensor) -> Tensor:
        values = block.patches.new_zeros(block.grid.count, block.grid.values)
        values[places] = (seen - added - fixed[patches]) @ solve.T @ block.patches
        values[missing] = values[places].mean(0)
        return block.grid.join(values[None])

    def attended(added: Tensor) -> Tensor:
        all_rows = centered(module.attn(module.norm1(_before(block, pixels(added)))))[0]
        off = measured - all_rows[prefixes].mean(0) if prefixes else 0
        return all_rows[patches] + off

    # A prefix token is known before the attention, so what the attention adds to it is measured. With that as the origin, the
    # map contracts where the attention's mean alone would make it diverge.
    prefixes = [row for row in range(block.prefixes) if rows[row] != EMPTY]
    measured = centered(streams[[rows[row] for row in prefixes]] - fixed[prefixes]).mean(0)
    together = streams[[token for token in rows if token != EMPTY]]  # prefixes first
    start = (together - without_attention(block, together, range(len(together))))[-len(patches) :]
    image = pixels(fixed_point(attended, start, _ROUNDS, _SETTLED))
    return Picture(image[0], shares_outside(block, image)[0], rows)
