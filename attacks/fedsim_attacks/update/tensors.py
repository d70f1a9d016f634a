"""The tensors of an update: the parameters of timm ViTs that attacks know by name, and the types they share."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

POSITIONS, PROJECTION, PROJECTION_BIAS = "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"

Gradients = Sequence[Tensor]
Scalar = Float[Tensor, ""]
TokenGradient = Float[Tensor, "token embed"]
