"""Masked image modeling on a timm ViT: what of an image the encoder sees, and a light decoder that tells the rest.

He, Chen, Xie, Li, Dollar, Girshick. "Masked Autoencoders Are Scalable Vision Learners". CVPR 2022.
https://arxiv.org/abs/2111.06377

The encoder is the model without its classifier, on the class token and the visible patches alone. The decoder puts a learned
token in the place of every other patch, adds a fixed sine-cosine table of positions, and predicts the patches. A model gets the
decoder as one more part, `mimir`, of which its own forward pass knows nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Images
from fedsim.models import PatchGrid, patch_grid

Tokens = Float[Tensor, "batch token embed"]
Visible = Int[Tensor, "batch seen"]
"""Of each image the numbers of the patches that the encoder sees, ascending."""

_TOKEN_STD = 0.02  # of the published code, for the mask token
_FLOOR = 1e-6  # added to the variance of a patch, as in the published code


class Decoder(nn.Module):
    """Predicts the pixels of all patches from the tokens of the visible ones.

    Args:
        embed: width of the encoder.
        grid: how the encoder cuts an image.
        width: of the decoder; a multiple of four and of `heads`.
        depth: number of blocks.
        heads: of the attention.
    """

    positions: Tensor

    def __init__(self, embed: int, grid: PatchGrid, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.shape = (width, depth, heads)
        self.embed = nn.Linear(embed, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=_TOKEN_STD)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, grid.values)
        table = build_sincos2d_pos_embed([grid.rows, grid.columns], width)
        self.register_buffer("positions", table[None].float(), persistent=False)  # fixed, so that it does not travel

    def forward(self, tokens: Tokens, visible: Visible) -> Float[Tensor, "batch patch value"]:
        """Return what is predicted of every patch.

        Args:
            tokens: of the encoder: class and register tokens, then those of the visible patches.
            visible: which these are.
        """
        known, count = self.embed(tokens), visible.shape[1]
        others, seen = known[:, : known.shape[1] - count], known[:, known.shape[1] - count :]
        places = self.positions.shape[1]
        every = self.mask_token.expand(len(tokens), places, -1)
        every = every.scatter(1, visible[..., None].expand(-1, -1, seen.shape[2]), seen) + self.positions
        decoded = self.norm(self.blocks(torch.cat([others, every], 1)))
        predicted: Tensor = self.predict(decoded[:, -places:])
        return predicted


def add_decoder(model: nn.Module, width: int, depth: int, heads: int) -> None:
    """Give a timm ViT a decoder, in place; one that has it already keeps it.

    New parameters are drawn from torch's global generator, and come last, under `mimir.`.

    Raises:
        ScenarioError: the model is no Vision Transformer of timm, or has a decoder of another shape.
    """
    known = getattr(model, "mimir", None)
    if isinstance(known, Decoder):
        if known.shape != (width, depth, heads):
            raise ScenarioError(
                "defenses",
                f"mimir is listed with decoders of width, depth and heads {known.shape} and {(width, depth, heads)}, and a "
                "model has one decoder, which all clients share. Give them one shape.",
            )
        return
    if not isinstance(model, VisionTransformer):
        raise ScenarioError(
            "model.name",
            f"mimir masks patches of a Vision Transformer of timm, and {type(model).__name__} is none. Choose a ViT, or "
            "leave mimir out.",
        )
    model.mimir = Decoder(model.embed_dim, patch_grid(model), width, depth, heads)


def decoder_of(model: nn.Module) -> Decoder:
    """Return the decoder that `add_decoder` gave a model."""
    return cast(Decoder, model.mimir)


def visible_count(grid: PatchGrid, ratio: float) -> int:
    """Return how many patches of an image are left when a share of them is masked: the share that is left, rounded down."""
    return int(grid.count * (1 - ratio) + 1e-9)  # 0.1 of 10 patches is one, whatever binary fractions say


def draw_visible(grid: PatchGrid, images: Images, ratio: float, generator: torch.Generator) -> Visible:
    """Draw which patches of each image are left, for each image anew and uniformly."""
    drawn = torch.rand(len(images), grid.count, generator=generator, device=generator.device)
    return drawn.argsort(1)[:, : visible_count(grid, ratio)].sort(1).values.to(images.device)


def encode(model: nn.Module, images: Images, visible: Visible) -> Tokens:
    """Return the encoder's output: class and register tokens, then the visible patches in order.

    Args:
        model: a timm ViT.
        images: normalized model input.
        visible: the patches that the encoder sees.
    """
    vit: Any = model
    tokens = vit._pos_embed(vit.patch_embed(images))
    places = patch_grid(model).count
    others, patches = tokens[:, : tokens.shape[1] - places], tokens[:, tokens.shape[1] - places :]
    seen = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[2]))
    encoded: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([others, seen], 1))))
    return encoded


def reconstruction_loss(model: nn.Module, tokens: Tokens, target: Images, visible: Visible) -> Float[Tensor, " batch"]:
    """Return the mean squared error over the masked patches of each image.

    Args:
        model: with a decoder.
        tokens: what the encoder made of the visible patches.
        target: what is to be predicted, normalized model input; each patch of it is standardized first.
        visible: the patches that the encoder saw, and which do not count.
    """
    predicted = decoder_of(model)(tokens, visible)
    error = ((predicted - standardized(patch_grid(model).cut(target))) ** 2).mean(2)
    masked = torch.ones_like(error).scatter(1, visible, 0)
    losses: Tensor = (error * masked).sum(1) / masked.sum(1)
    return losses


def standardized(patches: Float[Tensor, "batch patch value"]) -> Float[Tensor, "batch patch value"]:
    """Return patches with mean 0 and variance 1 over their values; a constant one becomes 0."""
    correction = min(1, patches.shape[2] - 1)
    variance = patches.var(2, keepdim=True, correction=correction)
    scaled: Tensor = (patches - patches.mean(2, keepdim=True)) / (variance + _FLOOR).sqrt()
    return scaled
