"""Hard labels of any batch, repeats included, by one of the published rules or by the one that the evidence calls for.

Paper: Ma, Sun, Cui, Huang, Chen, Zhao. "Instance-wise Batch Label Restoration via Gradients in Federated Learning". ICLR
2023. https://openreview.net/forum?id=FIrQfNSOoTr (rule `ilrg`). The others, with formulas in `head.label_rules`:

- `idlg`, `idlg_bias`: Zhao, Mopuri, Bilen. "iDLG: Improved Deep Leakage from Gradients". 2020.
  https://arxiv.org/abs/2001.02610
- `grad_inversion`: Yin et al. "See through Gradients: Image Batch Recovery via GradInversion". CVPR 2021.
  https://arxiv.org/abs/2104.07586
- `llg`, `llg_star`: Wainakh et al. "User-Level Label Leakage from Gradients in Federated Learning". PETS 2022.
  https://arxiv.org/abs/2105.09369
- `rlg`: Dang et al. "Revealing and Protecting Labels in Distributed Training". NeurIPS 2021. https://arxiv.org/abs/2111.00556
- `bias_count_uniform`, `bias_count`, `bias_count_auxiliary`: n = B (p - r), which holds for the batch's mean softmax p, with p
  even, or the mean softmax of noise images, or of auxiliary ones. The last follow `llg_star` and LLG+ of Wainakh et al.
- `count`: this project's, see `label_count`.

Idea: with residual r = mean(p - y) and weight gradient G = mean of (p - y) h^T over the batch, each rule reads signs, sizes
or the column space. `auto` takes iDLG for one image, by the bias where it is shared and by rows of G otherwise (ViT head
inputs are signed, so row sums say nothing); `llg` where G is missing, the model is trained and the images are few;
`count` for all else. What it saw, chose and how sure it is are in the trace.

Differs from the paper: sums over rows of G, which need inputs of one sign, are replaced by the bias gradient in `llg` and
`llg_star`; where the bias is not shared, the constant functional of reference head inputs stands in. `rlg` asks non-negative
least squares instead of a linear program. Deltas are first undone to a mean gradient (`update.gradient`).

Needs: grant `batch_size`; the classifier's weight or bias gradient, as the rule says; hard labels. `bias_count_auxiliary` needs
`auxiliary_data`. Cost: at most one forward pass over the reference images, and for few images of many classes one
non-negative least squares a class: 0.1 s for 64 images of 100 classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation
from fedsim_attacks.head import (
    BLUNT,
    DOUBTFUL,
    FEW,
    RULES,
    UNSCALED,
    Counts,
    HeadGradient,
    PublishedRule,
    References,
    counted,
    evidence,
    fitting_references,
    image_count,
    is_single_step,
    observed_cautions,
    read_head,
    reference_images,
    rescaled,
    sharpness,
    side_by_side,
)

Rule = Literal["count", PublishedRule]
_SIGNED = 0.05  # share of negative head inputs from which on rules for non-negative ones are doubted


class _Seen(NamedTuple):
    """What the choice of a rule rests on; the last two are None for one image, which needs no reference images."""

    pictures: int
    classes: int
    bias_shared: bool
    weights_shared: bool
    negative_inputs: float | None
    sharpness: float | None


class _Answer(NamedTuple):
    counts: Counts
    confidence: float
    cautions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelRecovery(Attack):
    """Labels from the classifier's gradient.

    Args:
        rule: how to read them; `auto` chooses.
        references: images run through the model to learn what its logits and head inputs are like: auxiliary data where
            granted, else noise with the spectrum of photographs.
    """

    citation: ClassVar[str] = (
        "Ma et al. Instance-wise Batch Label Restoration via Gradients in Federated Learning. ICLR 2023. "
        "https://openreview.net/forum?id=FIrQfNSOoTr"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels"})
    applies: ClassVar[Applicability] = Applicability(soft_labels=False, model=("linear classifier",))
    is_cheap: ClassVar[bool] = True

    rule: Literal["auto", "count", PublishedRule] = "auto"
    references: int = 64

    def __post_init__(self) -> None:
        allowed = ("auto", "count", *RULES)
        if self.rule not in allowed:
            raise ValueError(f"rule: expected one of {', '.join(allowed)}, got {self.rule}.")
        if self.references < 2:
            raise ValueError(f"references: expected at least 2, got {self.references}.")

    @property
    def applicability(self) -> Applicability:
        """See `Attack.applicability`; iDLG reads the label of one image."""
        return replace(self.applies, pictures=1) if self.rule in ("idlg", "idlg_bias") else self.applies

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Read the labels; draws the reference images where no auxiliary data is used."""
        count = image_count(observation)
        look_up = functools.cache(lambda: fitting_references(observation, count, self.references, generator))
        head = read_head(observation, look_up)
        seen = _look(head, look_up, count)
        rule, reason = _choose(seen) if self.rule == "auto" else (self.rule, "given")
        answer = self._ask(rule, head, observation, look_up, count, generator)
        labels = torch.repeat_interleave(torch.arange(len(answer.counts)), answer.counts)
        trace: dict[str, Any] = {"rule": rule, "reason": reason, "confidence": answer.confidence, **seen._asdict()}
        cautions = answer.cautions + _cautions(rule, seen) + observed_cautions(observation, head, count)
        return Finding(labels=labels, trace={**trace, "noise": head.noise}, cautions=cautions)

    def _ask(
        self,
        rule: Rule,
        head: HeadGradient,
        observation: Observation,
        references: Callable[[], References],
        count: int,
        generator: torch.Generator,
    ) -> _Answer:
        """Return the counts that a rule reads.

        The confidence is that of `count` where the two agree. Elsewhere it is at most that, since `count` names what it takes
        to be likeliest, and at most the probability that `count` is wrong.
        """
        by_count = functools.partial(counted, head, references, count, is_single_step(observation))
        if rule == "count":
            found = by_count()
            return _Answer(found.counts, found.confidence, found.cautions)
        facts, cautions, mean = RULES[rule], [], None
        if facts.reference == "auxiliary" and observation.auxiliary_data is None:
            raise AttackRefusedError(f"auxiliary_data is not granted, and rule {rule} takes its mean softmax.")
        if facts.reference != "none":
            blind = replace(observation, auxiliary_data=None) if facts.reference == "noise" else observation
            mean = reference_images(blind, self.references, generator).logits.softmax(1).mean(0)
        if facts.needs_scale and not head.is_scaled:
            head = rescaled(head, references(), count).head
            cautions.append(UNSCALED)
        counts, found = facts.read(evidence(head, count, mean)), by_count()
        confidence = (
            found.confidence if torch.equal(counts, found.counts) else min(found.confidence, 1 - found.confidence)
        )
        if confidence < DOUBTFUL:
            cautions.append(f"Rule {rule} is right about all labels with a probability of about {confidence:.0%}.")
        return _Answer(counts, confidence, tuple(cautions))


