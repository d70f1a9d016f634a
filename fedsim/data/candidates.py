"""Pairs of images for membership inference: one that was trained on and a test image, in an order that a coin decides."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedsim.exchange import Candidates, LabeledImages, Truth
from fedsim.labels import classes
from fedsim.seeds import torch_generator
from fedsim.source import Pool

MOST_PAIRS = 64
"""So many pairs are made of an update at most."""


def candidates(truth: Truth, others: Pool, seed: int) -> tuple[Candidates, Bool[Tensor, " pair"]]:
    """Return pairs of candidates, and of each whether the first image is the one that was trained on.

    Draws depend on the seed and on the images that were trained on, so that two updates share no coin.

    Args:
        truth: the images that were trained on; of none there are no pairs.
        others: images that nobody trains on, at least one; those of the member's class are taken first, each once as long as
            there are enough.
        seed: of the run.
    """
    if not len(truth.images):
        shape = truth.images.shape[1:]
        return Candidates(torch.empty(0, 2, *shape), torch.empty(0, 2, dtype=torch.int64)), torch.empty(
            0, dtype=torch.bool
        )
    digest = hashlib.sha256(truth.images.numpy().tobytes()).hexdigest()
    generator = torch_generator(seed, "candidates", digest)
    chosen = torch.randperm(len(truth.images), generator=generator)[:MOST_PAIRS]
    members = LabeledImages(truth.images[chosen].float(), torch.tensor(classes(truth.labels[chosen])))
    strangers = others.read(_alike(members.labels, others.labels, generator))
    firsts = torch.rand(len(members), generator=generator) < 0.5

    def paired(own: Tensor, other: Tensor) -> Tensor:
        is_first = firsts.view(-1, *[1] * (own.ndim - 1))
        return torch.stack([torch.where(is_first, own, other), torch.where(is_first, other, own)], 1)

    return Candidates(paired(members.images, strangers.images), paired(members.labels, strangers.labels)), firsts


def _alike(wanted: Int[Tensor, " pair"], labels: Int[Tensor, " image"], generator: torch.Generator) -> list[int]:
    """Return the number of an image for each wanted label: of that class where one is left, else of any."""
    left: list[int] = []
    found = []
    for label in wanted.tolist():
        if not left:
            left = torch.randperm(len(labels), generator=generator).tolist()
        place = next((i for i, number in enumerate(left) if int(labels[number]) == label), 0)
        found.append(left.pop(place))
    return found
