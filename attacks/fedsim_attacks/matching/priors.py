"""Image priors of an objective: functions by name, each with a weight that may change over the steps.

A prior is a function of what the attack knows (`Knowledge`) that returns a penalty: a differentiable, scalar function of the
candidate images (`Candidate`). Its keyword-only arguments are parameters that a scenario may set. A new one is one function and
one entry: in `PRIORS` here, or, of another distribution, in the entry-point group `fedsim_attacks.priors`.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedsim.coercion import coerce
from fedsim.errors import AttackRefusedError, ScenarioError, nearest
from fedsim.models import patch_grid
from fedsim.registry import Registry
from fedsim_attacks.closed_form import RowSpace
from fedsim_attacks.head import head_input
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.objective import Candidate, ImageTerm, Weight, annealed, constant, delayed
from fedsim_attacks.priors import has_efficientnet_lite0, length, load_prior, patch_differences
from fedsim_attacks.priors import total_variation as variation
from fedsim_attacks.update import Scalar

Penalty = Callable[[Candidate], Scalar]
Prior = Callable[..., Penalty]
Setting = bool | int | float | str | None
PriorWeights = Mapping[str, Setting | Mapping[str, Setting]]  # as a scenario writes them

_HOLD = 0.3  # share of the steps before a weight with an end moves toward it
_SCHEDULE = ("weight", "end", "hold", "start")


class SkippedPriorError(Exception):
    """Raised by a prior that lacks what it needs and may be left out; the message becomes a caution."""


def total_variation(known: Knowledge) -> Penalty:
    """Mean absolute difference of neighboring pixels in [0, 1]."""
    return lambda candidate: variation(candidate.pixels)


def patch(known: Knowledge) -> Penalty:
    """Difference of pixels on either side of a border between patches."""
    side = patch_grid(known.model).patch
    return lambda candidate: patch_differences(candidate.pixels, side)


def norm(known: Knowledge) -> Penalty:
    """Root mean square of the images, in normalized units."""
    return lambda candidate: length(candidate.images)


def batch_norm(known: Knowledge, *, network: str = "auto", weights: str | None = None) -> Penalty:
    """Distance from the statistics in the BatchNorm layers of a network.

    Args:
        known: whose auxiliary data the network may be trained on.
        network: `auxiliary` (a small one, trained on the auxiliary data), `efficientnet_lite0`, the name of a timm CNN; `auto`
            is the first of these that there is; without one the prior is left out, with a caution.
        weights: file of the weights of a timm CNN; None for its published ones.
    """
    if network == "auto":
        if known.observation.auxiliary_data is not None:
            network = "auxiliary"
        elif has_efficientnet_lite0():
            network = "efficientnet_lite0"
        else:
            raise SkippedPriorError(
                "There is no network whose statistics would hold the images: grant `auxiliary_data`, install fedsim's "
                "extra `priors`, or name network and weights of priors.batch_norm."
            )
    prior = load_prior(network, weights, known.observation, "relative")
    return lambda candidate: prior(candidate.pixels)


def features(known: Knowledge) -> Penalty:
    """Distance of head inputs from those that the classifier's gradient shows."""
    model, goal = known.model, known.head_inputs
    size = goal.square().sum(1)

    def distance(candidate: Candidate) -> Scalar:
        found = head_input(model, candidate.images)
        return ((found - goal).square().sum(1) / size).mean()

    return distance


def row_space(known: Knowledge) -> Penalty:
    """Mean square of what lies outside of the span of the client's patches."""
    space = RowSpace.of(known.observation)
    if not space.is_informative:
        raise AttackRefusedError(
            f"row_space: this update holds {space.patches} patches or more, and the gradient of the patch projection can "
            f"show {space.limit} directions, so none is left to penalize. Leave it out of priors."
        )
    return lambda candidate: space.penalty(candidate.images)


PRIORS: Registry[Prior] = Registry(
    "prior",
    "fedsim_attacks.priors",
    {
        "total_variation": total_variation,
        "patch": patch,
        "norm": norm,
        "batch_norm": batch_norm,
        "features": features,
        "row_space": row_space,
    },
    lambda part: callable(part) and not inspect.isclass(part),
    "a function of `Knowledge` that returns a penalty",
)


