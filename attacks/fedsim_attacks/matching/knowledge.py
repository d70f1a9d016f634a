"""What the terms of an objective may be made from, priors of third parties included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Labels, Normalization, Observation
from fedsim_attacks.head import read_head_inputs
from fedsim_attacks.update import Target


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What an attack knows of one update.

    Args:
        observation: what the threat model grants.
        target: the observed gradient, and the model it was computed on.
        labels: of the images.
        normalization: of the model's input.
        generator: draws what a term needs.
    """

    observation: Observation
    target: Target
    labels: Labels
    normalization: Normalization
    generator: torch.Generator

    @property
    def model(self) -> nn.Module:
        """The attacked model."""
        return self.target.model

    @cached_property
    def head_inputs(self) -> Float[Tensor, "batch embed"]:
        """Head inputs of the client's images, in the order of the labels, as its classifier's gradient shows them.

        Raises:
            AttackRefusedError: it does not show them.
        """
        return read_head_inputs(self.observation, self.target.model, self.labels, self.generator)
