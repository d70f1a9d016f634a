"""Controls: what somebody scores who never saw the update. A score says something only beside these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedsim.exchange import HardLabels, Images, Labels, SoftLabels
from fedsim.labels import classes

Image = Float[Tensor, "channel height width"]

GREY = 0.5


@dataclass(frozen=True)
class Auxiliary:
    """Other data of the same kind, which a blind guesser knows.

    Args:
        image: mean image; None where there are no other images.
        labels: classes of the images.
        num_classes: number of classes.
        features: mean head input of the images; None where it is not needed.
    """

    image: Image | None
    labels: HardLabels
    num_classes: int
    features: Float[Tensor, " embed"] | None = None


_TIE = 1e-12


def grey(true: Images) -> Images:
    """Return mid-grey images: what one guesses who knows nothing."""
    return torch.full_like(true, GREY)


def own_mean(true: Images) -> Images:
    """Return each image's own mean color: more than a blind guesser has, so a demanding control."""
    return true.mean(dim=(2, 3), keepdim=True).expand_as(true)


def dataset_mean(true: Images, auxiliary_mean: Image) -> Images:
    """Return the mean image of other data for every image: what one guesses who knows the kind of data."""
    return auxiliary_mean.to(true).expand_as(true)


def frequencies(labels: HardLabels) -> dict[int, float]:
    """Return how often each class occurs among `labels`."""
    return {label: count / len(labels) for label, count in sorted(Counter(classes(labels)).items())}


def uniform(labels: HardLabels) -> dict[int, float]:
    """Return equal frequencies for the classes that occur among `labels`."""
    present = sorted(set(classes(labels)))
    return {label: 1 / len(present) for label in present}


def same_label(prior: Mapping[int, float], count: int, num_classes: int) -> SoftLabels:
    """Return the prior, class -> probability, as the soft label of every image."""
    row = torch.tensor([prior.get(label, 0.0) for label in range(num_classes)])
    return row.expand(count, num_classes)


def expected_recall(size: int, prior: Mapping[int, float]) -> float:
    """Return what `blind_recall` comes to on average over batches of `size` labels drawn from `prior`.

    On a single small batch a blind guess is right or wrong by luck; this is the level that luck has in the long run.

    Args:
        size: labels in a batch.
        prior: class -> probability.
    """
    chances = _chances(size, prior)
    return float(np.sort(chances, axis=None)[-size:].sum()) / size


def _chances(size: int, prior: Mapping[int, float]) -> NDArray[np.float64]:
    """Return P(n_c > j) for each class c and each j below `size`."""
    from scipy.stats import binom  # takes a second to import

    return np.asarray(binom.sf(np.arange(size), size, np.array(list(prior.values()))[:, None]))


def blind_recall(true: Labels, prior: Mapping[int, float]) -> float:
    """Return the label recall of the best guess that knows the batch size B and `prior`, but no update.

    Under the prior, n_c is binomial, and the expected recall of a multiset with m_c labels of class c is
    sum_c sum_{j <= m_c} P(n_c >= j) / B; the best multiset takes the B largest of these probabilities. It is scored on
    the true labels. Where several are tied at the cut, so that the guesser would toss a coin, the mean over the tosses
    counts: with equal frequencies and B = 1 this is 1 / C for every batch.

    Args:
        true: the batch's labels.
        prior: class -> probability.
    """
    size, counts = len(true), Counter(classes(true))
    chances = _chances(size, prior)
    hits = np.array([counts[label] for label in prior])[:, None] > np.arange(size)
    cut = np.sort(chances, axis=None)[-size]
    sure, tied = chances > cut + _TIE, np.abs(chances - cut) <= _TIE
    return float(hits[sure].sum() + (size - sure.sum()) * hits[tied].mean()) / size
