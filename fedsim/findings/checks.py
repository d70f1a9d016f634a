"""What a field of a finding must hold before anybody stores or scores it.

A check takes whatever a plug-in handed over and returns it as it is stored: a dense tensor on the CPU. What cannot be, it
refuses with a sentence that starts with "the attack returned".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.exchange import Observation

_FARTHEST_PROBABILITY = 1e6  # a soft label that was solved for may leave [0, 1]; its scores must stay finite
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _dense(what: str, value: Any) -> Tensor:
    """Check that something is a tensor that can be stored as it is, and bring it to the CPU."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the attack returned {what} as {type(value).__name__}, not as a tensor")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"the attack returned {what} as a sparse or nested tensor, not as a dense one")
    return value.detach().cpu()


def floats(what: str, value: Any) -> Tensor:
    """Return a dense tensor of floats on the CPU.

    Args:
        what: it is, for messages.
        value: what was handed over.

    Raises:
        TypeError: it is no such tensor.
    """
    tensor = _dense(what, value)
    if not tensor.is_floating_point():
        raise TypeError(f"the attack returned {what} as {_dtype(tensor)}, not as floats")
    return tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def images(value: Any, seen: Observation) -> Tensor:
    """Return images in float32, pixels clamped to [0, 1].

    Args:
        value: what was handed over.
        seen: what the attack was shown; says the shape of an image.

    Raises:
        TypeError: no dense floats.
        ValueError: another shape, or pixels that are not finite.
    """
    images = floats("images", value)
    if images.ndim != 4:
        raise ValueError(
            f"the attack returned images as a tensor of shape {tuple(images.shape)}, not (number, channel, height, width)"
        )
    if tuple(images.shape[1:]) != seen.image_shape:
        raise ValueError(f"the attack returned images of shape {tuple(images.shape[1:])}, not {seen.image_shape}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the attack returned pixels that are not finite")
    return images.float().clamp(0, 1)


def labels(value: Any, seen: Observation) -> Tensor:
    """Return hard labels as int64, soft ones as they are.

    Args:
        value: what was handed over.
        seen: what the attack was shown; says how many classes there are.

    Raises:
        TypeError: no dense tensor.
        ValueError: neither one row of classes nor rows of probabilities.
    """
    labels, num_classes = _dense("labels", value), seen.num_classes
    is_soft = labels.ndim == 2 and labels.is_floating_point()
    is_hard = labels.ndim == 1 and labels.dtype in _INTEGERS
    if not is_soft and not is_hard:
        raise ValueError(
            f"the attack returned labels as {_dtype(labels)} of shape {tuple(labels.shape)}, not integers in one row, or "
            f"rows of {num_classes} probabilities"
        )
    if is_hard:
        labels = labels.long()
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"the attack returned labels from {int(labels.min())} to {int(labels.max())}; the classes are 0 to "
                f"{num_classes - 1}"
            )
        return labels
    if labels.shape[1] != num_classes:
        raise ValueError(f"the attack returned labels over {labels.shape[1]} classes, not {num_classes}")
    if not bool(torch.isfinite(labels).all()):
        raise ValueError("the attack returned labels that are not finite")
    if labels.numel() and float(labels.abs().max()) > _FARTHEST_PROBABILITY:
        raise ValueError(f"the attack returned probabilities of up to {float(labels.abs().max()):g} as labels")
    return labels


def features(value: Any, seen: Observation) -> Tensor:
    """Return head inputs in float32.

    Args:
        value: what was handed over.
        seen: what the attack was shown; it does not say how long a row is.

    Raises:
        TypeError: no dense floats.
        ValueError: no rows, or entries that are not finite.
    """
    features = floats("features", value)
    if features.ndim != 2:
        raise ValueError(
            f"the attack returned features as a tensor of shape {tuple(features.shape)}, not one row an image"
        )
    features = features.float()
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the attack returned features that are not finite")
    return features


def membership(value: Any, seen: Observation) -> Tensor:
    """Return choices between candidates in float32.

    Args:
        value: what was handed over.
        seen: what the attack was shown; says how many pairs there are.

    Raises:
        TypeError: no dense floats.
        ValueError: not one a pair, or not finite.
    """
    chosen, pairs = floats("membership", value), 0 if seen.candidates is None else len(seen.candidates)
    if tuple(chosen.shape) != (pairs,):
        raise ValueError(
            f"the attack returned membership as a tensor of shape {tuple(chosen.shape)}; there are {pairs} pairs of candidates"
        )
    if not bool(torch.isfinite(chosen).all()):
        raise ValueError("the attack returned membership that is not finite")
    return chosen.float()
