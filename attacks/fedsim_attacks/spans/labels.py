"""Labels of known images: what the classifier's gradient says of each, once its inputs are known."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim import models
from fedsim.exchange import HardLabels, Images, Observation
from fedsim_attacks.update import mean_gradient

_UNEXPLAINED = 0.1  # share of the classifier's gradient that known images may leave


@torch.no_grad()
def read_labels(observation: Observation, images: Images) -> tuple[HardLabels | None, str | None]:
    """Return the label of each image, and a doubt about them; no labels where the classifier's gradient is not shared.

    With head inputs h the weight gradient is the sum of (p - y) h^T over the images: solved for p - y, whose one negative entry
    is at the label.

    Args:
        observation: what the attack may know.
        images: all of the update, normalized.
    """
    names, *others = models.head_names(observation.model())
    gradients = mean_gradient(observation, [name for name in names if name]).tensors
    weight = gradients.get(names.weight)
    if others or weight is None or not bool(weight.any()):
        return None, None
    (inputs,) = models.head_inputs(observation.model().double(), images)
    parts = [weight]
    bias = None if names.bias is None else gradients.get(names.bias)
    if bias is not None and bool(bias.any()):
        parts.append(bias[:, None])
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    observed = torch.cat(parts, 1)
    residuals: Tensor = torch.linalg.lstsq(inputs.T, observed.T).solution
    left = float((observed.T - inputs.T @ residuals).norm() / observed.norm())
    doubt = None
    if left > _UNEXPLAINED:
        doubt = f"The images leave {left:.0%} of the classifier's gradient unexplained, so that labels may be wrong."
    return residuals.argmin(1), doubt
