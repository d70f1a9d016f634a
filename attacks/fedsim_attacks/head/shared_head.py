"""The classifier of an update as one linear map, what is known of its inputs, and the noise in its gradient.

Heads whose logits are averaged (distilled ViTs) are one head that reads the stacked inputs: with k heads, weights W_i / k
and gradients k G_i side by side leave logits and (p - y) h^T as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation
from fedsim_attacks.head.classifier import read_classifier
from fedsim_attacks.update import told_effects

ClassVector = Float[Tensor, " class"]
Features = Float[Tensor, "image embed"]
Direction = Float[Tensor, " embed"]

_FLAT = 1e-3  # a layer norm's scale beside its largest, from where on its outputs tell nothing about its inputs


@dataclass(frozen=True)
class FeatureNorm:
    """The layer norm before the classifier: h = scale z + shift, z of mean 0 and mean square 1 on each head's part.

    The mean square is v / (v + eps) for a token of variance v: just below 1.
    """

    scale: Float[Tensor, "head width"]
    shift: Float[Tensor, "head width"]

    def standardize(self, features: Features) -> Float[Tensor, "image head width"]:
        """Return z of each head input."""
        return (features.view(-1, *self.scale.shape) - self.shift) / self.scale

    def deviations(self, features: Features) -> Float[Tensor, " image"]:
        """Return how far each head input is from an output of the layer norm: 0 where it is one."""
        z = self.standardize(features)
        moments = torch.stack([z.mean(-1), z.square().mean(-1) - 1])
        return moments.abs().amax((0, 2))

    def lengths(self, direction: Direction) -> tuple[float, ...]:
        """Return the multiples of a direction whose z has mean square 1; none where no multiple reaches it."""
        along = direction.view(self.scale.shape) / self.scale
        away = self.shift / self.scale
        square, cross = float(along.square().mean()), float((along * away).mean())
        root = cross**2 - square * (float(away.square().mean()) - 1)
        if root < 0 or square == 0:
            return ()
        return ((cross + math.sqrt(root)) / square, (cross - math.sqrt(root)) / square)

    def longest(self) -> float:
        """Return what the norm of a head input cannot exceed."""
        return float(self.scale.abs().max()) * math.sqrt(self.scale.numel()) + float(self.shift.norm())


class RankOne(NamedTuple):
    """The gradient as the outer product of one residual and one input, each up to a factor.

    Args:
        residual: p - y of unit norm.
        direction: the head input, of unit norm.
        size: product of the norms that these two have lost.
        ratio: of the second singular value to the first; what a single input does not explain.
        noise: how large noise is, as sums over classes show it, relative to `size`.
    """

    residual: ClassVector
    direction: Direction
    size: float
    ratio: float
    noise: float


@dataclass(frozen=True)
class SharedHead:
    """A classifier and the mean over images of its gradient, in float64.

    Args:
        weight: of the classifier.
        bias: of the classifier, zero where it has none.
        weight_gradient: mean of (p - y) h^T.
        bias_gradient: mean of p - y; None where it was not shared.
        norm: the layer norm that produced the inputs; None where something else did.
        is_scaled: whether the gradient's factor is known to be one; else it is unknown and positive.
    """

    weight: Float[Tensor, "class embed"]
    bias: ClassVector
    weight_gradient: Float[Tensor, "class embed"]
    bias_gradient: ClassVector | None
    norm: FeatureNorm | None
    is_scaled: bool

    @property
    def noise(self) -> float:
        """Standard deviation of an entry, from sums over classes, which vanish for every image."""
        return float(self.weight_gradient.sum(0).square().mean().sqrt()) / math.sqrt(len(self.weight))

    @property
    def joined(self) -> Float[Tensor, "class column"]:
        """The weight gradient, and the bias gradient as a last column where there is one."""
        if self.bias_gradient is None:
            return self.weight_gradient
        return torch.cat([self.weight_gradient, self.bias_gradient[:, None]], 1)

    def logits(self, features: Features) -> Float[Tensor, "image class"]:
        """Return the logits of head inputs."""
        return features @ self.weight.T + self.bias

    def rank_one(self) -> RankOne:
        """Return the nearest gradient of a single input."""
        left, values, right = torch.linalg.svd(self.weight_gradient, full_matrices=False)
        # Errors of one row, as rounding makes them in the largest, have this norm; spread over all rows they have less. Along
        # the input lies the error of p - y, which multiplies whole rows.
        sums = self.weight_gradient.sum(0)
        noise = float((sums - (sums @ right[0]) * right[0]).norm())
        size, second = values[:2].tolist() if len(values) > 1 else (float(values[0]), 0.0)
        return RankOne(left[:, 0], right[0], size, second / size, noise / size)


def read_shared_head(observation: Observation) -> SharedHead:
    """Return the classifier of an update.

    Raises:
        AttackRefusedError: it is missing, was not shared, is zero or not finite, or has one class; the client's optimizer is
            not linear; or the client is known to drop entries of it, or to send signs.
    """
    if any(effects.dropped or effects.signs for effects in told_effects(observation)):
        raise AttackRefusedError(
            "the client is known to drop entries of the classifier's gradient or to send signs, so that the head inputs in it "
            "are not those of its images."
        )
    heads, is_scaled = read_classifier(observation)
    missing = [head.names.weight for head in heads if head.weight_gradient is None]
    if missing:
        raise AttackRefusedError(f"the gradient of {', '.join(missing)} was not shared.")
    count, gradients = len(heads), [head.weight_gradient for head in heads if head.weight_gradient is not None]
    shared = SharedHead(
        weight=torch.cat([head.weight / count for head in heads], 1),
        bias=torch.stack([head.bias / count for head in heads]).sum(0),
        weight_gradient=torch.cat([gradient * count for gradient in gradients], 1),
        bias_gradient=_bias_gradient([head.bias_gradient for head in heads]),
        norm=_feature_norm(observation.model(), count),
        is_scaled=is_scaled,
    )
    if not shared.weight_gradient.any():
        raise AttackRefusedError("the gradient of the classifier is zero: it was not shared, or fell below float32.")
    return shared


def _bias_gradient(gradients: list[ClassVector | None]) -> ClassVector | None:
    shared = [gradient for gradient in gradients if gradient is not None]
    # All zeros stand for what was held back: p - y is not zero where the weight gradient is not.
    return torch.stack(shared).sum(0) if len(shared) == len(gradients) and any(t.any() for t in shared) else None


def _feature_norm(model: nn.Module, heads: int) -> FeatureNorm | None:
    """Return timm's last layer norm where its output reaches the classifier as it is: no pooling in between."""
    if isinstance(getattr(model, "head", None), models.BottleneckedLinear):
        return None
    last = getattr(model, "fc_norm", None)
    if not isinstance(last, nn.LayerNorm):
        last = model.norm if getattr(model, "global_pool", None) == "token" else None
    if not isinstance(last, nn.LayerNorm) or last.weight is None or last.bias is None:
        return None
    scale, shift = last.weight.detach().double(), last.bias.detach().double()
    if float(scale.abs().min()) <= _FLAT * float(scale.abs().max()):
        return None
    return FeatureNorm(scale.expand(heads, -1), shift.expand(heads, -1))
