"""How far the gradient of candidate pictures is from the observed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images, Labels

Gradients = Sequence[Tensor]
Scalar = Float[Tensor, ""]
Distance = Callable[[Gradients, Gradients], Scalar]


def relative_l2(found: Gradients, observed: Gradients) -> Scalar:
    """Return the squared l2 distance over all entries, in units of the observed squared norm.

    Source: Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019; the division is ours, so that a regularizer's weight
    means the same at every scale.
    """
    distance = torch.stack([(f - o).square().sum() for f, o in zip(found, observed, strict=True)]).sum()
    return distance / _squared_norm(observed)


def cosine(found: Gradients, observed: Gradients) -> Scalar:
    """Return one minus the cosine of the angle between two gradients, all entries in one vector.

    Source: Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients", NeurIPS 2020, eq. 4.
    """
    product = torch.stack([(f * o).sum() for f, o in zip(found, observed, strict=True)]).sum()
    # sqrt has no finite slope at zero, where a gradient of nothing lies.
    norms = (_squared_norm(found) * _squared_norm(observed)).clamp_min(torch.finfo(product.dtype).tiny).sqrt()
    return 1 - product / norms


DISTANCES: Mapping[str, Distance] = MappingProxyType({"l2": relative_l2, "cosine": cosine})


def loss_gradient(model: nn.Module, parameters: Gradients, images: Images, labels: Labels) -> Gradients:
    """Return the gradient of the mean cross-entropy at normalized images, differentiable in the images."""
    loss = nn.functional.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, parameters, create_graph=True)


def _squared_norm(gradients: Gradients) -> Scalar:
    return torch.stack([g.square().sum() for g in gradients]).sum()
