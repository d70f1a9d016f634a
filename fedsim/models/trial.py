"""One training step of a model on random images, before anything depends on it: what cannot train is refused with the reason.

timm takes many kwargs that build a model which cannot run, or one whose output for an image depends on the others of its
batch, and a factory may return anything. An audit scores images one by one, and not every buffer travels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.errors import ScenarioError
from fedsim.models.copying import copied
from fedsim.models.interface import shared_state, trained
from fedsim.models.weights import in_one_line
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded
from fedsim.validation import shown


def run(
    model: nn.Module, part: ModelPart, num_classes: int, image_shape: tuple[int, int, int], seed: int
) -> tuple[str, ...]:
    """Try a model out in both modes; weights and buffers stay as they are, and so does its mode.

    Args:
        model: any torch module.
        part: what the scenario says of it.
        num_classes: outputs that it should have.
        image_shape: channels, height and width of its images.
        seed: of the images and of dropout.

    Returns:
        What its user should know, one sentence each.

    Raises:
        ScenarioError: it does not run, buffers that do not travel change in training, images of a batch influence each
            other by something else than batch normalization, or its output is not one finite row of logits an image.
    """
    small, norms = copied(_shallow(model)), [m for m in model.modules() if isinstance(m, _BatchNorm)]
    travelling = shared_state(small)
    before = {n: buffer.clone() for n, buffer in small.named_buffers() if n not in travelling}
    with seeded(seed, "trial"), torch.enable_grad():
        images = torch.randn((2, *image_shape), requires_grad=True)
        try:
            apart, evaluated = _step(small.eval(), part, images, num_classes)
            gradients, learned = _step(small.train(), part, images, num_classes)
        except ScenarioError:
            raise
        except Exception as error:  # noqa: BLE001  (boundary: a model may be anybody's code)
            raise _refusal(part, f"cannot train: {in_one_line(error)}") from None
    # timm's layers count batches and never read the count.
    changed = [
        name
        for name, buffer in small.named_buffers()
        if name in before and not name.endswith("num_batches_tracked") and not torch.equal(buffer, before[name])
    ]
    if changed:
        raise _refusal(
            part,
            f"changes a buffer in training that does not travel ({changed[0]}): floating-point buffers do that are part of the "
            "state dict",
        )
    if not all(bool(torch.isfinite(values).all()) for values in (evaluated, learned, *gradients)):
        raise _refusal(part, "gives outputs or gradients that are not finite")
    if (apart if norms else gradients)[0][1].any():
        raise _refusal(
            part, "lets the images of a batch influence each other, which an audit of each image does not allow for"
        )
    return _told(part, norms, model)


def draws_in_training(model: nn.Module, image_shape: tuple[int, int, int], seed: int) -> bool:
    """Return whether a model draws numbers in training mode, as dropout and stochastic depth do; it stays as it is.

    Args:
        model: one that `run` has passed.
        image_shape: channels, height and width of its images.
        seed: of what it draws.
    """
    tried = copied(model).train()
    with seeded(seed, "draws"), torch.no_grad():
        images = torch.zeros((2, *image_shape))
        before = torch.get_rng_state()
        tried(images)
        return not torch.equal(before, torch.get_rng_state())


def _step(model: nn.Module, part: ModelPart, images: Tensor, num_classes: int) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the first image's loss, and the logits."""
    logits: Any = model(images)
    if not isinstance(logits, Tensor):
        raise _refusal(part, f"gives {type(logits).__name__}, not a tensor of logits")
    if logits.shape != (2, num_classes):
        raise _refusal(part, f"gives {_size(logits)} outputs for two images, not 2 x {num_classes}", "global_pool")
    return _gradients(model, images, logits), logits


def _told(part: ModelPart, norms: list[_BatchNorm], model: nn.Module) -> tuple[str, ...]:
    found = []
    if norms:
        found.append(
            f"{part.name} has {len(norms)} BatchNorm layers: their running statistics travel and are aggregated, and in "
            "training.mode train the images of a batch influence each other"
        )
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    if frozen:
        found.append(f"{part.name} has {frozen} frozen parameters, which do not travel")
    return tuple(found)


def _shallow(model: nn.Module) -> nn.Module:
    """Return a model with its first and last block alone, where it has many alike; blocks between are built like the last."""
    small, blocks = copy.copy(model), getattr(model, "blocks", None)
    small._modules = dict(model._modules)
    if isinstance(model, VisionTransformer) and isinstance(blocks, nn.Sequential) and len(blocks) > 2:
        small.blocks = nn.Sequential(blocks[0], blocks[-1])
    return small


def _gradients(model: nn.Module, images: Tensor, logits: Tensor) -> list[Tensor]:
    """Return the gradients of the first image's loss for all images and the parameters that it reaches."""
    loss = nn.functional.cross_entropy(logits[:1], torch.zeros(1, dtype=torch.long))
    found = torch.autograd.grad(loss, [images, *trained(model).values()], allow_unused=True)
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
