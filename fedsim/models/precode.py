"""PRECODE: a variational bottleneck before the classifier, so that gradients depend on draws that nobody else knows.

Paper: Scheliga, Mader, Seeland. "PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage". WACV 2022.
https://arxiv.org/abs/2108.04725

Idea: of the classifier's input x an encoder makes a mean mu and a log-variance s, each of `size` K numbers;
b = mu + exp(s / 2) e with e ~ N(0, I) is drawn, and a decoder makes of b what the classifier gets in the place of x. The loss
of a step gains beta KL(N(mu, exp s) || N(0, I)) = beta / 2 sum(mu^2 + exp s - s - 1), the mean over the images. In evaluation
mode b is mu.

Differs from the paper: the bottleneck is part of the model on all clients and on the server, and of what attacks are shown,
since it is another model at inference too. The encoder states a log-variance.

Needs: a linear classifier; the KL term, which belongs to the loss of every step (`training_loss`). No formal guarantee: attacks
that read layers before the bottleneck need no draw of it, and others may search for it (Balunovic et al. 2022,
https://arxiv.org/abs/2111.04706).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import ScenarioError
from fedsim.scenario import PrecodePart

Rows = Float[Tensor, "*batch embed"]


class Bottleneck(nn.Module):
    """An encoder to mean and log-variance, a draw, and a decoder.

    Args:
        width: numbers of the input and of the output.
        size: numbers of the draw.
        beta: weight of the KL term.
    """

    def __init__(self, width: int, size: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, 2 * size)
        self.decoder = nn.Linear(size, width)
        self.beta = beta
        self._divergence: Tensor | None = None

    def forward(self, inputs: Rows) -> Rows:
        """Return what the classifier gets; the KL term waits for `regularization`."""
        mean, log_variance = self.encoder(inputs).chunk(2, -1)
        drawn = mean
        if self.training:
            drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        terms = mean.square() + log_variance.exp() - log_variance - 1
        self._divergence = terms.sum(-1).mean() / 2 if torch.is_grad_enabled() else None
        decoded: Tensor = self.decoder(drawn)
        return decoded

    def regularization(self) -> Tensor | None:
        """Return beta times the mean KL term of the last forward pass, once; None where nothing waits."""
        found, self._divergence = self._divergence, None
        return None if found is None else self.beta * found

    def __getstate__(self) -> dict[str, Any]:
        # What waits belongs to a graph, which cannot be copied.
        return {**self.__dict__, "_divergence": None}


class BottleneckedLinear(nn.Linear):
    """A linear classifier behind a bottleneck; its own weight and bias keep their names.

    Args:
        layer: whose weight and bias become this layer's.
        bottleneck: what its input passes first.
    """

    def __init__(self, layer: nn.Linear, bottleneck: Bottleneck) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias, self.bottleneck = layer.weight, layer.bias, bottleneck
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        return super().forward(self.bottleneck(input))


def add_precode(model: nn.Module, part: PrecodePart, heads: Sequence[str]) -> None:
    """Put a bottleneck before the classifier, in place; its weights are drawn from torch's global generator.

    Args:
        model: with its weights.
        part: size and weight of the KL term.
        heads: names of the modules of the classifier.

    Raises:
        ScenarioError: the model has several classifiers.
    """
    if len(heads) != 1:
        raise ScenarioError(
            "model.precode", f"the model has {len(heads)} classifiers, and the bottleneck is before one. Leave it out."
        )
    head = model.get_submodule(heads[0])
    assert isinstance(head, nn.Linear)
    parent, _, own = heads[0].rpartition(".")
    bottleneck = Bottleneck(head.in_features, part.size, part.beta).to(head.weight)
    setattr(model.get_submodule(parent), own, BottleneckedLinear(head, bottleneck))


Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (batch, class) and labels, numbers (batch) or probabilities (batch, class) -> mean over the batch, a scalar."""

_LOSS = "fedsim_loss"


def set_loss(model: nn.Module, loss: Loss) -> None:
    """Let a model be trained on another loss than cross-entropy; copies of it keep that."""
    setattr(model, _LOSS, loss)


def has_own_loss(model: nn.Module) -> bool:
    """Return whether a model is trained on another loss than cross-entropy; see `set_loss`."""
    return hasattr(model, _LOSS)


def training_loss(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Return what a local step minimizes: the mean cross-entropy, or the loss that was set, and what the model adds to it.

    Args:
        model: whose last forward pass gave the logits.
        logits: of a batch.
        labels: hard or soft labels.
    """
    loss: Tensor = getattr(model, _LOSS, nn.functional.cross_entropy)(logits, labels)
    for module in model.modules():
        if isinstance(module, Bottleneck) and (added := module.regularization()) is not None:
            loss = loss + added
    return loss
