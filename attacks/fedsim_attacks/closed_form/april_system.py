"""The linear system that one image leaves in the gradients around the first attention, and what noise it carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Normalization, Observation
from fedsim_attacks.closed_form.bilinear import Bilinear, Products, decompose_bilinear
from fedsim_attacks.closed_form.first_attention import (
    BIAS,
    PREFIX,
    WEIGHTS,
    FirstAttention,
    Rows,
    first_attention,
    token_rows,
)
from fedsim_attacks.closed_form.linear import Weights, decay_share
from fedsim_attacks.update import POSITIONS, MeanGradient, TokenGradient, mean_gradient

_IMAGE_VARIANCE = 0.05  # of pixels around grey
_NOTABLE_SUM_ERROR = 1e-3


class Noise(NamedTuple):
    """Standard deviation of the noise in one entry, each from its own identity; None where it cannot be read.

    Args:
        sums: the rows' gradients sum to that of the attention's bias, pulled back through its weights.
        keys: a bias of the keys moves no attention, so its gradient is zero.
        prefix: the class token and its position have one gradient.
        sum_error: relative error of the first identity.
    """

    sums: float | None
    keys: float | None
    prefix: float | None

    sum_error: float | None

    @property
    def is_broken(self) -> bool:
        """Whether the sums are off by more than noise: entries were hidden or rescaled one by one."""
        if self.sums is None or self.sum_error is None or self.sum_error < _NOTABLE_SUM_ERROR:
            return False
        others = self._others()
        return not others or self.sums > 3 * max(others)

    @property
    def level(self) -> float:
        """The one that stands for all, whatever breaks the sums among it; zero where none can be read."""
        return self.sums if self.sums is not None else max(self._others(), default=0.0)

    def _others(self) -> list[float]:
        return [level for level in (self.keys, self.prefix) if level is not None]


@dataclass(frozen=True)
class AprilSystem:
    """A^T X Q^T = R for the pixels X of one image, minus grey.

    Args:
        attention: Q, and what else the model says.
        tokens: A, the gradients at the patches' positions.
        products: gradients of query, key and value weights, pulled back through these weights.
        known: what a grey image contributes to them; R is the rest.
        noise: standard deviations, from identities.
        is_decay_known: whether weight decay is known to be absent or has been subtracted.
    """

    attention: FirstAttention
    tokens: TokenGradient
    products: Products
    known: Products
    noise: Noise
    is_decay_known: bool

    @property
    def relative_noise(self) -> float:
        """Norm of the noise in the token gradients over their norm."""
        return float(self.noise.level * self.tokens.numel() ** 0.5 / self.tokens.norm())

    def decompose(self) -> Bilinear:
        """Return the system in singular coordinates."""
        count, width = self.tokens.shape
        noise_edge = self.noise.level * (math.sqrt(count) + math.sqrt(width))
        return decompose_bilinear(self.tokens, self.attention.projection, self.products - self.known, noise_edge)

    def explained(self, system: Bilinear) -> Weights:
        """Return the variance of an entry of R that the noise explains, per pattern."""
        attention = self.attention
        columns = attention.projection @ system.patterns.T
        scales = columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        seen = (attention.inputs @ (columns / scales)).square().sum(0)
        picture = attention.grid.count * _IMAGE_VARIANCE * scales.square()
        pulled = attention.weights.square().sum() / attention.weights.shape[1]
        variance: Weights = self.noise.level**2 * (pulled + seen + picture)
        return variance


def read_april_system(
    observation: Observation, normalization: Normalization, generator: torch.Generator
) -> AprilSystem:
    """Return the system that an update holds.

    Args:
        observation: the update and its model.
        normalization: of the model's input.
        generator: of the image on which the model is tried.

    Raises:
        AttackRefusedError: the model or the update has no such system.
    """
    attention = first_attention(observation, normalization, generator)
    gradient = mean_gradient(observation, (POSITIONS, WEIGHTS, BIAS, *PREFIX))
    for name in (POSITIONS, WEIGHTS):
        if name not in gradient.tensors or not gradient.tensors[name].any():
            state = "zero" if name in gradient.tensors else "missing from the update"
            raise AttackRefusedError(f"the gradient of {name} is {state}: the client froze it or did not share it.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in gradient.tensors.values()):
        raise AttackRefusedError("the gradients around the first attention are not finite.")
    if not gradient.is_decay_known:
        gradient = _subtract_decay(gradient, attention, observation.model())
    rows = _rows(gradient.tensors, attention)
    tokens = rows[len(rows) - attention.grid.count :]
    if not tokens.any():
        raise AttackRefusedError("the gradient at the patches' position embeddings is zero.")
    products, noise = attention.weights.T @ gradient.tensors[WEIGHTS], _noise(attention, gradient, rows)
    return AprilSystem(attention, tokens, products, rows.T @ attention.inputs, noise, gradient.is_decay_known)


def _rows(tensors: Mapping[str, Tensor], attention: FirstAttention) -> Rows:
    rows = token_rows(tensors, len(attention.inputs))
    if rows is None:
        raise AttackRefusedError("the gradients of prefix tokens without a position embedding are not shared.")
    return rows


def _subtract_decay(gradient: MeanGradient, attention: FirstAttention, model: nn.Module) -> MeanGradient:
    """Return the gradient without the weight decay that its identities give away.

    Decay adds a multiple of the starting weights: it breaks the sums' identity along a known direction, and moves the
    products out of what the tokens can explain along another.
    """
    tensors, start = dict(gradient.tensors), {n: p.detach().double() for n, p in model.named_parameters()}
    weights = attention.weights
    if BIAS in tensors:
        wrong, moved = (_rows(t, attention).sum(0) - weights.T @ t[BIAS] for t in (tensors, start))
        share = decay_share(wrong[None], moved[None], 0)
        for name in tensors.keys() - {WEIGHTS}:
            tensors[name] = tensors[name] - share * start[name]
    rows = _rows(tensors, attention)
    products = weights.T @ tensors[WEIGHTS] - rows.T @ attention.inputs
    basis = torch.linalg.qr(rows[len(rows) - attention.grid.count :].T).Q
    wrong, moved = (part - basis @ (basis.T @ part) for part in (products, weights.T @ weights))
    share = decay_share(wrong.flatten()[None], moved.flatten()[None], 0)
    tensors[WEIGHTS] = tensors[WEIGHTS] - share * start[WEIGHTS]
    return replace(gradient, tensors=tensors)


def _noise(attention: FirstAttention, gradient: MeanGradient, rows: Rows) -> Noise:
    """Return the noise that identities give away."""
    found, weights = gradient.tensors, attention.weights
    sums = keys = prefix = error = None
    if BIAS in found and found[BIAS].any():
        expected = weights.T @ found[BIAS]
        wrong = rows.sum(0) - expected
        error = float(wrong.norm() / expected.norm())
        sums = _spread(wrong) / (len(rows) + float(weights.square().sum()) / weights.shape[1]) ** 0.5
        keys = _spread(found[BIAS].chunk(3)[1]) if attention.has_key_bias else None
    class_token = found.get(PREFIX[0])
    if class_token is not None and found[POSITIONS].shape[1] == len(rows):
        prefix = _spread(found[POSITIONS][0, 0] - class_token[0, 0]) / 2**0.5
    return Noise(sums, keys, prefix, error)


def _spread(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
