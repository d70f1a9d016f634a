"""How many of a batch's labels were recovered, as a multiset, and how exactly soft ones were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fedsim.exchange import Labels
from fedsim.labels import classes, distributions
from fedsim.metrics.matching import assign

FoundDistributions = Float[Tensor, "found class"]
FoundLabels = Int[Tensor, " found"] | Float[Tensor, "found class"]


class _Quota(NamedTuple):
    """How many true labels of a class a finding stands for: `sure` ones, and one more with probability `chance`."""

    sure: int
    chance: float


def recalled(found: FoundLabels, true: Labels, pictures: int | None = None) -> tuple[float, ...]:
    """Return each true label's share in the recall: 1 where a found label of its class is left, else 0.

    Labels come in no order: of n equal labels with m found, the first m count. A finding of more labels than there are
    images counts by its proportions: m_c of M labels stand for m_c B / M true ones, in whole numbers by largest
    remainders. Equal remainders share what is left, so the share of a true label may be a fraction.

    Args:
        found: labels found.
        true: B labels.
        pictures: how many images the true labels are of; B unless given. Where images were used in several blends, a
            found label, which is that of an image, stands for as many true ones as there are blends to an image.
    """
    quotas = _quotas(Counter(classes(found)), len(true), max(len(found), pictures or len(true)))
    used: Counter[int] = Counter()
    shares = []
    for label in classes(true):
        sure, chance = quotas.get(label, _Quota(0, 0.0))
        shares.append(1.0 if used[label] < sure else chance if used[label] == sure else 0.0)
        used[label] += 1
    return tuple(shares)


def _quotas(found: Mapping[int, int], total: int, whole: int) -> dict[int, _Quota]:
    """Return each class's count times `total` / `whole`, in whole numbers by largest remainders."""
    remainders = {label: count * total % whole for label, count in found.items()}
    left = round(sum(remainders.values()) / whole)
    cut = sorted(remainders.values(), reverse=True)[left - 1] if left else whole
    above, tied = sum(rest > cut for rest in remainders.values()), list(remainders.values()).count(cut)

    def chance(rest: int) -> float:
        return 1.0 if rest > cut else (left - above) / tied if rest == cut else 0.0

    return {label: _Quota(count * total // whole, chance(remainders[label])) for label, count in found.items()}


def label_recall(found: FoundLabels, true: Labels, pictures: int | None = None) -> float:
    """Share of the batch's labels that were found, repeats counted; in [0, 1], higher means more leakage.

    sum_c min(n_c, found_c) / B, for n_c labels of class c among B images. More than B found labels are first scaled to B
    in proportion (see `recalled`): the same proportions score the same, and naming every class scores as a uniform guess.
    Soft labels count as their most probable class.

    Source: "IRec" of Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR 2023;
    the scaling is ours.
    """
    return sum(recalled(found, true, pictures)) / len(true)


def soft_label_errors(found: FoundDistributions, true: Labels) -> tuple[float, ...]:
    """Largest absolute error of each label distribution, in [0, 1]; lower means more leakage.

    A hard true label counts as the distribution that is one at its class. Found rows are assigned to true ones so that the
    summed error is least; where there are too few, the rest score as the uniform distribution.

    Source: Wang, Liang, He, "Towards Eliminating Hard Label Constraints in Gradient Inversion Attacks", ICLR 2024, who call
    a label recovered below 1e-3.
    """
    from scipy.spatial.distance import cdist

    classes = found.shape[1]
    rows, originals = (tensor.detach().cpu().double().numpy() for tensor in (found, distributions(true, classes)))
    errors = cdist(rows, originals, "chebyshev")
    blind = abs(originals - 1 / classes).max(axis=1)
    return tuple(float(blind[i] if row is None else errors[row, i]) for i, row in enumerate(assign(errors)))
