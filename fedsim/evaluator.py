"""The evaluator contract: what is asked of the global model after chosen rounds, beside what leaks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.exchange import Images, Normalization
from fedsim.source import Pool


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Three names are more than text. `NAME, 95% from` and `NAME, 95% to` are the interval of the score `NAME`, and the report
    shows the three as one. `NAME at WHAT VALUE`, such as `accuracy at epsilon 8/255`, is a point of the curve of `NAME`
    against `WHAT`, which the report draws.

    Args:
        scores: name -> number, such as `accuracy`, or `accuracy of class 3`; the report shows them in this order.
        cautions: reasons to doubt them, each one sentence.
        is_inconclusive: whether a check of the evaluator's own says that the scores may mean something else than they seem
            to; the cautions say which. The report shows it beside them.
        images: title -> images, shape (batch, 1 or 3 channels, height, width), pixels in [0, 1], made of test images; the
            report shows the first eight side by side, a row for each title.
    """

    scores: Mapping[str, float]
    cautions: tuple[str, ...] = field(default=())
    is_inconclusive: bool = False
    images: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.is_inconclusive and not self.cautions:
            raise ValueError("cautions: expected why the scores are inconclusive, got none.")


class PixelModel(nn.Module):
    """A model that takes pixels in [0, 1]: normalization is its first layer, so that perturbations have one unit.

    Args:
        model: takes normalized input.
        normalization: of its input.
    """

    def __init__(self, model: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.model, self._normalization = model, normalization

    def normalized(self, images: Images) -> Images:
        """Return pixels as `model` takes them."""
        return self._normalization.normalize(images)

    def forward(self, images: Images) -> Tensor:
        """Return the logits, one row an image."""
        logits: Tensor = self.model(self.normalized(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC):
    """A question to the global model; the fields of a subclass are its YAML parameters.

    Subclass as a frozen, keyword-only dataclass, give every field a default, and check ranges in `__post_init__` with
    `ValueError("field: expected ..., got ...")`.

    Class facts:
        citation: the paper, with a link; printed in the report's footer.
    """

    citation: ClassVar[str]

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:  # noqa: B027  (nothing to refuse by default)
        """Refuse a model that this cannot be asked of: before anything is trained, which tells the user, and in `run`.

        Args:
            model: prepared, untrained, in evaluation mode.
            class_names: by class.

        Raises:
            EvaluationRefusedError: says why, and what to do.
        """

    @abstractmethod
    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return what this evaluator finds.

        It may call `fedsim.progress.advance` where it iterates.

        Args:
            model: the global model after a round, in evaluation mode, on the CPU; a copy that may be changed at will.
            pool: test images that no client holds, `pool.read(numbers)` gives some, pixels in [0, 1].
            class_names: by class.
            generator: the only source of randomness; the same generator state gives the same scores.

        Raises:
            EvaluationRefusedError: it cannot be asked of this model (recorded as `refused`).
        """
