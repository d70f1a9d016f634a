"""What attacks on features read of a model: the tokens after its last block, beside its logits and its input."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Images

Rows = Float[Tensor, "batch value"]


class Features(nn.Module):
    """Pixels to the features before the classifier, one row an image.

    Args:
        model: that of the evaluation, made by timm.

    Raises:
        EvaluationRefusedError: it tells no features.
    """

    def __init__(self, model: PixelModel) -> None:
        super().__init__()
        if not callable(getattr(model.model, "forward_features", None)):
            raise EvaluationRefusedError(
                f"it attacks the features of a timm model, and {type(model.model).__name__} tells none"
            )
        self.pixels = model

    def forward(self, images: Images) -> Rows:
        """Return the features of images."""
        inner: Any = self.pixels.model
        features: Tensor = inner.forward_features(self.pixels.normalized(images))
        return features.flatten(1)


class Stacked(nn.Module):
    """Pixels to logits, features and pixels side by side, for a loss that needs all three."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Images) -> Rows:
        """Return the three, one row an image."""
        return torch.cat([self.features.pixels(images), self.features(images), images.flatten(1)], 1)
