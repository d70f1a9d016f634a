"""Span inversion: every image of a batch out of a stock Vision Transformer's update, token by token, without any prior.

Paper: no publication of this attack is known to us. The nearest are DAGER (Petrov et al., NeurIPS 2024,
https://arxiv.org/abs/2405.15586), which tests a vocabulary against the span of a language model's embeddings, and SPEAR
(Dimitrov et al., NeurIPS 2024, https://arxiv.org/abs/2403.03945), which takes a ReLU layer's gradient apart by its sparsity.

Idea: the gradients of the first block's MLP show the span of its inputs and that of its activations. While there are fewer
tokens than the model is wide, the tokens are the only inputs in the first span whose activations are in the second: a small
system for one token at a time, whatever image and position it is from. Random starts solve it (`spans.tokens`). Each token
gives its own gradients away (`spans.token_gradients`), and these tell which tokens are of one image; attention is computed
and taken off; the position embedding says where a token belongs (`spans.assembly`); the rest are pixels (`spans.pictures`).

Differs from the paper: tokens are continuous, the activation is a GELU, and the layers are those of a stock model.

Needs: grant `normalization`. The gradient of one step, or a delta of one, of fewer tokens than the model is wide: how many
images that are is read off the spectrum. Neither labels nor the update's scale nor the position embedding's gradient are used.
Noise or rounding that hides the end of the spectrum refuses it. Cost: a dozen factorizations of (tokens x tokens) a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Normalization, Observation
from fedsim_attacks.spans import (
    FirstBlock,
    Picture,
    TokenSearch,
    assemble,
    image_count,
    read_first_block,
    read_labels,
    solve_pictures,
)
from fedsim_attacks.update import local_steps, open_device, told_cautions

_DOUBTFUL = 0.9  # share of patches found below which a picture is one to doubt


@dataclass(frozen=True, kw_only=True)
class SpanInversion(Attack):
    """All images of a batch, from the spans of the first block's gradients.

    Args:
        starts: of the search for tokens, that descend together.
        tolerance: share of a token's activations outside of their span up to which it counts as one of the client's.
        least_tokens: share of the expected tokens that must be found.
        device: of the search; `auto` takes an accelerator where there is one.
    """

    citation: ClassVar[str] = (
        "Span inversion, this project; after Petrov et al. DAGER: Exact Gradient Inversion for Large Language Models. NeurIPS "
        "2024. https://arxiv.org/abs/2405.15586"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})
    applies: ClassVar[Applicability] = Applicability(steps=1, model=("patch projection",))

    starts: int = 16
    tolerance: float = 1e-3
    least_tokens: float = 0.5
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"starts: expected at least 1, got {self.starts}.")
        for name in ("tolerance", "least_tokens"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number above 0 and at most 1, got {getattr(self, name)}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Recover the images; draws the starts of the search."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; the patches are found in normalized units.")
        if local_steps(observation) not in (None, 1):
            raise AttackRefusedError("the delta holds several local steps, whose tokens are of different weights.")
        block = read_first_block(observation)
        count = image_count(block)
        expected = count * block.tokens_per_image
        block = block.limited(expected)
        tokens = TokenSearch(block, self.starts, self.tolerance, open_device(self.device)).run(generator)
        if len(tokens) < self.least_tokens * expected:
            raise AttackRefusedError(
                f"{len(tokens)} of {expected} tokens were found, which is no image: noise, rounding or dropout in the first "
                "block, or a defense, has changed the gradients."
            )
        assembly = assemble(block, tokens, count)
        pictures = solve_pictures(block, assembly)
        labels, doubt = read_labels(observation, torch.stack([picture.image for picture in pictures]))
        trace = {
            "images": count,
            "tokens": len(tokens),
            "expected_tokens": expected,
            "certainty": min(token.certainty for token in tokens),
            "placement_margin": assembly.margin,
            "confidence": [round(picture.confidence, 3) for picture in pictures],
            "residual": [float(f"{float(picture.shares.median()):.2e}") for picture in pictures],
        }
        cautions = (*_cautions(pictures, count, block), *((doubt,) if doubt else ()), *told_cautions(observation))
        return Finding(images=_pixels(pictures, normalization), labels=labels, trace=trace, cautions=cautions)


def _pixels(pictures: list[Picture], normalization: Normalization) -> torch.Tensor:
    images = torch.stack([picture.image for picture in pictures])
    return normalization.denormalize(images).clamp(0, 1).float()


def _cautions(pictures: list[Picture], count: int, block: FirstBlock) -> list[str]:
    listed = []
    if len(pictures) < count:
        listed.append(f"{count} images are in the update, and patches of {len(pictures)} were found.")
    for number, picture in enumerate(pictures):
        if picture.missing:
            listed.append(
                f"Image {number}: {picture.missing} of {block.grid.count} patches were not found and hold its mean patch."
            )
        elif picture.confidence < _DOUBTFUL:
            listed.append(
                f"Image {number}: {picture.confidence:.0%} of its tokens lie in the spans of the update, where all should."
            )
    return listed
