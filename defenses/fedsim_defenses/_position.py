"""Position embeddings of a timm ViT with some positions occluded, and their localization loss.

The model's class becomes a subclass of its own class, so that copies and pickles keep the behavior; its weights, their
names and their order stay, and new parameters come last, under `mjp.`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from fedsim.errors import ScenarioError
from fedsim.models import patch_grid

Regressor = Literal["none", "linear", "nonlinear", "pca"]
Mask = Bool[Tensor, " patch"] | Bool[Tensor, "batch patch"]
"""Which patches are occluded: alike in every image of a batch, or in each its own."""

_UNKNOWN_STD = 0.02  # timm's own for position embeddings


class Puzzle(nn.Module):
    """What MJP adds to a ViT: the embedding of an unknown position, and heads that read coordinates off positions.

    `mask` says which patches are occluded in the next forward pass; None outside `occluded`.
    """

    mask: Mask | None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unknown = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.unknown, std=_UNKNOWN_STD)
        self.regressors = nn.ModuleDict()
        self.mask = None

    def add_regressor(self, kind: Regressor) -> None:
        """Add the head of this kind, unless it is there; PCA has none."""
        width = self.unknown.shape[-1]
        if kind == "nonlinear" and kind not in self.regressors:
            self.regressors[kind] = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        elif kind == "linear" and kind not in self.regressors:
            self.regressors[kind] = nn.Linear(width, 2)


class OccludableViT(VisionTransformer):
    """timm's VisionTransformer; where the puzzle has a mask, positions are looked up in the occluded table."""

    mjp: Puzzle

    def _pos_embed(self, x: Tensor) -> Tensor:
        mask, table = self.mjp.mask, self.pos_embed
        if mask is None:
            return super()._pos_embed(x)
        assert table is not None
        rows = nn.functional.pad(mask, (table.shape[1] - mask.shape[-1], 0))
        # The stock method knows every variant (prefix tokens, resampling); it reads the table by this name.
        self._parameters["pos_embed"] = torch.where(  # type: ignore[assignment]
            rows[..., None], self.mjp.unknown, table
        )
        try:
            return super()._pos_embed(x)
        finally:
            self._parameters["pos_embed"] = table

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, the unknown position among them."""
        return {*super().no_weight_decay(), "mjp.unknown"}


class OccludableDistilledViT(OccludableViT, VisionTransformerDistilled):
    """The same of timm's distilled VisionTransformer."""


_OCCLUDABLE: dict[type, type] = {
    VisionTransformer: OccludableViT,
    VisionTransformerDistilled: OccludableDistilledViT,
}


def add_puzzle(model: nn.Module, regressor: Regressor) -> None:
    """Make the positions of a timm ViT occludable, in place; a second call adds a missing regressor alone.

    New parameters are drawn from torch's global generator.

    Raises:
        ScenarioError: the model is not one of timm's plain ViTs, or has no position table or patch projection.
    """
    if not isinstance(model, OccludableViT):
        _check_fits(model)
        model.mjp = Puzzle(model.embed_dim)  # type: ignore[arg-type]
        model.__class__ = _OCCLUDABLE[type(model)]
    _puzzle(model).add_regressor(regressor)


def _puzzle(model: nn.Module) -> Puzzle:
    return model.mjp  # type: ignore[return-value]


def _check_fits(model: Any) -> None:
    if type(model) not in _OCCLUDABLE:
        allowed = " or ".join(cls.__name__ for cls in _OCCLUDABLE)
        raise ScenarioError("model.name", f"mjp works on timm's {allowed}, not on {type(model).__name__}.")
    if model.pos_embed is None:
        raise ScenarioError(
            "model.kwargs.pos_embed", "mjp needs a learned position table, and this model has none. Set it to learn."
        )
    embed = model.patch_embed
    size = tuple(count * side for count, side in zip(embed.grid_size, embed.patch_size, strict=True))
    if tuple(embed.img_size) != size or embed.patch_size[0] != embed.patch_size[1]:
        raise ScenarioError(
            "model.name",
            f"mjp shuffles square patches of the image; this model makes tokens of {tuple(embed.patch_size)} on a "
            f"grid of {tuple(embed.grid_size)} from {tuple(embed.img_size)}. Choose a ViT without a hybrid stem.",
        )


@contextlib.contextmanager
def occluded(model: nn.Module, mask: Mask | None) -> Iterator[None]:
    """Give the masked patches the unknown position inside, and their own again afterwards; None occludes nothing.

    Raises:
        ValueError: positions are occluded already: MJP is listed twice for one client.
    """
    puzzle = _puzzle(model)
    if puzzle.mask is not None:
        raise ValueError("mjp is listed twice for this client, and a second mask would undo the first; list it once.")
    puzzle.mask = mask
    try:
        yield
    finally:
        puzzle.mask = None


def has_unknown(model: nn.Module) -> bool:
    """Return whether a model has an embedding of an unknown position: whether `add_puzzle` was called on it."""
    return isinstance(model, OccludableViT)


def localization_loss(
    model: nn.Module, kind: Literal["linear", "nonlinear", "pca"], kept: Bool[Tensor, " patch"]
) -> Float[Tensor, ""]:
    """Dense absolute localization: mean absolute error of (row, column) read off the position table.

    `pca` has no parameters: coordinates are the projections on the two principal axes of the rows that count. The axes are
    constants in the gradient, and each points where the error is smaller, since a principal axis has no sign. On a square grid
    rows and columns have equal variances, so that the axes may turn from step to step.

    Args:
        model: a ViT after `add_puzzle`.
        kind: which regressor.
        kept: patches whose positions count; at least one, and two for `pca`.

    Returns:
        The error in patches; it depends on weights alone.
    """
    table: Tensor = model.pos_embed[0]  # type: ignore[index]
    grid = patch_grid(model)
    coordinates = torch.cartesian_prod(torch.arange(grid.rows), torch.arange(grid.columns)).to(table)
    rows, wanted = table[len(table) - grid.count :][kept], coordinates[kept]
    if kind == "pca":
        found = rows @ _principal_axes(rows.detach(), wanted)
    else:
        found = _puzzle(model).regressors[kind](rows)
    return (found - wanted).abs().mean()


def _principal_axes(rows: Float[Tensor, "patch embed"], wanted: Float[Tensor, "patch 2"]) -> Float[Tensor, "embed 2"]:
    """Return the axes of the two largest variances, each with the sign that brings projections nearer to the coordinates."""
    axes: Tensor = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2].T
    errors = [(sign * rows @ axes - wanted).abs().sum(0) for sign in (1, -1)]
    return axes * torch.where(errors[0] <= errors[1], 1.0, -1.0)
