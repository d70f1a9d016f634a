"""The gradients of a single token, out of the update's sums over all tokens.

At a token with pre-activations y the gradients at the two layers of the MLP are tied: inner = phi'(y) * (W2^T outer). Both lie
in a column space that the update shows, of as many dimensions as there are tokens. So there is one direction of `outer` for
which inner fits, and linear algebra alone finds it. That there is one also shows that the token is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim_attacks.spans.block import FirstBlock, LayerSpan


class GradientsOfToken(NamedTuple):
    """Of one token, in units of the update; see `tokens.Token`."""

    inner: Float[Tensor, " hidden"]
    outer: Float[Tensor, " embed"]
    dual: Float[Tensor, " appended"]
    certainty: float


@dataclass(frozen=True)
class TokenGradients:
    """What is common to all tokens of an update.

    Args:
        inputs: span of the first layer.
        outputs: left singular vectors of the second layer's gradient.
        back: W2^T outputs, (hidden, rank).
        weight: W1.
        bias: of the first layer.
        activation: elementwise.
    """

    inputs: LayerSpan
    outputs: Float[Tensor, "embed rank"]
    back: Float[Tensor, "hidden rank"]
    weight: Float[Tensor, "hidden embed"]
    bias: Float[Tensor, " hidden"]
    activation: nn.Module

    @staticmethod
    def of(block: FirstBlock) -> TokenGradients:
        """Read them off the first block."""
        mlp: Any = block.block.mlp
        outputs = block.hidden.left
        back = mlp.fc2.weight.T @ outputs
        return TokenGradients(block.inputs, outputs, back, mlp.fc1.weight, mlp.fc1.bias.detach(), mlp.act)

    def at(self, token: Float[Tensor, " embed"]) -> GradientsOfToken:
        """Return the gradients of the token with this input."""
        before = (self.weight @ token + self.bias).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.activation(before).sum(), before)
        inner = slope[:, None] * self.back
        inside = self.inputs.left.T @ inner
        curvature, directions = torch.linalg.eigh(inner.T @ inner - inside.T @ inside)
        fitting = directions[:, 0]
        dual = self.inputs.dual(inner @ fitting)
        factor = 1 / (dual @ self.inputs.appended(token[None])[0])
        errors = curvature.clamp_min(0).sqrt()
        certainty = float(errors[1] / errors[0].clamp_min(torch.finfo(errors.dtype).tiny)) if len(errors) > 1 else 1.0
        return GradientsOfToken(inner @ fitting * factor, self.outputs @ fitting * factor, dual * factor, certainty)
