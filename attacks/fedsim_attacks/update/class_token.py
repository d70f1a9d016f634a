"""Leave out what the loss never sees: behind the last attention of a ViT, every token but the class token.

A head that reads the class token alone makes the last block's projection, MLP and norms of all other tokens dead code: no
value and no gradient depends on them. Of a ViT of depth d that is about 3 / (4 d) of a pass.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


def keep_class_token_only(model: nn.Module) -> bool:
    """Make a model compute its class token alone behind the last attention, and say whether it could.

    Loss and gradients stay what they are; `forward_features` then returns one token. Names of parameters and weights are
    untouched. Only timm's plain ViT with its plain block is known to read nothing else; other models are left alone.

    Args:
        model: changed in place.
    """
    # Subclasses may read further tokens: DeiT's distilled head does.
    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return False
    block = model.blocks[-1]
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    # What comes out of each is added to all tokens, and the next hook drops all but the class token of the sum.
    for part in (block.attn.proj, block.norm2, model.norm):
        part.register_forward_pre_hook(_first_token)
    return True


def _first_token(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    tokens: Tensor = inputs[0]
    return tokens[:, :1]
