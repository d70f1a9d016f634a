"""The parameters of an attack that descends on images: distances, priors, steps, starts, readings of a delta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.registry import Registry
from fedsim_attacks.matching.distances import DISTANCES
from fedsim_attacks.matching.optimizers import OPTIMIZERS, Schedule
from fedsim_attacks.matching.priors import PriorUse, PriorWeights, read_priors, written
from fedsim_attacks.newton import Products
from fedsim_attacks.update import Reading

_WEIGHTS = "matching positions matching_after group noise initial_scale second_phase warm_up".split()


Refinement = Literal["none", "gauss_newton", "closed_form"]


RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "total_variation": "priors: {total_variation: ...}",
        "total_variation_end": "priors: {total_variation: {weight: ..., end: ...}}",
        "hold": "priors: {total_variation: {weight: ..., end: ..., hold: ...}}",
        "seams": "priors: {patch: ...}",
        "norm": "priors: {norm: ...}",
        "statistics": "priors: {batch_norm: ...}",
        "prior_network": "priors: {batch_norm: {weight: ..., network: ...}}",
        "prior_weights": "priors: {batch_norm: {weight: ..., network: ..., weights: ...}}",
        "prior_from": "second_phase, and priors: {batch_norm: {weight: ..., start: ...}}",
        "slopes": "input_gradients",
        "largest": "top_k",
        "trials": "multi_start",
        "promising": "acceptance_threshold",
        "polish": "refinement",
        "polish_steps": "refinement_steps",
        "polish_products": "refinement_products",
        "features": "priors: {features: ...}",
        "row_space": "priors: {row_space: ...}",
    }
)


@dataclass(frozen=True, kw_only=True)
class Parameters(Attack):
    """What an attack that descends on images is composed of.

    Args:
        distance: of the gradients: `cosine`, `tensor_cosine` (mean over tensors), `l2` (squared), `layer_l2` (sum over
            tensors), `sign`.
        matching: weight of that distance.
        top_k: share of each tensor's entries, those of largest magnitude, that it compares.
        layers: patterns of the parameters that the attack looks at; all where empty.
        positions: weight of the direction of the position embedding's gradient.
        per_token: whether that is the mean over tokens, or taken of all tokens as one vector.
        priors: weight of each image prior by name: `total_variation` (mean absolute difference of neighboring pixels),
            `patch` (difference at the borders of patches), `norm` (root mean square), `batch_norm` (distance from the
            statistics of a network's BatchNorm layers), `features` (distance of head inputs from those recovered from the
            classifier's gradient), `row_space` (what lies outside of the span of the client's patches), or one of another
            distribution. In place of a number, a mapping: `weight`; `end`, to which it moves geometrically after `hold` of the
            steps; `start`, share of the steps before it counts; and the prior's own parameters.
        second_phase: share of the steps at which `matching_after` sets in.
        matching_after: factor of `matching` and `positions` from there on.
        group: weight of the distance of every restart from what all agree on.
        registered: whether restarts are shifted onto each other for that.
        steps: of the optimizer, each restart.
        optimizer: `adam`, `signed_adam` (the sign of the gradient alone), `lbfgs`.
        learning_rate: in normalized units.
        schedule: `constant`; `step`, a tenth after 3/8, 5/8 and 7/8 of the steps; `cosine`, down to zero.
        warm_up: share of the steps in which the learning rate rises.
        noise: standard deviation of the noise of every step, in units of the learning rate.
        patience: steps without progress after which a run ends; 0 for never.
        restarts: independent starts, all in one batch; the one of least objective wins.
        multi_start: starts at most; each is followed for a fifth of the steps, until one is accepted, and the best is then
            followed to the end. The first is as described below. Others are images like photographs, near grey, chosen by the
            head inputs that the classifier's gradient shows, and move at a third of the rate; where it shows none, they are
            other draws of the first kind.
        acceptance_threshold: objective at which a start is accepted, as a share of `matching` and `positions`, which a gradient
            at right angles has.
        initial: `noise` around grey, or `tiles`, one patch of noise repeated.
        initial_scale: standard deviation of the start around grey, in normalized units.
        resolution: the images' side is `image_size / resolution`, and enlarged.
        optimize_labels: whether labels that are not granted are optimized beside the images, instead of recovered; so they are
            in any case where the client's loss is not cross-entropy, whose rules do not hold then.
        refinement: of second order, after the descent: `gauss_newton`, steps of Levenberg-Marquardt on the whole gradient;
            `closed_form`, alternation between token gradients and the images that solve the patch projection's, for one
            image of a trained model.
        refinement_steps: how many of them, each of the first as long as 80 steps, each of the second as long as one; the one
            that leaves least of the gradient, or of the patch projection's, wins.
        refinement_products: of `gauss_newton` with the Jacobian: `differences` of two passes; `exact`, several times as long,
            which lead further on trained models; `auto`, the first where they are adjoint to a hundredth.
        local: how a delta is read: as `one_gradient`, by a `surrogate` point between the weights, by `unrolled` local steps;
            `auto` takes what fits the recipe.
        input_gradients: `double_backward`, `forward_difference` of two passes, or `auto`, the latter where the two agree.
        precision: of the forward pass.
        device: `auto` takes an accelerator where there is one.
        aware: whether the client's defenses are modeled, as far as grants and the update tell of them.
    """

    renamed: ClassVar[Mapping[str, str]] = RENAMED
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})
    applies: ClassVar[Applicability] = Applicability(any_loss=True)

    distance: str = "cosine"
    matching: float = 1.0
    top_k: float = 1.0
    layers: tuple[str, ...] = ()
    positions: float = 0.0
    per_token: bool = True
    priors: PriorWeights = field(default_factory=lambda: {"total_variation": 0.1})
    second_phase: float = 0.0
    matching_after: float = 1.0
    group: float = 0.0
    registered: bool = False
    steps: int = 400
    optimizer: str = "signed_adam"
    learning_rate: float = 0.1
    schedule: Schedule = "step"
    warm_up: float = 0.0
    noise: float = 0.0
    patience: int = 0
    restarts: int = 1
    multi_start: int = 1
    acceptance_threshold: float = 0.1
    initial: Literal["noise", "tiles"] = "noise"
    initial_scale: float = 0.5
    resolution: int = 1
    optimize_labels: bool = False
    refinement: Refinement = "none"
    refinement_steps: int = 10
    refinement_products: Products = "auto"
    local: Reading = "auto"
    input_gradients: Literal["auto", "double_backward", "forward_difference"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    aware: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 0),
            ("restarts", 1),
            ("multi_start", 1),
            ("patience", 0),
            ("resolution", 1),
            ("refinement_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        for name in ("learning_rate", "top_k", "acceptance_threshold"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}.")
        for name in _WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")
        for name in ("top_k", "second_phase", "warm_up"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}.")
        self._check_names()
        object.__setattr__(self, "priors", written(read_priors(self.priors)))
        self._check_together()

    @property
    def prior_uses(self) -> tuple[PriorUse, ...]:
        """The priors with a weight."""
        return read_priors(self.priors)

    @property
    def applicability(self) -> Applicability:
        """See `Attack.applicability`; a term of the position embedding needs one."""
        return replace(self.applies, model=("learned position embedding",)) if self.positions else self.applies

    def _check_names(self) -> None:
        registries: tuple[tuple[str, Registry[Any]], ...] = (("distance", DISTANCES), ("optimizer", OPTIMIZERS))
        for name, registry in registries:
            try:
                registry.find(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def _check_together(self) -> None:
        if not self.matching and not self.positions:
            raise ValueError(
                "matching: expected a weight above 0, here or for positions; nothing else sees the update."
            )
        if self.refinement != "none" and self.resolution > 1:
            raise ValueError("refinement: expected none with a resolution above 1, which it would leave.")
        if self.group and self.restarts < 2:
            raise ValueError("group: expected 0 with one restart, which has nobody to agree with.")
        if not OPTIMIZERS.find(self.optimizer).in_batch:
            if self.multi_start > 1:
                raise ValueError(
                    f"multi_start: expected 1 with {self.optimizer}, which runs one restart after the other; use restarts."
                )
            if self.group:
                raise ValueError(f"group: expected 0 with {self.optimizer}, which runs one restart after the other.")
