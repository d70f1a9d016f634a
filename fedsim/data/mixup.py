"""Mixup: training inputs that are blends of two of a client's images.

Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
https://arxiv.org/abs/1710.09412
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data.augmentation import UNCHANGED, Placement


class Mixture(NamedTuple):
    """What one training input is made of: share * sample + (1 - share) * partner, each as it is placed.

    Args:
        sample: its number in the training pool.
        partner: number of the other sample; `sample` itself where nothing is mixed in.
        share: of `sample`, in (0, 1], exact in float32.
        placement: what augmentation makes of `sample`.
        partner_placement: and of `partner`; the same where nothing is mixed in.
    """

    sample: int
    partner: int
    share: float
    placement: Placement = UNCHANGED
    partner_placement: Placement = UNCHANGED


def unmixed(samples: Sequence[int]) -> tuple[Mixture, ...]:
    """Return inputs that are the samples themselves."""
    return tuple(Mixture(sample, sample, 1.0) for sample in samples)


def draw(
    samples: Sequence[int], own: Sequence[int], alpha: float, generator: np.random.Generator
) -> tuple[Mixture, ...]:
    """Return one mixture a sample: a share from Beta(alpha, alpha), and a partner out of all other samples.

    Partners come from all of the client's samples, not from the batch, as in the paper's code: so a batch of one image is
    mixed too.

    Args:
        samples: of one batch.
        own: all samples of the client, at least two.
        alpha: of the Beta distribution, above 0; small values leave most images almost alone.
        generator: the only source of randomness.
    """
    # All samples but the last are drawn from; the last stands in where a sample would meet itself.
    chosen = [own[int(place)] for place in generator.integers(0, len(own) - 1, len(samples))]
    partners = [own[-1] if partner == sample else partner for sample, partner in zip(samples, chosen, strict=True)]
    shares = generator.beta(alpha, alpha, len(samples)).astype(np.float32).tolist()
    return tuple(_simplest(*one) for one in zip(samples, partners, shares, strict=True))


def _simplest(sample: int, partner: int, share: float) -> Mixture:
    """Return a mixture in the form that equal inputs have in common."""
    if share == 0:
        return Mixture(partner, partner, 1.0)
    return Mixture(sample, sample if share == 1 else partner, share)


def blend(first: Tensor, second: Tensor, shares: Sequence[float]) -> Tensor:
    """Return share * first + (1 - share) * second, row by row."""
    column = torch.tensor(shares, dtype=first.dtype).reshape(-1, *(1,) * (first.ndim - 1))
    return column * first + (1 - column) * second
