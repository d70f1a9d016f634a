"""How far the gradient of candidate images is from the observed one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.registry import Registry
from fedsim_attacks.update import Gradients, Scalar, soft_signs


def relative_l2(found: Gradients, observed: Gradients) -> Scalar:
    """Return the squared l2 distance over all entries, in units of the observed squared norm.

    Source: Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019; the division is ours, so that a regularizer's weight
    means the same at every scale.
    """
    apart = [f - o for f, o in zip(found, observed, strict=True)]
    return _squares(apart).sum() / _squares(observed).sum()


def layer_l2(found: Gradients, observed: Gradients) -> Scalar:
    """Return the sum of the tensors' l2 distances, not squared, in units of the observed norm.

    Source: Yin et al., "See through Gradients", CVPR 2021, eq. 3; the division is ours.
    """
    apart = [f - o for f, o in zip(found, observed, strict=True)]
    return _root(_squares(apart)).sum() / _squares(observed).sum().sqrt()


def cosine(found: Gradients, observed: Gradients) -> Scalar:
    """Return one minus the cosine of the angle between two gradients, all entries in one vector.

    Source: Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients", NeurIPS 2020, eq. 4.
    """
    products, squares = _overlaps(found, observed)
    return 1 - products.sum() / _root(squares.sum() * _squares(observed).sum())


def tensor_cosine(found: Gradients, observed: Gradients, shares: Float[Tensor, " tensor"] | None = None) -> Scalar:
    """Return the mean over tensors of one minus the cosine, so that faint layers count as much as strong ones.

    Args:
        found: of the images.
        observed: what it is to be.
        shares: weight of each tensor in the mean; equal where it is None.
    """
    products, squares = _overlaps(found, observed)
    return _mean(1 - products / _root(squares * _squares(observed)), shares)


def sign_cosine(found: Gradients, observed: Gradients) -> Scalar:
    """Return the mean over tensors of one minus the cosine between signs; those of `found` are softened by tanh.

    What is left of an update that was reduced to signs: lengths of entries are not compared.
    """
    return tensor_cosine([soft_signs(f) for f in found], [o.sign() for o in observed])


def row_cosine(
    found: Float[Tensor, "*batch row value"],
    observed: Float[Tensor, "*batch row value"],
    shares: Float[Tensor, " row"] | None = None,
) -> Scalar:
    """Return the mean over rows of one minus the cosine.

    Args:
        found: of the images.
        observed: what it is to be.
        shares: weight of each row in the mean; equal where it is None.
    """
    lengths = found.square().sum(-1) * observed.square().sum(-1)
    return 1 - _mean((found * observed).sum(-1) / _root(lengths), shares)


@dataclass(frozen=True)
class Distance:
    """How far a gradient is from the observed one.

    A new one is one entry: in `DISTANCES`, or, of another distribution, in the entry-point group `fedsim_attacks.distances`.

    Args:
        of: (found, observed) to a scalar, differentiable in what was found.
        is_scaled: whether lengths are compared, for which the update's scale has to be known.
        weighted: the same with a weight for each tensor, used where an update has noise of known size; None where it has no
            such form.
    """

    of: Callable[[Gradients, Gradients], Scalar]
    is_scaled: bool = False
    weighted: Callable[[Gradients, Gradients, Float[Tensor, " tensor"]], Scalar] | None = None

    def __call__(self, found: Gradients, observed: Gradients) -> Scalar:
        """Return the distance."""
        return self.of(found, observed)


DISTANCES: Registry[Distance] = Registry(
    "distance",
    "fedsim_attacks.distances",
    {
        "cosine": Distance(cosine),
        "tensor_cosine": Distance(tensor_cosine, weighted=tensor_cosine),
        "l2": Distance(relative_l2, is_scaled=True),
        "layer_l2": Distance(layer_l2, is_scaled=True),
        "sign": Distance(sign_cosine),
    },
    lambda part: isinstance(part, Distance),
    "a `Distance` of fedsim_attacks.matching",
)


@dataclass(frozen=True, eq=False)
class TopK:
    """The entries of largest magnitude of every observed tensor; matching on these alone is partial matching.

    Source: Fan et al., "Boosting Gradient Leakage Attacks: Data Reconstruction in Realistic FL Settings" (FedLeak), USENIX
    Security 2025, of which it is the partial gradient matching; there is no public code to compare with.

    Args:
        places: flat indices, tensor by tensor.
    """

    places: Sequence[Tensor]

    @staticmethod
    def of(observed: Gradients, share: float) -> TopK:
        """Return the places of the largest `share` of each tensor, one entry at least."""
        return TopK([o.flatten().abs().topk(max(1, math.ceil(share * o.numel()))).indices for o in observed])

    def __call__(self, gradients: Gradients) -> Gradients:
        """Return the entries at these places."""
        return [g.flatten()[place] for g, place in zip(gradients, self.places, strict=True)]


def _mean(values: Tensor, shares: Tensor | None) -> Scalar:
    if shares is None:
        return values.mean()
    return (values * shares).mean() / shares.mean().clamp_min(torch.finfo(shares.dtype).tiny)


def _root(square: Tensor) -> Tensor:
    # sqrt has no finite derivative at zero, where a gradient of nothing lies.
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


class _Overlaps(torch.autograd.Function):
    """The products of tensors with constant ones, and with themselves.

    The gradient is made in two passes over each tensor; that of separate products takes five, and three times the memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        found, observed = _halves(tensors)
        return torch.stack(list(map(_dot, found, observed))), torch.stack(list(map(_dot, found, found)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, products: Tensor, squares: Tensor) -> tuple[Tensor | None, ...]:
        found, observed = _halves(ctx.saved_tensors)
        factors = zip(products.unbind(), (2 * squares).unbind(), strict=True)
        found_gradients = [(p * o).add_(s * f) for f, o, (p, s) in zip(found, observed, factors, strict=True)]
        return (*found_gradients, *(None for _ in observed))


def _halves(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def _overlaps(found: Gradients, observed: Gradients) -> tuple[Float[Tensor, " tensor"], Float[Tensor, " tensor"]]:
    if len(found) != len(observed):
        raise ValueError(f"expected as many tensors as were observed, {len(observed)}, got {len(found)}.")
    both: tuple[Tensor, Tensor] = _Overlaps.apply(*found, *observed)
    return both


def _squares(gradients: Gradients) -> Float[Tensor, " tensor"]:
    return torch.stack([_dot(g, g) for g in gradients])


def _dot(one: Tensor, other: Tensor) -> Scalar:
    # A product and its sum take three times the memory traffic, which at one image is a third of a step.
    return torch.dot(one.flatten(), other.flatten())
