"""The residual of the gradient, with what the last block has seen of every image (`last_block`) as further rows.

These add nothing that the gradient does not imply. But a batch's gradient mixes its images, and that of a trained model hides
each in narrow valleys; the further rows are of one image each, and of the half of the model before the loss, so that steps
solved with them see farther.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsim.exchange import Images
from fedsim_attacks.newton.last_block import LastBlockFeatures
from fedsim_attacks.newton.residual import Residual
from fedsim_attacks.update import Gradients

_SHARE = 0.3  # of an image's vectors together, where all tensors of the gradient count 1: they guide, not decide


@dataclass(frozen=True, eq=False, kw_only=True)
class LastBlockResidual(Residual):
    """What images leave of the observed gradient, and of what the last block has seen.

    Args:
        block: what it has seen.
    """

    block: LastBlockFeatures

    @cached_property
    def goal(self) -> Gradients:
        """The observed gradient and what the last block has seen, weighed."""
        return [*super().goal, self._rows * self.block.seen]

    @cached_property
    def _rows(self) -> Tensor:
        return (_SHARE * self.block.weights / self.block.weights.shape[1]).sqrt()[:, :, None]

    def reached(self, images: Images, create_graph: bool = False) -> Gradients:
        """Return what is compared of the gradient that images cause, and of what the last block sees of them."""
        with torch.set_grad_enabled(create_graph):
            seen = self._rows * self.block.of(images)
        return [*super().reached(images, create_graph), seen]
