"""Position probe: how well a linear regression reads places off the position embedding of the global model.

Paper: Ren, Liu, Song, Bi, Cucchiara, Sebe, Wang. "Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision
Transformers". CVPR 2023. https://arxiv.org/abs/2205.12551

Idea: ordinary least squares with an intercept from rows of the position table to the row and column of the patch, and to its
number; mean absolute error over the folds of a cross-validation, in patches. The same of differences between two rows of the
table, to the distances between their places.

Differs from the paper: the same probe on tables of noise, and the mean place of the patches that it was fitted on, stand
beside it. Where rows have more values than there are patches, least squares has many solutions; that of least norm is taken.

Needs: a Vision Transformer with a position table that is added to its tokens. No image is read. Cost: milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.models import ModelInterfaceError, prefix_rows
from fedsim.source import Pool
from fedsim_defenses.evaluators._shuffled import grid_of
from fedsim_defenses.mjp import MJP

Rows = Float[Tensor, "row value"]
Places = Float[Tensor, "row coordinate"]


@dataclass(frozen=True, kw_only=True)
class PositionProbe(Evaluator):
    """Cross-validated error of a linear probe for the places of patches, beside that on noise.

    Args:
        folds: of the cross-validation.
        noise: tables of noise that the control is the mean of.
    """

    citation: ClassVar[str] = MJP.citation

    folds: int = 5
    noise: int = 20

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("noise", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse a model without a row of positions for each patch, and one with too few of them.

        Raises:
            EvaluationRefusedError: says which.
        """
        self._table(model)

    @torch.inference_mode()
    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return the errors."""
        grid, table = grid_of(model), self._table(model)
        count = len(table)
        numbers = torch.arange(count)
        coordinates = torch.stack([numbers // grid.columns, numbers % grid.columns], 1).double()
        first, second = (torch.randperm(count, generator=generator) for _ in range(2))
        tasks: dict[str, tuple[Callable[[Rows], Rows], Places]] = {
            "error of row and column": (lambda rows: rows, coordinates),
            "error of the patch's number": (lambda rows: rows, numbers[:, None].double()),
            "error of distances between two patches": (
                lambda rows: rows[first] - rows[second],
                (coordinates[first] - coordinates[second]).abs(),
            ),
        }
        order = torch.randperm(count, generator=generator)
        spread = float(table.std())
        scores = {}
        for name, (taken, wanted) in tasks.items():
            scores[name] = probe_error(taken(table), wanted, order, self.folds)
            blind = [
                probe_error(taken(_noise(table, spread, generator)), wanted, order, self.folds)
                for _ in range(self.noise)
            ]
            scores[f"{name}, table of noise (control)"] = sum(blind) / len(blind)
            scores[f"{name}, mean place (control)"] = probe_error(torch.zeros_like(wanted), wanted, order, self.folds)
        return Evaluation(scores)

    def _table(self, model: PixelModel) -> Rows:
        grid = grid_of(model)
        try:
            prefix = prefix_rows(model.model)
        except ModelInterfaceError as error:
            raise EvaluationRefusedError(f"it reads a position table: {error}") from None
        table: Rows = model.model.pos_embed[0, prefix:].double()  # type: ignore[index]
        count = len(table)
        if count != grid.count or count < 2 * self.folds:
            raise EvaluationRefusedError(
                f"{count} rows of positions for {grid.count} patches; it needs one a patch, and two in each of {self.folds} "
                "folds"
            )
        return table


def _noise(table: Rows, spread: float, generator: torch.Generator) -> Rows:
    return torch.randn(table.shape, generator=generator, dtype=table.dtype) * (spread or 1.0)


def probe_error(rows: Rows, wanted: Places, order: Int[Tensor, " row"], folds: int) -> float:
    """Return the mean absolute error of least squares with an intercept, each fold predicted from the others.

    Args:
        rows: one a patch.
        wanted: what is to be read off each.
        order: of the rows in the folds.
        folds: how many.
    """
    errors = []
    for fold in order.tensor_split(folds):
        others = order[~torch.isin(order, fold)]
        center, level = rows[others].mean(0), wanted[others].mean(0)
        weights = torch.linalg.pinv(rows[others] - center) @ (wanted[others] - level)
        errors.append(((rows[fold] - center) @ weights + level - wanted[fold]).abs().mean())
    return float(torch.stack(errors).mean())
