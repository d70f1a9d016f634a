"""The first block of a Vision Transformer, and the spans of its layers' inputs and output gradients in an update.

The weight gradient of a linear layer is the sum over all tokens of all images of (output gradient) (input)^T; with the bias
gradient as one more column, an input is (a, 1). While there are fewer tokens than the layer is wide, the row space is the span
of the inputs, and the column space that of the output gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation
from fedsim.models import PatchGrid, patch_grid, prefix_rows
from fedsim_attacks.update import PROJECTION, mean_gradient

_BLOCK = "blocks.0"
_FC1, _FC2, _ATTENTION = f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.attn.proj"
_HALF = 0.5  # typical entry of an input of either layer, by which the appended 1 is scaled


@dataclass(frozen=True)
class LayerSpan:
    """The gradient of one linear layer as singular vectors, float64.

    Args:
        left: of output gradients, (out, rank).
        values: singular values, descending.
        right: of inputs with a constant appended, (rank, in + 1).
        constant: what is appended to an input.
    """

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank appended"]
    constant: float

    def leading(self, rank: int) -> LayerSpan:
        """Return the span of the largest singular values."""
        return LayerSpan(self.left[:, :rank], self.values[:rank], self.right[:rank], self.constant)

    def appended(self, inputs: Float[Tensor, "token in"]) -> Float[Tensor, "token appended"]:
        """Return inputs with the constant."""
        return torch.cat([inputs, torch.full_like(inputs[:, :1], self.constant)], 1)

    def outside(self, inputs: Float[Tensor, "token in"]) -> Float[Tensor, " token"]:
        """Return how large what lies outside of the span is beside each input, from 0 to 1."""
        whole = self.appended(inputs)
        right = self.right.to(whole)
        share: Tensor = (whole - (whole @ right.T) @ right).norm(dim=1) / whole.norm(dim=1)
        return share

    def dual(self, gradient: Float[Tensor, " out"]) -> Float[Tensor, " appended"]:
        """Return the vector orthogonal to the inputs of all tokens but the one with this output gradient, up to a factor."""
        return self.right.T @ ((self.left.T @ gradient) / self.values)


@dataclass(frozen=True)
class FirstBlock:
    """What the search for tokens needs of the first block; weights and gradients in float64.

    Args:
        model: global, in evaluation mode, float64.
        grid: how it cuts images.
        prefixes: class, distillation and register tokens before those of the patches.
        inputs: span of the inputs of the MLP's first layer.
        hidden: span of the inputs of its second layer.
        patches: right singular vectors of the patch projection's gradient, (rank, values), by descending singular value.
        attention: left singular vectors of the gradient of the attention's projection.
    """

    model: Any
    grid: PatchGrid
    prefixes: int
    inputs: LayerSpan
    hidden: LayerSpan
    patches: Float[Tensor, "directions value"]
    attention: Float[Tensor, "embed _"]

    @property
    def block(self) -> Block:
        """The module."""
        found: Block = self.model.blocks[0]
        return found

    @property
    def width(self) -> int:
        """Entries of a token."""
        return self.attention.shape[0]

    @property
    def tokens_per_image(self) -> int:
        """Patches and prefixes."""
        return self.grid.count + self.prefixes

    @property
    def pixel_directions(self) -> Float[Tensor, "embed _"]:
        """What patches in the span of the update's can do to a token; last the mean over entries, which centering removes."""
        projection: Tensor = self.model.patch_embed.proj.weight.flatten(1) @ self.patches.T
        return torch.cat([projection, torch.ones_like(projection[:, :1])], 1)

    def whitened(self, inputs: Float[Tensor, "token embed"]) -> Float[Tensor, "token embed"]:
        """Return the MLP's inputs without the affine part of its layer norm: mean 0, mean square 1."""
        norm: Any = self.block.norm2
        white: Tensor = (inputs - norm.bias) / norm.weight
        return white

    def limited(self, tokens: int) -> FirstBlock:
        """Return the block with the spans of this many tokens."""
        return FirstBlock(
            self.model,
            self.grid,
            self.prefixes,
            self.inputs.leading(tokens),
            self.hidden.leading(tokens),
            self.patches[: tokens // self.tokens_per_image * self.grid.count],
            self.attention[:, :tokens],
        )


def read_first_block(observation: Observation) -> FirstBlock:
    """Return the first block and its spans, of full rank.

    Raises:
        AttackRefusedError: the model is no plain Vision Transformer, or the update lacks a gradient.
    """
    model: Any = observation.model().double().requires_grad_(False)
    grid, prefixes = patch_grid(model), _prefixes(model)
    if reason := _obstacle(model):
        raise AttackRefusedError(f"{reason}, and the spans are those of a plain Vision Transformer's first block.")
    layers = (_FC1, _FC2, _ATTENTION)
    gradients = mean_gradient(
        observation, [PROJECTION, *(f"{name}.{part}" for name in layers for part in ("weight", "bias"))]
    )
    tensors = gradients.tensors
    attention, _, _ = torch.linalg.svd(_shared(tensors, f"{_ATTENTION}.weight"), full_matrices=False)
    _, _, patches = torch.linalg.svd(_shared(tensors, PROJECTION).flatten(1), full_matrices=False)
    width = model.embed_dim
    return FirstBlock(
        model, grid, prefixes, _span(tensors, _FC1, width), _span(tensors, _FC2, width), patches, attention
    )


def _prefixes(model: Any) -> int:
    prefix_rows(model)  # refuses a model without learned positions
    return int(model.num_prefix_tokens)


def _obstacle(model: Any) -> str | None:
    block = next(iter(getattr(model, "blocks", ())), None)
    if not isinstance(block, Block):
        return "the model does not begin with timm's plain block"
    if not isinstance(model.norm_pre, nn.Identity):
        return "a layer norm stands before the first block"
    plain = isinstance(block.ls2, nn.Identity) and isinstance(getattr(block.mlp, "norm", None), nn.Identity | None)
    if not plain:
        return "its MLP has a layer scale or a norm of its own"
    mlp: Any = block.mlp
    if any(layer.bias is None for layer in (mlp.fc1, mlp.fc2)):
        return "its MLP has no biases"
    if not isinstance(block.norm2, nn.LayerNorm) or block.norm2.weight is None or not bool(block.norm2.weight.all()):
        return "its MLP does not follow a layer norm with weights"
    return None


def _span(tensors: Mapping[str, Tensor], layer: str, width: int) -> LayerSpan:
    weight, bias = _shared(tensors, f"{layer}.weight"), _shared(tensors, f"{layer}.bias")
    constant = _HALF * width**0.5
    left, values, right = torch.linalg.svd(torch.cat([weight, constant * bias[:, None]], 1), full_matrices=False)
    return LayerSpan(left, values, right, constant)


def _shared(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or not bool(tensor.any()):
        state = "missing from the update" if tensor is None else "zero"
        raise AttackRefusedError(f"the gradient of {name} is {state}: the client froze it or did not share it.")
    if not bool(torch.isfinite(tensor).all()):
        raise AttackRefusedError(f"the gradient of {name} has entries that are not finite.")
    return tensor
