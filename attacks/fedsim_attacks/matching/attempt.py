"""What every attack that iterates over images begins and ends with: the update read for it, and its finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Labels, Normalization, Observation, Trajectory
from fedsim.models import patch_grid
from fedsim_attacks.closed_form import assess
from fedsim_attacks.head import KnownLabels, known_labels
from fedsim_attacks.matching.starts import Box
from fedsim_attacks.update import (
    ClientGradient,
    Defended,
    Reading,
    model_client,
    open_device,
    read_defenses,
    read_target,
    rearranged,
)

FRAMES = 24  # of a trajectory


class Reached(NamedTuple):
    """What an attack found, before it leaves the attack.

    Args:
        images: normalized, on any device.
        labels: of these.
        trace: of the attack.
        cautions: of the attack, beside those of labels and defenses; what is None or empty is left out.
        trajectory: the way there.
    """

    images: Images
    labels: Labels
    trace: dict[str, Any]
    cautions: Sequence[str | None]
    trajectory: Trajectory


@dataclass(frozen=True, eq=False)
class Attempt:
    """One update, read for an attack that iterates over images.

    Args:
        observation: what the attack may know.
        generator: draws whatever the attack draws.
        normalization: of the model's input.
        defended: the observed gradient, and what the client's defenses made of it.
        known: labels of the images.
        response: the gradient that images would have caused.
        doubt: about the response; None where there is none.
    """

    observation: Observation
    generator: torch.Generator
    normalization: Normalization
    defended: Defended
    known: KnownLabels
    response: ClientGradient
    doubt: str | None

    @staticmethod
    def of(
        observation: Observation,
        generator: torch.Generator,
        device: str,
        aware: bool,
        layers: Sequence[str] = (),
        optimize_labels: bool = False,
        local: Reading = "auto",
    ) -> Attempt:
        """Read an update.

        Args:
            observation: what the attack may know.
            generator: draws the labels' reference images, and later on for the attack.
            device: by name.
            aware: whether the client's defenses are modeled.
            layers: patterns of parameters to look at; all where empty.
            optimize_labels: whether labels that are not granted are variables.
            local: how a delta is read.

        Raises:
            AttackRefusedError: the update does not allow it, or the normalization is not granted.
        """
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; images are solved for in normalized units.")
        place = open_device(device)
        target = read_target(observation, layers, place)
        defended = read_defenses(observation, target) if aware else Defended(target)
        known = known_labels(observation, generator, optimize_labels)
        response, doubt = model_client(observation, defended.target, known.labels.to(place), local)
        response = replace(response, used=defended.used)
        return Attempt(observation, generator, normalization, defended, known, response, doubt)

    @property
    def device(self) -> torch.device:
        """Where the attack computes."""
        return self.response.labels.device

    @property
    def box(self) -> Box:
        """The range of pixels."""
        return Box.of(self.observation.image_shape[0], self.normalization, self.device)

    def finding(self, reached: Reached) -> Finding:
        """Return what was found, in pixels; hidden patches in the order that fits, and rated by the row space."""
        finding = Finding(
            images=to_pixels(reached.images, self.normalization),
            labels=reached.labels,
            trace=reached.trace,
            # Labels and images are read off the same update, and may have the same doubts.
            cautions=tuple(
                dict.fromkeys(c for c in (*self.known.cautions, *self.defended.cautions, *reached.cautions) if c)
            ),
            trajectory=reached.trajectory,
        )
        if self.defended.hidden is not None:
            grid = patch_grid(self.defended.target.model)
            finding = rearranged(finding, self.defended.hidden.cpu(), grid, self.generator)
        return assess(finding, self.observation)


def to_pixels(images: Images, normalization: Normalization) -> Images:
    """Return normalized images as pixels from 0 to 1, on the CPU."""
    return normalization.denormalize(images.detach().cpu()).clamp(0, 1)


def shown_steps(steps: int) -> frozenset[int]:
    """Return the steps that a trajectory shows."""
    return frozenset(round(step) for step in torch.linspace(0, steps, min(FRAMES, steps + 1)).tolist())


def trajectory(
    steps: Sequence[int],
    images_at: Callable[[int], Tensor],
    losses: Sequence[float],
    normalization: Normalization,
) -> Trajectory:
    """Return a trajectory.

    Args:
        steps: that it shows, in ascending order.
        images_at: the normalized images of each of these, by its place among them.
        losses: at every step of the run.
        normalization: of the model's input.
    """
    images = torch.stack([to_pixels(images_at(place), normalization) for place in range(len(steps))])
    return Trajectory(tuple(steps), images, tuple(losses[step] for step in steps))
