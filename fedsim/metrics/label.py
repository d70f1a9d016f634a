"""How many of a batch's labels were recovered, as a multiset, and how exactly soft ones were."""

from __future__ import annotations

from collections import Counter

from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from torch import Tensor

from fedsim.exchange import Labels
from fedsim.labels import distributions
from fedsim.metrics.matching import assign

FoundDistributions = Float[Tensor, "found class"]
FoundLabels = Int[Tensor, " found"] | Float[Tensor, "found class"]


def classes(labels: Labels) -> list[int]:
    """Return one class per label; a soft label counts as its most probable class, the first of several equal ones."""
    hard = labels.argmax(dim=1) if labels.ndim == 2 else labels
    return [int(c) for c in hard]


def recalled(found: FoundLabels, true: Labels) -> tuple[float, ...]:
    """Return each true label's share in the recall: 1 where a found label of its class is left, else 0.

    Labels come in no order: of n equal labels with m found, the first m count. A finding that names more labels than
    there are pictures would be right by listing everything, so then each hit is worth B / (number of found labels).
    """
    left = Counter(classes(found))
    worth = min(1.0, len(true) / max(len(found), 1))
    shares = []
    for label in classes(true):
        shares.append(worth if left[label] > 0 else 0.0)
        left[label] -= 1
    return tuple(shares)


def label_recall(found: FoundLabels, true: Labels) -> float:
    """Share of the batch's labels that were found, repeats counted; in [0, 1], higher means more leakage.

    sum_c min(n_c, found_c) / max(B, sum_c found_c), for n_c labels of class c among B pictures. Soft labels count as
    their most probable class.

    Source: "IRec" of Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR 2023;
    the maximum in the denominator is ours.
    """
    return sum(recalled(found, true)) / len(true)


def soft_label_errors(found: FoundDistributions, true: Labels) -> tuple[float, ...]:
    """Largest absolute error of each label distribution, in [0, 1]; lower means more leakage.

    A hard true label counts as the distribution that is one at its class. Found rows are assigned to true ones so that the
    summed error is least; where there are too few, the rest score as the uniform distribution.

    Source: Wang, Liang, He, "Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks", ICLR 2024, who call
    a label recovered below 1e-3.
    """
    classes = found.shape[1]
    rows, originals = (tensor.detach().cpu().double().numpy() for tensor in (found, distributions(true, classes)))
    errors = cdist(rows, originals, "chebyshev")
    blind = abs(originals - 1 / classes).max(axis=1)
    return tuple(float(blind[i] if row is None else errors[row, i]) for i, row in enumerate(assign(errors)))
