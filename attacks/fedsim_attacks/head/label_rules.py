"""The published rules that read labels off the gradient of a classifier.

Notation: C classes, B images, predicted probabilities p_k and one-hot labels y_k of image k, head inputs h_k,

    residual  r_c = (1/B) sum_k (p_kc - y_kc),        weight gradient  G_c = (1/B) sum_k (p_kc - y_kc) h_k,

the residual being the gradient of the bias. Every rule is a pure function of an `Evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim_attacks.head.classifier import ClassVector, HeadGradient
from fedsim_attacks.head.label_bounds import SEPARABLE, ClassRows, separable, side_by_side
from fedsim_attacks.solvers import largest_remainder

Counts = Int[Tensor, " class"]

PublishedRule = Literal[
    "idlg",
    "idlg_bias",
    "grad_inversion",
    "llg",
    "llg_star",
    "rlg",
    "ilrg",
    "bias_count_uniform",
    "bias_count",
    "bias_count_auxiliary",
]
_LEAST_RESIDUAL = 1e-12  # below it a class has no embedding of its own


class Evidence(NamedTuple):
    """What a rule may read.

    Args:
        residual: r, in units of the mean loss.
        weight_gradient: G of all linear classifiers side by side; None where it was not shared.
        weight: of the classifier, so that logits are weight @ h + bias.
        bias: of the classifier.
        pictures: B.
        reference: mean softmax of reference images; None for rules that need none.
    """

    residual: ClassVector
    weight_gradient: ClassRows | None
    weight: ClassRows
    bias: ClassVector
    pictures: int
    reference: ClassVector | None = None


def evidence(head: HeadGradient, pictures: int, reference: ClassVector | None = None) -> Evidence:
    """Return the head's gradient as one linear classifier: the mean of several has them side by side.

    Args:
        head: the gradient.
        pictures: how many are behind it.
        reference: mean softmax of reference images.
    """
    parts = len(head.heads)
    return Evidence(
        head.residual,
        side_by_side(head),
        torch.cat([linear.weight for linear in head.heads], 1) / parts,
        torch.stack([linear.bias for linear in head.heads]).mean(0),
        pictures,
        reference,
    )


def idlg(seen: Evidence) -> Counts:
    """Label of one image by signs: the class c with <G_c, G_j> <= 0 for every other j; features may be signed.

    Of several such classes the one whose largest product is least. Zhao, Mopuri, Bilen, "iDLG", 2020.
    """
    if seen.pictures != 1:
        raise AttackRefusedError(f"rule idlg reads the label of one image; this update holds {seen.pictures}.")
    rows = _weights(seen, "idlg")
    products = rows @ rows.T
    products.fill_diagonal_(-torch.inf)
    return _once(products.max(1).values, 1)


def idlg_bias(seen: Evidence) -> Counts:
    """Label of one image: argmin r, the one negative entry; of B images, the B least entries, without repeats.

    Zhao, Mopuri, Bilen, "iDLG", 2020; the bias has the constant 1 in place of the input.
    """
    return _once(seen.residual, seen.pictures)


def grad_inversion(seen: Evidence) -> Counts:
    """Labels without repeats: the B classes whose least entry of G_c is least; made for features of one sign.

    Yin et al., "See through Gradients", CVPR 2021, "batch label restoration".
    """
    return _once(_weights(seen, "grad_inversion").min(1).values, seen.pictures)


def llg(seen: Evidence) -> Counts:
    """Labels with repeats: each negative r_c is a label, worth the impact m = (1 + 1/C) / B sum_{r_c < 0} r_c; then greedily.

    Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PETS 2022, algorithm 1, zero
    knowledge. The paper sums rows of G, which signed features defeat; r is that sum for constant features.
    """
    negative = seen.residual.clamp_max(0).sum()
    impact = (1 + 1 / len(seen.residual)) / seen.pictures * negative
    return _greedy(seen, float(impact), torch.zeros_like(seen.residual))


def llg_star(seen: Evidence) -> Counts:
    """As `llg`, with the impact and each class's offset, what r_c is without the class, from dummy images.

    A dummy batch of class c has r_c = p_c - 1, one without it r_c = p_c, so the offsets are the mean softmax o and
    m = (1 + 1/C) / (B C) sum_c (o_c - 1). Wainakh et al., PETS 2022, white box.
    """
    offsets = _reference(seen)
    impact = (1 + 1 / len(offsets)) / seen.pictures * (offsets - 1).mean()
    return _greedy(seen, float(impact), offsets)


def rlg(seen: Evidence) -> Counts:
    """The set of classes: c is present where some combination of G's columns is negative at c alone.

    No repeats, and nothing to tell with C - 1 or more images: then any class has such a combination. Dang et al.,
    "Revealing and Protecting Labels in Distributed Training", NeurIPS 2021. The paper asks a linear program; see
    `label_bounds.separable` for the answer by Farkas' lemma.
    """
    rows = _weights(seen, "rlg")
    return _once(-separable(rows, seen.pictures, list(range(len(rows)))), seen.pictures, least=SEPARABLE)


def ilrg(seen: Evidence) -> Counts:
    """Counts by least squares on one embedding a class, e_c = G_c / r_c, with P_c = softmax(W e_c + b).

    n minimizes (sum_c n_c - B)^2 + sum_c (sum_j n_j P_jc - n_c - B r_c)^2. Ma et al., "Instance-wise Batch Label
    Restoration via Gradients in Federated Learning", ICLR 2023.
    """
    rows, residual = _weights(seen, "ilrg"), seen.residual
    divisor = torch.where(residual.abs() < _LEAST_RESIDUAL, torch.inf, residual)
    predicted = (rows / divisor[:, None] @ seen.weight.T + seen.bias).softmax(1)
    system = torch.cat([torch.ones_like(residual)[None], predicted.T - torch.eye(len(residual)).double()])
    target = seen.pictures * torch.cat([torch.ones(1).double(), residual])
    return _rounded(torch.linalg.lstsq(system, target[:, None], driver="gelsd").solution[:, 0], seen.pictures)


def bias_count_uniform(seen: Evidence) -> Counts:
    """Counts n = B (1/C - r): the mean softmax of a model that knows nothing is even."""
    return _rounded(seen.pictures * (1 / len(seen.residual) - seen.residual), seen.pictures)


def bias_count(seen: Evidence) -> Counts:
    """Counts n = B (p - r) with p the mean softmax of reference images, which r + n / B is for the batch's own.

    Wainakh et al., PETS 2022, call p an offset; here it replaces the greedy search.
    """
    return _rounded(seen.pictures * (_reference(seen) - seen.residual), seen.pictures)


class RuleFacts(NamedTuple):
    """What a rule is and needs.

    Args:
        read: the rule.
        reference: images whose mean softmax it needs.
        needs_weights: whether it reads the weight gradient.
        needs_scale: whether a factor of the gradient changes its answer.
        has_repeats: whether a class may be found more than once.
        takes_signed: whether it is made for features of both signs, as every ViT has them.
    """

    read: Callable[[Evidence], Counts]
    reference: Literal["none", "noise", "auxiliary"] = "none"
    needs_weights: bool = False
    needs_scale: bool = False
    has_repeats: bool = False
    takes_signed: bool = True


RULES: Mapping[PublishedRule, RuleFacts] = MappingProxyType(
    {
        "idlg": RuleFacts(idlg, needs_weights=True),
        "idlg_bias": RuleFacts(idlg_bias),
        "grad_inversion": RuleFacts(grad_inversion, needs_weights=True, takes_signed=False),
        "llg": RuleFacts(llg, has_repeats=True),
        "llg_star": RuleFacts(llg_star, "noise", needs_scale=True, has_repeats=True),
        "rlg": RuleFacts(rlg, needs_weights=True),
        "ilrg": RuleFacts(ilrg, needs_weights=True, needs_scale=True, has_repeats=True),
        "bias_count_uniform": RuleFacts(bias_count_uniform, needs_scale=True, has_repeats=True),
        "bias_count": RuleFacts(bias_count, "noise", needs_scale=True, has_repeats=True),
        "bias_count_auxiliary": RuleFacts(bias_count, "auxiliary", needs_scale=True, has_repeats=True),
    }
)
assert tuple(RULES) == get_args(PublishedRule)


def _weights(seen: Evidence, rule: str) -> ClassRows:
    if seen.weight_gradient is None:
        raise AttackRefusedError(f"the classifier's weight gradient was not shared, and rule {rule} reads it.")
    return seen.weight_gradient


def _reference(seen: Evidence) -> ClassVector:
    if seen.reference is None:
        raise AttackRefusedError("this rule compares with the mean softmax of reference images, and there is none.")
    return seen.reference


def _once(scores: ClassVector, count: int, least: float = -torch.inf) -> Counts:
    """Return one label for each of the `count` lowest scores, of those whose negative is at least `least`."""
    counts = torch.zeros(len(scores), dtype=torch.int64)
    lowest = scores.argsort(stable=True)[:count]
    counts[lowest[-scores[lowest] >= least]] = 1
    return counts


def _greedy(seen: Evidence, impact: float, offsets: ClassVector) -> Counts:
    counts, left = torch.zeros(len(seen.residual), dtype=torch.int64), seen.residual.clone()
    certain = min(int((left < 0).sum()), seen.pictures)
    for c in left.argsort(stable=True)[:certain].tolist():
        counts[c] += 1
        left[c] -= impact
    left -= offsets
    for _ in range(seen.pictures - int(counts.sum())):
        c = int(left.argmin())
        counts[c] += 1
        left[c] -= impact
    return counts


def _rounded(expected: ClassVector, count: int) -> Counts:
    return largest_remainder(expected, count).long()
