"""Partial sharing: the client keeps the update of some parameters to itself.

Paper: Arivazhagan, Aggarwal, Singh, Choudhary. "Federated Learning with Personalization Layers". 2019.
https://arxiv.org/abs/1912.00818; for position embeddings against inversion, Lu, Zhang, Zhao, He, Cheng. "APRIL: Finding the
Achilles' Heel on Privacy for Vision Transformers". CVPR 2022. https://arxiv.org/abs/2112.14087

Idea: of the parameters whose name matches a pattern (as in a shell: `pos_embed`, `blocks.0.*`, `head.*`), the client sends
zeros: no gradient, no change. An attack that reads them has nothing to read. With `keeps: local`, as in the first paper, the
client trains a copy of its own, which begins as the server's and lasts from round to round. With `keeps: frozen` it takes the
server's value in every round, which stays the initial one where all clients hide it.

Differs from the paper: where only some clients hide a parameter, the server aggregates their zeros with the updates of the
others.

Needs: patterns that match parameters which are trained. No guarantee: what is hidden may follow from what is shared. The
gradient of the patch projection's bias, for one, is the sum of the hidden position gradients. An attack knows the global model
alone, not the local copies; that it fails for lack of them shows nothing about one that guesses them. Cost: none in time; with
`frozen` the accuracy of frozen parameters. The global accuracy of a run is that of the model without the local copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense
from fedsim.errors import ScenarioError, nearest
from fedsim.exchange import Update, UpdateEffects
from fedsim.models import matches, trained


@dataclass(frozen=True, kw_only=True)
class PartialSharing(Defense):
    """Send zeros for the parameters whose names match.

    Args:
        hidden: patterns of parameter names, `*` standing for any text, dots included.
        keeps: what the client trains from in the next round: `frozen`, the server's value; `local`, its own trained copy.
    """

    citation: ClassVar[str] = (
        "Arivazhagan et al. Federated Learning with Personalization Layers. 2019. https://arxiv.org/abs/1912.00818"
    )

    hidden: tuple[str, ...] = ("pos_embed",)
    keeps: Literal["frozen", "local"] = "frozen"

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
            if not any(matches(name, [pattern]) for name in names):
                raise ScenarioError(
                    "partial_sharing.hidden",
                    f"{pattern!r} matches no parameter of the model.{nearest(pattern, names)} Parameters that another "
                    "defense adds exist after it in the list.",
                )

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse to hide what is not sent anyway.

        Raises:
            ValueError: a pattern matches frozen parameters alone; or another entry keeps a copy of the same parameter.
        """
        names = list(trained(model))
        for pattern in self.hidden:
            if not any(matches(name, [pattern]) for name in names):
                raise ValueError(
                    f"hidden: {pattern!r} matches frozen parameters alone, of which nobody sends anything. Leave it out."
                )
        for other in others:
            both = [name for name in names if self._is_hidden(name) and matches(name, other.effects.local)]
            if self.keeps == "local" and both:
                raise ValueError(
                    f"keeps: got local, and {type(other).__name__} of the same client keeps a copy of {both[0]} too. "
                    "Leave one out."
                )

    @property
    def effects(self) -> UpdateEffects:
        """The parameters of which zeros are sent, and those of which the client has a copy of its own."""
        return UpdateEffects(hidden=self.hidden, local=self.hidden if self.keeps == "local" else ())

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what hiding these parameters leaves open on this model."""
        names = list(trained(model))
        shared = [name for name in names if not self._is_hidden(name)]
        if not shared:
            return ("Every parameter is hidden: the client takes part without contributing.",)
        found = [
            f"{len(names) - len(shared)} of {len(names)} parameters are hidden; that guarantees nothing about what the "
            "others tell.",
            "Where only some clients hide a parameter, averaging counts them as clients that did not change it.",
        ]
        if self.keeps == "local":
            found.append(
                "Attacks get the global model, not the client's own copies of hidden parameters. From its second round on, "
                "that may be why they fail, and an attack that guesses the copies is not among them."
            )
            found.append("The global accuracy is that of the model without the copies, not of what the client uses.")
        if any(name.startswith("head.") for name in shared):
            found.append("The head is shared, and its gradient tells the labels.")
        return tuple(found)

    def begin_round(self, model: nn.Module, context: ClientContext) -> None:
        """Put the client's own copies in the place of the server's values."""
        for name, parameter in trained(model).items():
            if name in context.state and self._keeps(name):
                parameter.copy_(context.state[name])

    def end_round(self, model: nn.Module, context: ClientContext) -> None:
        """Keep the client's own copies."""
        for name, parameter in trained(model).items():
            if self._keeps(name):
                context.state[name] = parameter.detach().clone()

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with zeros for hidden parameters: the same names, order, shapes and types."""
        tensors = {n: torch.zeros_like(t) if self._is_hidden(n) else t for n, t in update.tensors.items()}
        return dataclasses.replace(update, tensors=tensors)

    def _keeps(self, name: str) -> bool:
        return self.keeps == "local" and self._is_hidden(name)

    def _is_hidden(self, name: str) -> bool:
        return matches(name, self.hidden)
