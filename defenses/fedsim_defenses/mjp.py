"""MJP: some patches are shuffled among themselves, and lose their positions.

Paper: Ren, Liu, Song, Bi, Cucchiara, Sebe, Wang. "Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision
Transformers". CVPR 2023. https://arxiv.org/abs/2205.12551

Idea: of N patches, about T = int(N gamma) are masked. Their contents are permuted, and all of them get one learned
"unknown" position embedding instead of their own, so the gradient of a masked position is zero and the unknown row
holds their sum: what was at which place is gone from the position gradient. Dense absolute localization (DAL) keeps
the other positions meaningful: loss = cross-entropy + w mean |regressor(position row) - (row, column)| over unmasked
positions, w rising linearly to `dal_weight` during the warm-up and falling as a cosine to half of it afterwards. One
mask and one permutation a batch; inference is never shuffled or masked.

Differs from the paper: `p_apply` 1 and `warmup` 0 by default, so that no batch goes out unprotected (the paper's code
has 0.5, and 20 of 300 epochs); limits of the block size scale with the grid (8 and 75 of 196 patches in the paper's
code, too coarse for small grids); the unknown embedding starts with standard deviation 0.02 like the others (1 in the
code); the schedule runs on rounds instead of epochs, the same for all clients, and gamma may rise with it; with `pca`,
the axes are exact and constants in the gradient (random low-rank in the code); a batch whose mask has fewer than two
patches is left alone, for the unknown row would be that patch's row; gamma 0 switches off all of it, DAL too.

Needs: a plain timm ViT with a learned position table. Adds `mjp.` parameters to the model of every client. The loss
that `train_step` returns is the cross-entropy, comparable with that of a client without MJP. Cost: negligible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.exchange import UpdateEffects
from fedsim.models import PatchGrid, patch_grid
from fedsim.seeds import torch_generator
from fedsim_defenses._jigsaw import MaskKind, draw_mask, shuffle_patches
from fedsim_defenses._position import Mask, Regressor, add_puzzle, localization_loss, occluded

_LEAST = 2  # patches; a single one cannot be shuffled, and the unknown row would be its own row
_SIMULATED_MASKS = 400


@dataclass(frozen=True, kw_only=True)
class MJP(Defense):
    """Masked jigsaw puzzle position embeddings: shuffle some patches and hide where they were.

    Args:
        gamma: share of the patches to mask; 0 switches MJP off.
        p_apply: share of the batches that are masked after the warm-up; the paper's code has 0.5.
        warmup: share of the rounds without masking, during which the weight of DAL rises.
        rise: how gamma comes into force: `step`, at the end of the warm-up, as in the paper; `linear`, growing from 0 during
            it, from round to round.
        mask: `block`, rectangles as in the paper; `random`, single patches.
        min_patches: least area of a rectangle; None scales the paper's 8 of 196 to the grid.
        max_patches: most patches that one rectangle adds; None scales the paper's 75 of 196 to the grid.
        unknown: whether masked patches share the unknown position embedding.
        shuffle: whether masked patches are permuted.
        dal: head of the dense absolute localization: `nonlinear` has one hidden layer, `pca` no parameters.
        dal_weight: largest weight of the localization loss.
    """

    citation: ClassVar[str] = (
        "Ren et al. Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision Transformers. "
        "CVPR 2023. https://arxiv.org/abs/2205.12551"
    )
    treats_images_alone: ClassVar[bool] = True  # mask and permutation are drawn, and DAL sees no image

    gamma: float = 0.1
    p_apply: float = 1.0
    warmup: float = 0.0
    rise: Literal["step", "linear"] = "step"
    mask: MaskKind = "block"
    min_patches: int | None = None
    max_patches: int | None = None
    unknown: bool = True
    shuffle: bool = True
    dal: Regressor = "nonlinear"
    dal_weight: float = 0.01

    def __post_init__(self) -> None:
        for field in ("gamma", "p_apply"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}: expected a share from 0 to 1, got {getattr(self, field)}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a share from 0 to below 1, got {self.warmup}.")
        if not 0 <= self.dal_weight < math.inf:
            raise ValueError(f"dal_weight: expected a number of at least 0, got {self.dal_weight}.")
        if self.rise == "linear" and not self.warmup:
            raise ValueError("rise: got linear with warmup 0, so that gamma has no round to rise in. Set warmup.")
        self._check_blocks()
        if not (self.unknown or self.shuffle):
            raise ValueError(
                "shuffle: got false with unknown false, so that masking does nothing. Set one of them to true, and "
                "p_apply to 0 for the localization loss alone."
            )

    def _check_blocks(self) -> None:
        for field in ("min_patches", "max_patches"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: expected at least 1, got {value}.")
            if value is not None and self.mask == "random":
                raise ValueError(f"{field}: got {value}, but mask 'random' has no blocks. Leave it out.")
        if self.min_patches and self.max_patches and self.max_patches < self.min_patches:
            raise ValueError(f"max_patches: expected at least min_patches {self.min_patches}, got {self.max_patches}.")

    def prepare_model(self, model: nn.Module) -> None:
        """Add the unknown position and the localization head under `mjp.`, in place.

        Raises:
            ScenarioError: the model is no plain timm ViT with a learned position table.
        """
        add_puzzle(model, self.dal)

    def trains(self, name: str, round: int, rounds: int) -> bool:
        """Whether the unknown position, or a localization head, gets a gradient in the round, as far as masks have patches."""
        progress = _progress(round, rounds)
        if name == "mjp.unknown":
            return self.unknown and self.p_apply > 0 and self._gamma_at(progress) > 0
        return self.gamma > 0 and name.startswith(f"mjp.regressors.{self.dal}.") and self._weight_at(progress) > 0

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Accumulate the gradient on the shuffled, masked batch and that of DAL; returns the cross-entropy."""
        if self.gamma == 0:
            return proceed(step)
        grid, progress = patch_grid(step.model), _progress(context.round, context.rounds)
        mask = self._draw(grid, progress, generator).to(step.images.device)
        images = step.images
        if self.shuffle and mask.any():
            images = shuffle_patches(images, grid, mask.nonzero().flatten(), generator)
        with occluded(step.model, mask if self.unknown and mask.any() else None):
            loss = proceed(replace(step, images=images))
        weight = self._weight_at(progress)
        if self.dal != "none" and weight > 0 and not mask.all():
            term = weight * localization_loss(step.model, self.dal, ~mask)
            if term.requires_grad:  # unless the scenario trains neither positions nor regressor
                torch.autograd.backward(term)
        return loss

    @property
    def effects(self) -> UpdateEffects:
        """A shuffle shows in the update only where shuffled patches share the unknown position.

        Effects are those of all rounds: in a warm-up, and in batches that `p_apply` spares, nothing is shuffled.
        """
        return UpdateEffects(shuffles_unseen=self.shuffle and not self.unknown and self.gamma > 0 and self.p_apply > 0)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what this setting leaves unprotected on this model's grid."""
        grid = patch_grid(model)
        target = int(grid.count * self.gamma)
        if target < _LEAST:
            return (
                f"gamma {self.gamma:g} of {grid.count} patches is fewer than {_LEAST} patches, so no batch is masked.",
            )
        found = [*self._shortfall(grid, target)]
        bare = 1 - self.p_apply * (1 - self.warmup * (min(1.0, _LEAST / target) if self.rise == "linear" else 1))
        if bare > 0:
            found.append(f"p_apply and warmup send about {bare:.0%} of the batches unmasked, open to exact inversion.")
        if not self.unknown:
            found.append("Without the unknown embedding, closed-form inversion of one image stays exact but shuffled.")
        elif self.shuffle:
            found.append(
                "Zero rows of the position gradient tell which patches were shuffled; an attack that solves for the "
                "unknown row too recovers most of the other patches at small gamma."
            )
        else:
            found.append("Without shuffling, an inversion that needs no position gradient finds every patch in place.")
        if self.dal != "none" and self.dal_weight > 0:
            found.append(
                "The gradient of DAL is a function of weights and mask: an attacker who knows MJP subtracts it."
            )
        if self.dal == "pca" and self.dal_weight > 0:
            found.append(
                "PCA has no head that would tell the weight of DAL: patch_embedding finds it nevertheless, and fedsim's other "
                "attacks do not subtract its gradient, so what they miss protects from nobody who does."
            )
        return tuple(found)

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return which rounds the warm-up leaves unmasked."""
        rounds = context.rounds
        bare = [n for n in range(1, rounds + 1) if self._gamma_at(_progress(n, rounds)) == 0]
        if not bare or self.gamma == 0 or self.p_apply == 0:
            return ()
        which = "round 1" if len(bare) == 1 else f"rounds 1 to {bare[-1]}"
        return (f"Nothing is masked in {which} of {rounds}: updates of the warm-up are open to exact inversion.",)

    def _shortfall(self, grid: PatchGrid, target: int) -> list[str]:
        """Return a caution where blocks seldom fit the grid, from masks drawn with a fixed seed."""
        if self.mask == "random":
            return []
        generator = torch_generator(0, "mjp", "cautions")
        counts = torch.stack([self._mask(grid, target, generator).sum() for _ in range(_SIMULATED_MASKS)])
        empty = float((counts < _LEAST).double().mean())
        mean = float(counts.double().mean())
        if empty < 0.005 and mean >= 0.9 * target:
            return []
        return [
            f"On {grid.rows} x {grid.columns} patches, blocks mask about {mean:.1f} patches of the {target} asked for, "
            f"and leave {empty:.0%} of the batches unmasked; lower min_patches, or use mask: random."
        ]

    def _draw(self, grid: PatchGrid, progress: float, generator: torch.Generator) -> Mask:
        """Return the mask of one batch; all false where the batch goes out as it is."""
        applies = float(torch.rand((), generator=generator)) < self.p_apply
        mask = self._mask(grid, int(grid.count * self._gamma_at(progress)), generator)
        return mask if applies and int(mask.sum()) >= _LEAST else torch.zeros_like(mask)

    def _mask(self, grid: PatchGrid, target: int, generator: torch.Generator) -> Mask:
        return draw_mask(self.mask, grid, target, generator, self.min_patches, self.max_patches)

    def _gamma_at(self, progress: float) -> float:
        if progress >= self.warmup:
            return self.gamma
        return self.gamma * progress / self.warmup if self.rise == "linear" else 0.0

    def _weight_at(self, progress: float) -> float:
        if progress < self.warmup:
            return self.dal_weight * progress / self.warmup
        decayed = (progress - self.warmup) / (1 - self.warmup)
        return self.dal_weight * (0.75 + 0.25 * math.cos(math.pi * decayed))


def _progress(round: int, rounds: int) -> float:
    """Return the share of the training that is done when a round starts: equal for all clients, whatever their steps."""
    return (round - 1) / rounds
