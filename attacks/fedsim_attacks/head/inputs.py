"""What reaches the classifier: of given images, and of the client's, as its classifier's gradient shows them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Labels, Observation
from fedsim_attacks.head.features import recover_features

_REFERENCES, _RESTARTS = 64, 6  # of the recovery of head inputs


def read_head_inputs(
    observation: Observation, model: nn.Module, labels: Labels, generator: torch.Generator
) -> Float[Tensor, "batch embed"]:
    """Return head inputs of the client's images, in the order of the labels, as its classifier's gradient shows them.

    Args:
        observation: of one gradient.
        model: attacked.
        labels: of the images.
        generator: draws reference images and starts.

    Raises:
        AttackRefusedError: it does not show them.
    """
    wanted = recover_features(observation, labels.cpu(), _REFERENCES, _RESTARTS, generator).inputs
    if wanted.shape[1] != getattr(model, "num_features", None):
        raise AttackRefusedError(
            "features: the model has several classifiers, or a head input that is not its last token."
        )
    return wanted.to(next(model.parameters()))


def head_input(model: nn.Module, images: Images) -> Float[Tensor, "batch embed"]:
    """Return what reaches the classifier of a timm ViT, differentiable."""
    tokens = model.forward_features(images)  # type: ignore[operator]
    found: Tensor = model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    head = getattr(model, "head", None)
    return head.bottleneck(found) if isinstance(head, models.BottleneckedLinear) else found
