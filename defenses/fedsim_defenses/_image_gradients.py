"""The gradient to an image through a strided convolution, on a CPU, by a convolution of the output's gradient.

torch computes it by oneDNN's backward pass, which works on blocks of 16 channels: with the three of an image it takes several
times as long as what is here, and was the longest part of an attack on a small convolutional network.

With stride s, pixel s m + a of the padded input meets the weights a, a + s, a + 2 s and so on alone, of the outputs m, m - 1,
m - 2. So the pixels of each residue a are a convolution of stride 1 of the output's gradient with those weights, flipped. All
residues are the channels of a single convolution, and are copied to their places.

Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016, https://arxiv.org/abs/1609.07009
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_FEW_CHANNELS = 15  # with more, or with stride 1, oneDNN is as fast

Outputs = Float[Tensor, "batch outputs rows columns"]
Inputs = Float[Tensor, "batch channels height width"]
Residues = Float[Tensor, "inputs outputs tall wide"]
"""The weights of a convolution for each residue of the position, a channel of the input times those of both strides."""


@contextlib.contextmanager
def swift_image_gradients(model: nn.Module) -> Iterator[None]:
    """Let strided convolutions of few channels give their input its gradient by a convolution, on a CPU.

    Values are the same, gradients but for rounding. Weights and biases get no gradient: freeze them. Second derivatives
    are refused.
    """
    layers = [module for module in model.modules() if type(module) is nn.Conv2d and _is_strided_of_few(module)]
    for layer in layers:
        residues = _residues(layer.weight.detach(), layer.stride)
        layer.forward = functools.partial(_forward, layer, residues)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's own, which shadows that of the class


def _is_strided_of_few(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros" and layer.padding != "same"
    strided = layer.stride != (1, 1) and layer.in_channels <= _FEW_CHANNELS
    return plain and strided and layer.weight.device.type == "cpu" and "forward" not in vars(layer)


def _forward(layer: nn.Conv2d, residues: Residues, images: Inputs) -> Outputs:
    if not images.requires_grad or not torch.is_grad_enabled():
        return nn.Conv2d.forward(layer, images)
    found: Outputs = _Strided.apply(images, layer, residues)
    return found


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Inputs, layer: nn.Conv2d, residues: Residues) -> Outputs:
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding  # `valid`
        ctx.residues, ctx.size, ctx.stride, ctx.padding = residues, images.shape[2:], layer.stride, padding
        return nn.Conv2d.forward(layer, images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Outputs) -> tuple[Inputs, None, None]:
        return _image_gradient(gradient, ctx.residues, ctx.size, ctx.stride, ctx.padding), None, None


def _residues(weight: Tensor, stride: tuple[int, ...]) -> Residues:
    """Return the weights of each residue, flipped; those beyond the kernel are 0."""
    outputs, channels, height, width = weight.shape
    tall, wide = -(-height // stride[0]), -(-width // stride[1])
    padded = functional.pad(weight, (0, wide * stride[1] - width, 0, tall * stride[0] - height))
    parts = padded.reshape(outputs, channels, tall, stride[0], wide, stride[1]).permute(1, 3, 5, 0, 2, 4)
    return parts.flip(4, 5).reshape(-1, outputs, tall, wide)


def _image_gradient(
    gradient: Outputs, residues: Residues, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Inputs:
    kernel = residues.shape[2:]
    spared = [
        _spared(outputs, *sides)
        for outputs, *sides in zip(gradient.shape[2:], size, kernel, stride, padding, strict=True)
    ]
    if kernel == (1, 1):  # patches without overlap, whose outputs a ViT keeps as rows
        rows = gradient.permute(0, 2, 3, 1) @ residues[:, :, 0, 0].T
        found = _woven_patches(rows, stride)
    else:
        rest = [of_axis - 1 - less for of_axis, less in zip(kernel, spared, strict=True)]
        found = _woven(functional.conv2d(gradient, residues, padding=rest), stride)
    above, before = padding[0] - spared[0] * stride[0], padding[1] - spared[1] * stride[1]
    beyond = (-before, size[1] + before - found.shape[3], -above, size[0] + above - found.shape[2])
    return functional.pad(found, beyond) if any(beyond) else found


def _woven_patches(rows: Float[Tensor, "batch rows columns inputs"], stride: tuple[int, int]) -> Inputs:
    count, tall, wide, _ = rows.shape
    parts = rows.reshape(count, tall, wide, -1, *stride).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(count, -1, tall * stride[0], wide * stride[1])


def _woven(parts: Float[Tensor, "batch inputs rows columns"], stride: tuple[int, int]) -> Inputs:
    """Return images whose pixels of each residue are given as channels; a copy for each takes half as long as one of all."""
    count, inputs, tall, wide = parts.shape
    parts = parts.reshape(count, -1, *stride, tall, wide)
    found = parts.new_empty(count, inputs // math.prod(stride), tall, stride[0], wide, stride[1])
    for row, column in itertools.product(*map(range, stride)):
        found[:, :, :, row, :, column] = parts[:, :, row, column]
    return found.reshape(count, -1, tall * stride[0], wide * stride[1])


def _spared(outputs: int, size: int, kernel: int, stride: int, padding: int) -> int:
    """Return how many residues at each end of an axis lie in the padding alone, so that they need not be computed."""
    at_the_end = outputs + kernel - 1 - -(-(padding + size) // stride)
    return max(0, min(padding // stride, kernel - 1, at_the_end))
