"""Test images with some of their patches shuffled, and what a Vision Transformer makes of them.

Each image has a mask and a permutation of its own, so that images are independent, as confidence intervals assume.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.exchange import Images
from fedsim.models import ModelInterfaceError, PatchGrid, patch_grid
from fedsim.progress import advance
from fedsim.source import Pool
from fedsim_defenses._jigsaw import MaskKind, draw_mask
from fedsim_defenses._position import has_unknown, occluded

_PART = 100  # images in one forward pass
_LEAST = 2  # patches; a single one cannot be shuffled


class Puzzles(NamedTuple):
    """How the patches of each image are shuffled.

    Args:
        orders: for each place, whose patch it gets.
        masks: which places are shuffled.
    """

    orders: Int[Tensor, "batch patch"]
    masks: Bool[Tensor, "batch patch"]

    def shuffled(self, images: Images, grid: PatchGrid) -> Images:
        """Return the images with their patches in these orders."""
        patches = grid.cut(images)
        return grid.join(patches.gather(1, self.orders[:, :, None].expand_as(patches)))


def draw_puzzles(grid: PatchGrid, ratio: float, count: int, kind: MaskKind, generator: torch.Generator) -> Puzzles:
    """Draw the puzzle of each of `count` images: int(patches times ratio) places each, fewer where blocks do not fit."""
    masks = [draw_mask(kind, grid, int(grid.count * ratio), generator) for _ in range(count)]
    orders = torch.arange(grid.count).repeat(count, 1)
    for order, mask in zip(orders, masks, strict=True):
        places = mask.nonzero().flatten()
        order[places] = places[torch.randperm(len(places), generator=generator)]
    return Puzzles(orders, torch.stack(masks))


class Answers(NamedTuple):
    """What a model answers to the same images, as they are and shuffled.

    Args:
        labels: of the images.
        clean: one row an image as it is.
        shuffled: ratio -> one row an image.
        cautions: reasons to doubt them.
    """

    labels: Int[Tensor, " batch"]
    clean: Float[Tensor, "batch value"]
    shuffled: Mapping[float, Float[Tensor, "batch value"]]
    cautions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShuffleTest(Evaluator):
    """A question about test images whose patches are shuffled.

    Args:
        ratios: shares of the patches that are shuffled among themselves, each a test of its own.
        images: test images at most; the first ones.
        mask: which patches: `random`, single ones; `block`, rectangles as in the training of MJP, which may fall short.
        unknown: whether shuffled patches get the model's embedding of an unknown position instead of their place's, as in
            the training of MJP; only for models that have one.
    """

    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    images: int = 1000
    mask: MaskKind = "random"
    unknown: bool = False

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios: expected shares above 0 and up to 1, got {list(self.ratios)}.")
        if len({*map(_title, self.ratios)}) < len(self.ratios):
            raise ValueError(f"ratios: expected each once, got {list(self.ratios)}.")
        if self.images < 1:
            raise ValueError(f"images: expected at least 1, got {self.images}.")

    @abstractmethod
    def _read(self, vit: nn.Module, images: Images) -> Float[Tensor, "batch value"]:
        """Return what is compared of each image, from normalized ones."""

    @abstractmethod
    def _scores(self, answers: Answers) -> dict[str, float]:
        """Return the scores of the answers."""

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse what does not cut images into patches, and one without the unknown position that is asked for.

        Raises:
            EvaluationRefusedError: says which.
        """
        grid_of(model)
        if self.unknown and not has_unknown(model.model):
            raise EvaluationRefusedError(
                "unknown is true, and the model has no embedding of an unknown position: no client of the scenario carries "
                "mjp. Set unknown to false"
            )

    @torch.inference_mode()
    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return the scores by ratio."""
        self.check(model, class_names)
        answers = self._answers(model, pool, generator)
        return Evaluation(self._scores(answers), answers.cautions)

    def _answers(self, model: PixelModel, pool: Pool, generator: torch.Generator) -> Answers:
        grid = grid_of(model)
        known = pool.read(range(min(self.images, len(pool))))
        clean = self._answered(model, known.images, None)
        shuffled = {}
        for done, ratio in enumerate(self.ratios):
            puzzles = draw_puzzles(grid, ratio, len(known), self.mask, generator)
            images = puzzles.shuffled(known.images, grid)
            shuffled[ratio] = self._answered(model, images, puzzles.masks if self.unknown else None)
            advance(done + 1, len(self.ratios))
        return Answers(known.labels, clean, shuffled, self._cautions(grid))

    def _answered(self, model: PixelModel, images: Images, masks: Bool[Tensor, "batch patch"] | None) -> Tensor:
        rows = []
        for start in range(0, len(images), _PART):
            part = slice(start, start + _PART)
            pixels = model.normalized(images[part])
            if masks is None:
                rows.append(self._read(model.model, pixels))
            else:
                with occluded(model.model, masks[part]):
                    rows.append(self._read(model.model, pixels))
        return torch.cat(rows)

    def _cautions(self, grid: PatchGrid) -> tuple[str, ...]:
        idle = [_title(ratio) for ratio in self.ratios if int(grid.count * ratio) < _LEAST]
        if not idle:
            return ()
        return (f"A ratio of {', '.join(idle)} of {grid.count} patches is fewer than {_LEAST}: nothing is shuffled.",)


def _title(ratio: float) -> str:
    return f"{ratio:g}"


def at(name: str, ratio: float) -> str:
    """Return the name of a score at a ratio."""
    return f"{name} at {_title(ratio)}"


def grid_of(model: PixelModel) -> PatchGrid:
    """Return how the model cuts images.

    Raises:
        EvaluationRefusedError: it does not cut them into patches.
    """
    try:
        return patch_grid(model.model)
    except ModelInterfaceError as error:
        raise EvaluationRefusedError(f"it asks a Vision Transformer: {error}") from None
