"""Partial sharing: the client keeps the update of some parameters to itself.

Paper: Arivazhagan, Aggarwal, Singh, Choudhary. "Federated Learning with Personalization Layers". 2019.
https://arxiv.org/abs/1912.00818; for position embeddings against inversion, Lu, Zhang, Zhao, He, Cheng. "APRIL: Finding the
Achilles' Heel on Privacy for Vision Transformers". CVPR 2022. https://arxiv.org/abs/2112.14087

Idea: of the parameters whose name matches a pattern (as in a shell: `pos_embed`, `blocks.0.*`, `head.*`), the client sends
zeros: no gradient, no change. An attack that reads them has nothing to read.

Differs from the paper: a hidden parameter is not trained in private either. The client meets the server's value of it in
every round, which stays the initial one where all clients hide it; the papers keep a trained copy on the client.

Needs: patterns that match. No guarantee: what is hidden may follow from what is shared. The gradient of the patch
projection's bias, for one, is the sum of the hidden position gradients. Cost: none in time; accuracy as if the hidden
parameters were frozen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense
from fedsim.errors import ScenarioError, nearest
from fedsim.exchange import Update, UpdateEffects


@dataclass(frozen=True, kw_only=True)
class PartialSharing(Defense):
    """Send zeros for the parameters whose names match.

    Args:
        hidden: patterns of parameter names, `*` standing for any text, dots included.
    """

    citation: ClassVar[str] = (
        "Arivazhagan et al. Federated Learning with Personalization Layers. 2019. https://arxiv.org/abs/1912.00818"
    )

    hidden: tuple[str, ...] = ("pos_embed",)

    def __post_init__(self) -> None:
        if not self.hidden or not all(self.hidden):
            raise ValueError(f"hidden: expected at least one pattern, none of them empty, got {list(self.hidden)}.")

    def prepare_model(self, model: nn.Module) -> None:
        """Check that every pattern matches; the model stays as it is.

        Raises:
            ScenarioError: a pattern matches no parameter.
        """
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.hidden:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ScenarioError(
                    "partial_sharing.hidden",
                    f"{pattern!r} matches no parameter of the model.{nearest(pattern, names)} Parameters that another "
                    "defense adds exist after it in the list.",
                )

    @property
    def effects(self) -> UpdateEffects:
        """The parameters of which zeros are sent."""
        return UpdateEffects(hidden=self.hidden)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what hiding these parameters leaves open on this model."""
        names = [name for name, _ in model.named_parameters()]
        shared = [name for name in names if not self._is_hidden(name)]
        if not shared:
            return ("Every parameter is hidden: the client takes part without contributing.",)
        found = [
            f"{len(names) - len(shared)} of {len(names)} parameters are hidden; that guarantees nothing about what the "
            "others tell.",
            "Where only some clients hide a parameter, averaging counts them as clients that did not change it.",
        ]
        if any(name.startswith("head.") for name in shared):
            found.append("The head is shared, and its gradient tells the labels.")
        return tuple(found)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with zeros for hidden parameters: the same names, order, shapes and types."""
        tensors = {n: torch.zeros_like(t) if self._is_hidden(n) else t for n, t in update.tensors.items()}
        return dataclasses.replace(update, tensors=tensors)

    def _is_hidden(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.hidden)
