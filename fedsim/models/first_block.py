"""First blocks of a Vision Transformer that differ from timm's, for attacks that were published on such models."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fedsim.errors import ScenarioError

Tokens = Float[Tensor, "batch token embed"]


class AprilBlock(nn.Module):
    """A timm block without the layer norm before its attention and without both residual connections.

    The attention sees its input as it is, and nothing passes around it. Parameters keep timm's names; those of `norm1` are
    gone, and are left out when weights of a stock model are loaded.

    Source: Lu, Zhang, Zhao, He, Cheng, "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers", CVPR 2022;
    which parts go, from `ModifiedBlock` of breaching 0.1.2, https://github.com/JonasGeiping/breaching
    """

    def __init__(self, block: Block) -> None:
        """Take over the parts of a block that stay.

        Args:
            block: of timm; not to be used afterwards. Its stochastic depth goes with the residuals.
        """
        super().__init__()
        self.attn, self.ls1 = block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        self.register_load_state_dict_pre_hook(_without_norm1)  # type: ignore[no-untyped-call]

    def forward(self, x: Tokens, **attention: Any) -> Tokens:
        """Return the block's output.

        Args:
            x: the sum of tokens and position embedding.
            attention: what timm's block hands on to its attention, such as `attn_mask`.
        """
        x = self.ls1(self.attn(x, **attention))
        result: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return result


def _without_norm1(module: nn.Module, weights: dict[str, Any], prefix: str, *_: object) -> None:
    for name in [name for name in weights if name.startswith(f"{prefix}norm1.")]:
        del weights[name]


def make_april(model: VisionTransformer) -> None:
    """Exchange the first block for an `AprilBlock` with the same weights, in place.

    Raises:
        ScenarioError: the model's blocks are of another kind.
    """
    first = model.blocks[0]
    if type(first) is not Block:
        raise ScenarioError(
            "model.first_block",
            f"april alters timm's plain block; this model begins with a {type(first).__name__}. Choose another model.",
        )
    model.blocks[0] = AprilBlock(first)
