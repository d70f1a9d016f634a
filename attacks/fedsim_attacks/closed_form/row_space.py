"""The row space of the patch projection's gradient: a linear space that holds every patch behind an update.

With A_n the gradient at a token and x_n its normalized patch, the projection's gradient is the sum of A_n x_n^T over all
patches of all images and steps. Its rows are mixtures of patches, so its row space is the patches' span as long as the A_n
are independent: rows of A sum to zero behind a layer norm, so at most width - 1 of them are. While images x patches stay
below both that and the values of a patch, the span is a proper subspace, and a patch of another image sticks out of it:
with patches of 8 x 8 pixels (192 values), 16 to an image and width 192 up to 11 images, with fewer values or a narrower
model fewer. It is the patch analogue of the token test of Petrov et al., "DAGER", NeurIPS 2024,
https://arxiv.org/abs/2405.15586.

How much a patch sticks out is evidence in proportion to the directions that are left: natural patches live mostly in few
smooth directions, which every span holds. So it is a score and a regularizer, and no test of membership by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Observation
from fedsim.models import PatchGrid
from fedsim_attacks.closed_form.patch_system import read_projection
from fedsim_attacks.update import POSITIONS

_MARGIN = 4.0  # singular values below this many times the largest one of the noise count as noise
_NOTABLE = 0.1  # of the patches' variation
_FLAT = 0.01  # root mean square variation, in normalized units, below which images hold nothing to compare
_CLEAN = 1e-5  # relative singular value; with noise beyond it, true patches stick out too
_ARITHMETIC = 3e-8  # noise of a float32 sum, relative to the largest entry's share of it


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The span of the patches behind an update, as far as it stands out from noise.

    Args:
        grid: how the model cuts images.
        directions: orthonormal, one a row, in normalized units.
        noise: relative singular value below which directions were dropped.
        patches: in the update, at least.
        limit: rank from which on the space says nothing: values of a patch, or the width minus one.
    """

    grid: PatchGrid
    directions: Float[Tensor, "direction value"]
    noise: float
    patches: int
    limit: int

    @staticmethod
    def of(observation: Observation) -> RowSpace:
        """Return the row space that an update holds.

        Raises:
            AttackRefusedError: the model has no plain patch projection, or its gradient is missing, zero or not finite.
        """
        grid, projection = read_projection(observation)
        width, values = projection.shape
        _, found, right = torch.linalg.svd(projection, full_matrices=False)
        # Columns sum to zero for every image; what they are instead is noise.
        level = float(projection.sum(0).square().mean().sqrt()) / width**0.5
        level = max(level, _ARITHMETIC * float(projection.abs().max()))
        edge = _MARGIN * level * (width**0.5 + values**0.5)
        rank = int((found > edge).sum())
        if not rank:
            raise AttackRefusedError("no direction of the patch projection's gradient stands out from its noise.")
        patches = grid.count * (observation.batch_size or 1)
        return RowSpace(grid, right[:rank], edge / float(found[0]), patches, min(values, width - 1))

    @property
    def rank(self) -> int:
        """Directions of the space."""
        return len(self.directions)

    @property
    def is_informative(self) -> bool:
        """Whether the space leaves directions in which a foreign patch can stick out."""
        return max(self.rank, self.patches) < self.limit

    def outside(self, images: Images) -> Float[Tensor, "batch patch value"]:
        """Return what of each normalized patch is orthogonal to the space; differentiable."""
        patches = self.grid.cut(images)
        directions = self.directions.to(patches)
        return patches - patches @ directions.T @ directions

    def score(self, images: Images) -> Float[Tensor, "batch patch"]:
        """Return how much of each normalized patch's variation lies outside of the space, from 0 (none) to 1.

        The variation is around the patch's mean color, which nearly every span holds; a patch without any scores 0.
        """
        patches = self.grid.cut(images)
        size = self._varied(patches).norm(dim=-1).clamp_min(torch.finfo(patches.dtype).eps)
        share: Tensor = self.outside(images).norm(dim=-1) / size
        return share.clamp(0, 1)

    def share_outside(self, images: Images, counted: Bool[Tensor, " patch"] | None = None) -> float | None:
        """Return how large what lies outside of the space is beside the variation of all patches together, from 0 to 1.

        Patches weigh by their variation around their mean color, so flat ones, which are rounding alone, say nothing.

        Args:
            images: normalized.
            counted: which patches to look at; all unless given.

        Returns:
            None where the patches hardly vary.
        """
        kept = slice(None) if counted is None else counted
        varied, outside = self._varied(self.grid.cut(images))[:, kept], self.outside(images)[:, kept]
        if varied.numel() == 0 or float(varied.square().mean().sqrt()) < _FLAT:
            return None
        return min(float(outside.norm() / varied.norm()), 1.0)

    def _varied(self, patches: Float[Tensor, "batch patch value"]) -> Float[Tensor, "batch patch value"]:
        """Return patches minus their mean color."""
        values = patches.reshape(*patches.shape[:-1], self.grid.channels, self.grid.patch**2)
        return (values - values.mean(-1, keepdim=True)).flatten(-2)

    def penalty(self, images: Images) -> Float[Tensor, ""]:
        """Return the mean square of what lies outside, in normalized units; differentiable."""
        return self.outside(images).square().mean()


def assess(finding: Finding, observation: Observation, completed: Bool[Tensor, " patch"] | None = None) -> Finding:
    """Return a finding with the share of its images that lies outside of the row space, and a caution where much does.

    The trace gets `row_space_residual`, see `RowSpace.share_outside`, and `row_space_rank`; the former is None where the found
    images hardly vary, both where the space says nothing or cannot be read.

    Args:
        finding: what was found.
        observation: what the attack may know.
        completed: patches that were filled in without data, and say nothing of whose they are. Those without a gradient of
            their own, as dropped ones have none, are left out in any case.
    """
    residual, rank, cautions = None, None, finding.cautions
    space = _informative(observation)
    if space is not None and finding.images is not None and observation.normalization is not None:
        counted = _reached(observation, space.grid)
        if completed is not None:
            counted &= ~completed
        residual = space.share_outside(observation.normalization.normalize(finding.images), counted)
        rank = space.rank
        if residual is not None and residual > _NOTABLE and space.noise < _CLEAN:
            cautions += (
                f"What lies outside the span of the update's patches is {residual:.2f} of the found patches' variation; "
                "patches that took part in the update leave next to none.",
            )
    trace = {**finding.trace, "row_space_residual": residual, "row_space_rank": rank}
    return replace(finding, trace=trace, cautions=cautions)


def _reached(observation: Observation, grid: PatchGrid) -> Bool[Tensor, " patch"]:
    """Return which patches have a gradient of their own, by their position's; all where positions are not shared."""
    positions = observation.update.tensors.get(POSITIONS)
    if positions is None:
        return torch.ones(grid.count, dtype=torch.bool)
    lengths = positions[0, -grid.count :].norm(dim=1)
    reached: Bool[Tensor, " patch"] = lengths >= _CLEAN * lengths.max()
    return reached


def _informative(observation: Observation) -> RowSpace | None:
    try:
        space = RowSpace.of(observation)
    except AttackRefusedError:
        return None
    return space if space.is_informative else None
