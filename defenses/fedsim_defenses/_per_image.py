"""Gradients of single images, clipped and summed, of any torch model.

Each image passes the model alone, in a batch of one, vectorized over the batch by `torch.func.vmap` of `torch.func.grad`. So no
image can influence the gradient of another, whatever the model does, and bare parameters such as position embedding and class
token need no rule of their own. The model is called as it is, with what a defense has set on it, and nothing stays on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedsim import models
from fedsim.exchange import Images, Labels

_MOST_VALUES = 2**26  # of the gradients that are held at once, 256 MiB
_Gradients = dict[str, Tensor]


class PerImage(NamedTuple):
    """Gradients of the cross-entropy of each image of a batch, by trained parameter's name, and its loss."""

    gradients: _Gradients  # (batch, *parameter)
    losses: Tensor  # (batch,)


class ClippedSum(NamedTuple):
    """What the images of a batch give together.

    Args:
        gradients: sum of their clipped gradients, by trained parameter's name.
        within: how many of them have a gradient of at most the clipping norm.
        loss: their mean cross-entropy; 0 of no image.
    """

    gradients: _Gradients
    within: int
    loss: Tensor


def per_image(model: nn.Module, images: Images, labels: Labels) -> PerImage:
    """Return the gradient of each image's cross-entropy; the model's own `.grad` stays untouched.

    Args:
        model: in the mode it is in; dropout draws for each image anew.
        images: normalized model input, at least one.
        labels: hard or soft labels.

    Raises:
        ValueError: the model does what cannot be vectorized over images, such as to change a buffer.
    """
    parameters = {name: parameter.detach() for name, parameter in models.trained(model).items()}

    def loss(parameters: _Gradients, image: Tensor, label: Tensor) -> Tensor:
        return models.training_loss(model, functional_call(model, parameters, (image[None],)), label[None])

    each = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
    with models.unfused_attention(model):  # fused kernels have no rule for vmap
        try:
            return PerImage(*each(parameters, images, labels))
        except RuntimeError as error:
            if not any(word in str(error) for word in ("vmap", "transform")):  # of torch.func
                raise
            raise ValueError(
                f"gradients of single images cannot be computed on {type(model).__name__}: {str(error).splitlines()[0]}"
            ) from error


def clipped_sum(model: nn.Module, images: Images, labels: Labels, clip_norm: float) -> ClippedSum:
    """Return the sum over images of g min(1, clip_norm / |g|), g being an image's gradient as one vector.

    Args:
        model: see `per_image`.
        images: normalized model input; may be empty.
        labels: hard or soft labels.
        clip_norm: largest norm that a gradient keeps; above 0.
    """
    parameters = models.trained(model)
    summed = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    within, total = 0, images.new_zeros(())
    chunk = max(1, _MOST_VALUES // sum(parameter.numel() for parameter in parameters.values()))
    for start in range(0, len(images), chunk):
        found = per_image(model, images[start : start + chunk], labels[start : start + chunk])
        # As one number an image and tensor, so that the norm needs no copy of all gradients.
        each = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in found.gradients.values()]
        norms = torch.stack(each).norm(dim=0)
        factors = (clip_norm / norms).clamp(max=1)
        for name, gradient in found.gradients.items():
            summed[name] += torch.tensordot(factors, gradient, dims=1)
        within += int((norms <= clip_norm).sum())
        total += found.losses.detach().sum()
    return ClippedSum(summed, within, total / max(1, len(images)))
