"""The labels that an attack on images works with: granted ones, counted ones, or as many as will be optimized."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fedsim.exchange import Labels, Observation
from fedsim_attacks.head.counts import count_cautions, count_labels, image_count

_REFERENCES = 64


class KnownLabels(NamedTuple):
    """Labels of the images that are looked for, and doubts about them."""

    labels: Labels
    cautions: tuple[str, ...]


def known_labels(observation: Observation, generator: torch.Generator, optimized: bool) -> KnownLabels:
    """Return the granted labels, or counted ones with their cautions.

    Args:
        observation: what the attack may know.
        generator: draws reference images for the count.
        optimized: whether labels that are not granted are variables; then only their number counts.
    """
    if observation.labels is not None:
        return KnownLabels(observation.labels, ())
    if optimized:
        return KnownLabels(torch.zeros(image_count(observation), dtype=torch.int64), count_cautions(observation))
    counted = count_labels(observation, _REFERENCES, generator)
    return KnownLabels(counted.labels, counted.cautions)