def _look(head: HeadGradient, references: Callable[[], References], count: int) -> _Seen:
    classes, weights = len(head.residual), side_by_side(head) is not None
    if count == 1:
        return _Seen(count, classes, not head.is_derived, weights, None, None)
    known = references()
    negative = torch.cat([inputs.flatten() for inputs in known.inputs]) < 0
    return _Seen(count, classes, not head.is_derived, weights, float(negative.double().mean()), sharpness(known))


def _choose(seen: _Seen) -> tuple[Rule, str]:
    """Return the rule that the evidence calls for, and why."""
    if seen.pictures == 1 and seen.bias_shared:
        return "idlg_bias", "one image: the bias gradient is negative at its class alone"
    if seen.pictures == 1:
        return (
            "idlg",
            "one image without a bias gradient: its class's row opposes all others, whatever the inputs' signs",
        )
    is_trained = seen.sharpness is not None and seen.sharpness > BLUNT
    if not seen.weights_shared and is_trained and seen.pictures <= FEW * (seen.classes - 1):
        return (
            "llg",
            "few images, a trained model and no weight gradient: negative entries are worth more than a count",
        )
    if not is_trained:
        return (
            "count",
            "the model does not tell classes apart yet: the mean softmax is known, so counts are nearly exact",
        )
    return (
        "count",
        "several images of a trained model: the mean softmax is estimated, signs and column space bound it",
    )


def _cautions(rule: Rule, seen: _Seen) -> tuple[str, ...]:
    if rule == "count" or seen.pictures == 1 or seen.negative_inputs is None:
        return ()
    cautions, facts = [], RULES[rule]
    if not facts.takes_signed and seen.negative_inputs > _SIGNED:
        cautions.append(
            f"Rule {rule} assumes head inputs of one sign; {seen.negative_inputs:.0%} are negative on reference images."
        )
    if not facts.has_repeats:
        cautions.append(f"Rule {rule} names a class once at most, and this batch of {seen.pictures} may repeat one.")
    return tuple(cautions)
