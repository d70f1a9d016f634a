"""What a descent is to reach: the observed gradient, the model it was computed on, and which reading of the update fits."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation
from fedsim_attacks.update.class_token import keep_class_token_only
from fedsim_attacks.update.gradient import mean_gradient
from fedsim_attacks.update.tensors import Gradients


class Target(NamedTuple):
    """What the descent is to reach.

    Args:
        names: parameters of which the update holds a gradient, and which the attack looks at.
        gradients: observed, in the order of `names`, float32.
        is_scaled: whether their factor is one.
        model: the global model, in the mode in which the client is taken to train; of its own, see `class_token`.
    """

    names: Sequence[str]
    gradients: Gradients
    is_scaled: bool
    model: nn.Module

    def place(self, name: str) -> int | None:
        """Return where a parameter stands in `names`."""
        return self.names.index(name) if name in self.names else None


def open_device(name: str) -> torch.device:
    """Return a device by name; `auto` is an accelerator where there is one.

    Raises:
        AttackRefusedError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AttackRefusedError(f"device: {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def read_target(observation: Observation, layers: Sequence[str], device: torch.device) -> Target:
    """Return the gradient behind an update; one of zeros is of a part that took no part.

    Args:
        observation: what the attack may know.
        layers: patterns of parameter names to look at; all where empty.
        device: of the copy of the model and of the gradient.

    Raises:
        AttackRefusedError: nothing is left to look at, or an entry is not finite.
    """
    model = observation.model().to(device)
    model.train(bool(observation.train_mode))
    keep_class_token_only(model)
    gradient = mean_gradient(observation, observation.update.tensors)
    held = [n for n, _ in model.named_parameters() if n in gradient.tensors and gradient.tensors[n].any()]
    if not held:
        raise AttackRefusedError("the update holds no gradient of any parameter of the model.")
    names = [n for n in held if not layers or any(fnmatch.fnmatchcase(n, pattern) for pattern in layers)]
    if not names:
        raise AttackRefusedError(
            f"layers: {', '.join(layers)} fits no parameter with a gradient. There are, among others, {', '.join(held[:4])}."
        )
    found = [gradient.tensors[name].to(device, torch.float32) for name in names]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
        raise AttackRefusedError("the gradient is not finite.")
    return Target(names, found, gradient.is_scaled, model)
