"""What a descent is to reach: the observed gradient, the model it was computed on, and which reading of the update fits."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Labels, Observation
from fedsim.labels import distributions, smooth
from fedsim_attacks._class_token import keep_class_token_only
from fedsim_attacks._gradient import is_taken_for_one_step, local_steps, mean_gradient
from fedsim_attacks._labels import count_cautions, count_labels, picture_count
from fedsim_attacks._matching import Gradients
from fedsim_attacks._response import OneGradient, Response, Surrogate, Unrolled

Reading = Literal["auto", "one_gradient", "surrogate", "unrolled"]

_REFERENCES = 64
_MOST_UNROLLED = 8  # steps; memory and time grow with them


class Target(NamedTuple):
    """What the descent is to reach.

    Args:
        names: parameters of which the update holds a gradient, and which the attack looks at.
        gradients: observed, in the order of `names`, float32.
        is_scaled: whether their factor is one.
        model: the global model, in the mode in which the client is taken to train; of its own, see `_class_token`.
    """

    names: Sequence[str]
    gradients: Gradients
    is_scaled: bool
    model: nn.Module

    def place(self, name: str) -> int | None:
        """Return where a parameter stands in `names`."""
        return self.names.index(name) if name in self.names else None


class KnownLabels(NamedTuple):
    """Labels of the pictures that are looked for, and doubts about them."""

    labels: Labels
    cautions: tuple[str, ...]


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


def known_labels(observation: Observation, generator: torch.Generator, optimized: bool) -> KnownLabels:
    """Return the granted labels, or counted ones with their cautions.

    Args:
        observation: what the attack may know.
        generator: draws reference pictures for the count.
        optimized: whether labels that are not granted are variables; then only their number counts.
    """
    if observation.labels is not None:
        return KnownLabels(observation.labels, ())
    if optimized:
        return KnownLabels(torch.zeros(picture_count(observation), dtype=torch.int64), count_cautions(observation))
    counted = count_labels(observation, _REFERENCES, generator)
    return KnownLabels(counted.labels, counted.cautions)


def respond(observation: Observation, target: Target, labels: Labels, reading: Reading) -> tuple[Response, str | None]:
    """Return what pictures would have made the client send, and what is to be doubted about that.

    Args:
        observation: what the attack may know.
        target: what its update holds.
        labels: of the pictures, on the target's device; smoothed here where the recipe says so.
        reading: `auto` takes one gradient for what it is, simulates up to eight known steps, and looks for a surrogate of
            more or of unknown ones.

    Raises:
        AttackRefusedError: the reading needs a recipe that is not granted.
    """
    training = observation.training
    if training is not None and training.label_smoothing and labels.ndim == 1:
        labels = smooth(distributions(labels, observation.num_classes), training.label_smoothing)
    one = OneGradient(target.model, target.names, labels)
    if observation.update.kind == "gradient":
        return one, None
    steps = local_steps(observation)
    if reading == "auto":
        reading = _fitting(observation, steps)
    if reading == "one_gradient":
        doubt = "This delta may hold several local steps; it is matched as one gradient." if steps != 1 else None
        return one, doubt
    if reading == "surrogate":
        tensors = observation.update.tensors
        moved = [tensors[name].to(target.gradients[0]) for name in target.names]
        return Surrogate(target.model, target.names, labels, movement=moved), None
    if training is None or steps is None:
        raise AttackRefusedError("local: unrolled simulates the client's steps. Grant `training` and `batch_size`.")
    size, doubt = observation.batch_size or len(labels), None
    if len(labels) > size:
        doubt = (
            f"Batches of {size} are simulated in the order in which the pictures were found; the client's is not known."
        )
    return (
        Unrolled(target.model, target.names, labels, training=training, steps=steps, batch_size=size),
        doubt,
    )


def _fitting(observation: Observation, steps: int | None) -> Reading:
    if is_taken_for_one_step(observation):
        return "one_gradient"
    if steps is not None and steps <= _MOST_UNROLLED:
        return "unrolled"
    return "surrogate"
