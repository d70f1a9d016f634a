"""One training step of a model on random pictures, before anything depends on it: what cannot train is refused with the reason.

timm takes many kwargs that build a model which cannot run, or one whose output for a picture depends on the others of its
batch. An audit scores pictures one by one, and the server sends parameters alone.
"""

from __future__ import annotations

import copy

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.errors import ScenarioError
from fedsim.faults import shown
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded
from fedsim.weights import in_one_line


def run(model: VisionTransformer, part: ModelPart, num_classes: int, image_size: int, seed: int) -> None:
    """Try a model out in both modes; weights and buffers stay as they are.

    Args:
        model: any mode, left in training mode.
        part: what the scenario says of it.
        num_classes: outputs that it should have.
        image_size: side of its pictures.
        seed: of the pictures and of dropout.

    Raises:
        ScenarioError: it does not run, its buffers change in training, pictures of a batch influence each other, or its
            output is not one finite row of logits a picture.
    """
    _refuse_batch_norm(model, part)
    small = _shallow(model)
    before = {name: buffer.clone() for name, buffer in small.named_buffers()}
    channels = model.patch_embed.proj.in_channels
    with seeded(seed, "trial"), torch.enable_grad():
        images = torch.randn((2, channels, image_size, image_size), requires_grad=True)
        try:
            with torch.no_grad():
                evaluated = small.eval()(images)
            trained = small.train()(images)
            if evaluated.shape != (2, num_classes) or trained.shape != (2, num_classes):
                raise _refusal(
                    part, f"gives {_size(trained)} outputs for two pictures, not 2 x {num_classes}", "global_pool"
                )
            gradients = _gradients(small, images, trained)
        except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ArithmeticError) as error:
            raise _refusal(part, f"cannot train: {in_one_line(error)}") from None
    changed = [name for name, buffer in small.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise _refusal(part, f"changes buffers in training ({changed[0]}), and buffers do not travel yet")
    if not all(bool(torch.isfinite(values).all()) for values in (evaluated, trained, *gradients)):
        raise _refusal(part, "gives outputs or gradients that are not finite")
    if gradients[0][1].any():
        raise _refusal(
            part, "lets the pictures of a batch influence each other, which an audit of each picture does not allow for"
        )


def _refuse_batch_norm(model: VisionTransformer, part: ModelPart) -> None:
    """Refuse batch normalization by its name: on tokens it mostly fails with a message on shapes."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise _refusal(
                part,
                f"has a {type(module).__name__} ({name}): it lets the pictures of a batch influence each other, and its "
                "running statistics are buffers, which do not travel yet",
            )


def _shallow(model: VisionTransformer) -> VisionTransformer:
    """Return the model with its first and last block alone, on the same tensors; blocks between are built like the last."""
    small = copy.copy(model)
    small._modules = dict(model._modules)
    if len(model.blocks) > 2:
        small.blocks = nn.Sequential(model.blocks[0], model.blocks[-1])
    return small


def _gradients(model: VisionTransformer, images: Tensor, logits: Tensor) -> list[Tensor]:
    """Return the gradients of the first picture's loss for all pictures and the parameters that it reaches."""
    loss = nn.functional.cross_entropy(logits[:1], torch.zeros(1, dtype=torch.long))
    found = torch.autograd.grad(loss, [images, *model.parameters()], allow_unused=True)
    first = torch.zeros_like(images) if found[0] is None else found[0]
    return [first, *(gradient for gradient in found[1:] if gradient is not None)]


def _refusal(part: ModelPart, reason: str, cause: str | None = None) -> ScenarioError:
    """Return the error at the kwarg that is to blame: the one given, else the only layer that was chosen."""
    layers = [key for key in part.kwargs if key.endswith("_layer")]
    key = cause if cause in part.kwargs else layers[0] if len(layers) == 1 else None
    where = f"model.kwargs.{key}" if key else "model.kwargs" if part.kwargs else "model.name"
    given = f" (with {shown(part.kwargs)})" if part.kwargs and not key else ""
    return ScenarioError(where, f"{part.name} {reason}{given}. Change it, or leave it out.")


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