class PriorUse(NamedTuple):
    """A prior in an objective.

    Args:
        name: in the registry.
        weight: at first.
        end: what the weight moves to, geometrically; None where it stays.
        hold: share of the steps before it moves.
        start: share of the steps before the prior counts.
        params: of the function.
    """

    name: str
    weight: float
    end: float | None
    hold: float
    start: float
    params: Mapping[str, Any]

    def scheduled(self) -> Weight:
        """Return the weight over the steps."""
        moving = constant(self.weight) if self.end is None else annealed(self.weight, self.end, self.hold)
        return delayed(moving, self.start)

    def term(self, known: Knowledge) -> ImageTerm:
        """Return the prior as a term of the objective.

        Raises:
            SkippedPriorError: it may be left out, and has to be.
            AttackRefusedError: the update lacks what it needs.
        """
        return ImageTerm(self.scheduled(), PRIORS.find(self.name)(known, **self.params))


def read_priors(given: PriorWeights) -> tuple[PriorUse, ...]:
    """Return the priors that a scenario names, those of weight 0 left out.

    Args:
        given: name to weight, or to a mapping of `weight`, `end`, `hold`, `start` and parameters of the prior.

    Raises:
        ValueError: an unknown name or parameter, or a value out of range; the message starts with the place.
    """
    found = []
    for name, value in given.items():
        where = f"priors.{name}"
        try:
            prior = PRIORS.find(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        parts = value if isinstance(value, Mapping) else {"weight": value}
        try:
            use = _use(name, prior, parts, where)
        except ScenarioError as error:
            raise ValueError(str(error)) from None
        if use.weight:
            found.append(use)
    return tuple(found)


def written(uses: tuple[PriorUse, ...]) -> PriorWeights:
    """Return priors as a scenario writes them, each as short as it can be."""
    return {use.name: _short(use) for use in uses}


def _short(use: PriorUse) -> float | dict[str, Any]:
    parts: dict[str, Any] = {"weight": use.weight}
    if use.end is not None:
        parts["end"] = use.end
    if use.hold != _HOLD:
        parts["hold"] = use.hold
    if use.start:
        parts["start"] = use.start
    parts |= use.params
    return use.weight if len(parts) == 1 else parts


def _use(name: str, prior: Prior, parts: Mapping[str, Any], where: str) -> PriorUse:
    own = _parameters(prior)
    for key in parts:
        if key not in own and key not in _SCHEDULE:
            allowed = [*_SCHEDULE, *own]
            raise ScenarioError(
                f"{where}.{key}", f"unknown parameter.{nearest(str(key), allowed)} Allowed: {', '.join(allowed)}."
            )
    if "weight" not in parts:
        raise ScenarioError(f"{where}.weight", "missing; a prior has a weight.")
    weight = _number(parts, "weight", where, math.inf)
    end = None if parts.get("end") is None else _number(parts, "end", where, weight)
    if end == 0:
        raise ScenarioError(f"{where}.end", "expected a number above 0, got 0.0.")
    hold = _number(parts, "hold", where, 1.0) if "hold" in parts else _HOLD
    start = _number(parts, "start", where, 1.0) if "start" in parts else 0.0
    params = {key: coerce(parts[key], hint, f"{where}.{key}") for key, hint in own.items() if key in parts}
    return PriorUse(name, weight, end, hold, start, params)


def _number(parts: Mapping[str, Any], key: str, where: str, most: float) -> float:
    place = where if set(parts) == {"weight"} else f"{where}.{key}"
    value: float = coerce(parts[key], float, place)
    if not 0 <= value <= most or value == math.inf:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ScenarioError(place, f"expected a number of at least 0{limit}, got {value}.")
    return value


def _parameters(prior: Prior) -> dict[str, Any]:
    """Return the types of what a scenario may set: the keyword-only arguments."""
    hints = typing.get_type_hints(prior)
    listed = inspect.signature(prior).parameters.values()
    return {each.name: hints.get(each.name, Any) for each in listed if each.kind is each.KEYWORD_ONLY}
