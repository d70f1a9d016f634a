"""What the author of an attack promises of each field of a finding, stricter than what the audit stores.

The audit brings to pixels and float32 what it can; the conformance kit asks for them, since an attack that leaves them to the
audit has chosen by other images than those that are scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.exchange import Observation


def images(images: Tensor, seen: Observation) -> str | None:
    """Return what is wrong with found images; None where nothing is."""
    shape = seen.image_shape
    is_shaped = images.ndim == 4 and tuple(images.shape[1:]) == shape
    if not is_shaped or not images.is_floating_point() or images.requires_grad:
        return (
            f"images must be detached floats of shape (n, {shape[0]}, {shape[1]}, {shape[2]}); got {described(images)}."
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        return f"pixels must be finite and in [0, 1], so denormalize and clamp; got {described(images)}."
    return None


def labels(labels: Tensor, seen: Observation) -> str | None:
    """Return what is wrong with found labels, hard or soft; None where nothing is."""
    num_classes = seen.num_classes
    if labels.is_floating_point():
        sums = labels.double().sum(dim=-1)
        is_distribution = labels.ndim == 2 and labels.shape[1] == num_classes and bool((labels >= 0).all())
        if is_distribution and bool(((sums - 1).abs() < 1e-4).all()):
            return None
        return f"soft labels must be rows of {num_classes} probabilities that sum to 1; got {described(labels)}."
    is_hard = labels.ndim == 1 and labels.dtype != torch.bool and not labels.is_complex()
    if is_hard and bool(((labels >= 0) & (labels < num_classes)).all()):
        return None
    return f"hard labels must be one row of integers from 0 to {num_classes - 1}; got {described(labels)}."


def features(features: Tensor, seen: Observation) -> str | None:
    """Return what is wrong with found head inputs; None where nothing is."""
    if features.ndim == 2 and features.is_floating_point() and bool(torch.isfinite(features).all()):
        return None
    return f"features must be finite rows, one an image; got {described(features)}."


def membership(membership: Tensor, seen: Observation) -> str | None:
    """Return what is wrong with choices between candidates; None where nothing is."""
    pairs = 0 if seen.candidates is None else len(seen.candidates)
    is_shaped = tuple(membership.shape) == (pairs,) and membership.is_floating_point() and not membership.requires_grad
    if is_shaped and bool(torch.isfinite(membership).all()):
        return None
    return f"membership must be one finite detached float for each of {pairs} pairs; got {described(membership)}."


def described(tensor: Tensor) -> str:
    """Return type, shape and extent of a tensor in words."""
    values = tensor.detach()
    extent = f", values from {float(values.min()):g} to {float(values.max()):g}" if values.numel() else ""
    gradient = ", requires_grad" if tensor.requires_grad else ""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}{extent}{gradient}"
