"""What the first attention of a Vision Transformer sees, and the proof that it sees tokens plus positions and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Normalization, Observation
from fedsim.models import PatchGrid, patch_grid
from fedsim_attacks.closed_form.bilinear import Projection
from fedsim_attacks.priors import GREY, natural_noise
from fedsim_attacks.update import POSITIONS, PROJECTION

WEIGHTS, BIAS = "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"
PREFIX = ("cls_token", "reg_token")  # in timm's order; their gradients stand in where pos_embed has no rows for them

_SAME = 1e-3  # relative error in float32 of what holds by construction; where it does not hold, it is about one
_STOCK = (
    "the first attention of this model does not see tokens plus positions alone: a layer norm before it or a residual "
    "around it changes what the gradients say, as in every stock ViT. Use patch_embedding, which inverts stock models, or "
    "build the model with `model.first_block: april`."
)

Rows = Float[Tensor, "row embed"]


class FirstAttention(NamedTuple):
    """The first attention of a model for which APRIL's identity holds.

    Args:
        grid: how the model cuts images.
        inputs: what the attention sees of a grey image, prefix rows included, float64.
        projection: how a patch of pixels, minus grey, adds to its row.
        weights: of query, key and value.
        has_key_bias: whether a bias moves the keys, and the attention not at all.
        dropout: share of its inputs that is dropped in training mode.
    """

    grid: PatchGrid
    inputs: Rows
    projection: Projection
    weights: Float[Tensor, "features embed"]
    has_key_bias: bool
    dropout: float


def first_attention(
    observation: Observation, normalization: Normalization, generator: torch.Generator
) -> FirstAttention:
    """Return the first attention, once a random image has shown that the identity holds.

    Raises:
        AttackRefusedError: it does not, or the model lacks what it speaks of.
    """
    model = observation.model().requires_grad_()
    if getattr(model, POSITIONS, None) is None:
        raise AttackRefusedError("the model has no learned position embedding, whose gradient this attack reads.")
    known = dict(model.named_parameters())
    grid = patch_grid(model)
    shape = (grid.channels, grid.rows * grid.patch, grid.columns * grid.patch)
    if shape != observation.image_shape:
        raise AttackRefusedError(f"images of shape {observation.image_shape} do not fill the patch grid of {shape}.")
    if WEIGHTS not in known:
        raise AttackRefusedError("the first block has no joint weights of query, key and value.")
    pixels = torch.cat([torch.full((1, *shape), GREY), natural_noise(1, shape, generator)])
    inputs, rows, gradient = _probe(model, known, normalization.normalize(pixels))
    scale = torch.tensor(normalization.std).repeat_interleave(grid.patch**2)
    projection = known[PROJECTION].detach().flatten(1) / scale
    prefix = inputs.shape[1] - grid.count
    expected = torch.zeros_like(inputs[0])
    expected[prefix:] = grid.cut(pixels[1:] - GREY)[0] @ projection.T
    weights = known[WEIGHTS].detach()
    if not (_agree(inputs[1] - inputs[0], expected) and _agree(rows.T @ inputs[1], weights.T @ gradient)):
        raise AttackRefusedError(_STOCK)
    attention = model.blocks[0].attn  # type: ignore[index,union-attr]
    is_plain = isinstance(getattr(attention, "k_norm", None), nn.Identity)
    return FirstAttention(
        grid,
        inputs[0].double(),
        projection.double(),
        weights.double(),
        is_plain and BIAS in known,
        float(getattr(model.pos_drop, "p", 0.0)),
    )


def token_rows(tensors: Mapping[str, Tensor], count: int) -> Rows | None:
    """Return the gradients at all rows of the attention's input; None where some are not shared.

    Args:
        tensors: gradients by name, that of the position embedding among them.
        count: of rows.
    """
    positions = tensors[POSITIONS][0]
    prefix = [tensors[name][0] for name in PREFIX if name in tensors] if len(positions) < count else []
    rows = torch.cat([*prefix, positions])
    return rows if len(rows) == count else None


def _probe(
    model: nn.Module, known: Mapping[str, nn.Parameter], images: Images
) -> tuple[Float[Tensor, "batch row embed"], Rows, Float[Tensor, "features embed"]]:
    """Return what the attention sees of each image, and for the last one gradients of its rows and weights."""
    seen: list[Tensor] = []
    attention = model.blocks[0].attn  # type: ignore[index,union-attr]
    hook = attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        output = model(images)
    finally:
        hook.remove()
    names = [name for name in (POSITIONS, WEIGHTS, *PREFIX) if name in known]
    slopes = torch.linspace(-1, 1, output[-1].numel()).reshape(output[-1].shape)
    found = torch.autograd.grad((output[-1] * slopes).sum(), [known[name] for name in names], allow_unused=True)
    gradients = {n: torch.zeros_like(known[n]) if g is None else g for n, g in zip(names, found, strict=True)}
    inputs = seen[0].detach()
    rows = token_rows(gradients, inputs.shape[1])
    if rows is None:
        raise AttackRefusedError(_STOCK)
    return inputs, rows, gradients[WEIGHTS]


def _agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= _SAME * expected.norm())
