"""From a captured update to the mean gradient behind it: undo step size, momentum and weight decay of local SGD.

SGD is linear in its gradients: w_T = a w_0 - sum_t c_t g_t, where a and the c_t follow from the recipe alone. So the
weight decay of known weights w_0 can be subtracted, and what is left is a weighted mean of the steps' gradients. A factor by
which a defense is known to have multiplied the update is divided out. The factors of gradients that the client clips step by
step cannot be: the scale is known only where the update shows that none was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation, TrainingKnowledge, UpdateEffects
from fedsim_attacks.update.told import told_effects, told_factor

NO_SCALE = (
    "the scale of this update is not known: a delta without the grant `training`, or of a client known to rescale, or to clip "
    "its local steps"
)

CLIP_MARGIN = 1e-6
"""What torch's `clip_grad_norm_` adds to a norm before it divides by it."""

_UNCLIPPED = 0.99  # of the clipping norm: a gradient shorter than that was not clipped


@dataclass(frozen=True)
class MeanGradient:
    """A weighted mean of the gradients of the local steps.

    Args:
        tensors: name of the parameter -> gradient, float64; with an unknown positive factor unless `is_scaled`.
        is_scaled: whether the factor is one; not where steps may have been clipped, each by a factor of its own.
        is_decay_known: whether weight decay is known to be absent or has been subtracted.
    """

    tensors: Mapping[str, Tensor]
    is_scaled: bool
    is_decay_known: bool


def mean_gradient(observation: Observation, names: Collection[str]) -> MeanGradient:
    """Return the mean gradient of the named tensors, of those that the update holds.

    Raises:
        AttackRefusedError: the client is known to use an optimizer that rescales every entry.
    """
    update, training, factor = observation.update, observation.training, told_factor(observation)
    found = {name: update.tensors[name].double() / (factor or 1.0) for name in names if name in update.tensors}
    if update.kind == "gradient":
        return MeanGradient(found, factor is not None, True)
    negated = {name: -tensor for name, tensor in found.items()}
    if training is None:
        return MeanGradient(negated, False, False)
    if training.optimizer != "sgd":
        raise AttackRefusedError(
            f"the client trains with {training.optimizer}, which rescales every entry of the gradient by itself: its "
            "update is not a sum of gradients. This attack needs local SGD."
        )
    steps = local_steps(observation)
    if steps is None or factor is None:
        return MeanGradient(negated, False, training.weight_decay == 0)
    undone = _undone(observation, negated, training, steps)
    return MeanGradient(undone, not _may_be_clipped(observation, training, steps), True)


def _undone(
    observation: Observation, negated: Mapping[str, Tensor], training: TrainingKnowledge, steps: int
) -> dict[str, Tensor]:
    """Return the weighted mean of the steps' gradients for old minus new weights."""
    if training.weight_decay == 0:
        _, gain = sgd_factors(training, steps, weight_decay=0.0)
        return {name: tensor / gain for name, tensor in negated.items()}
    start = dict(observation.model().named_parameters())
    corrected = {}
    for name, tensor in negated.items():
        exempt = name in training.decay_exempt
        kept, gain = sgd_factors(training, steps, weight_decay=0.0 if exempt else training.weight_decay)
        corrected[name] = (tensor + (kept - 1) * start[name].detach().double()) / gain
    return corrected


def _may_be_clipped(observation: Observation, training: TrainingKnowledge, steps: int) -> bool:
    """Return whether the client may have scaled a step's gradient down.

    The gradient of a single step that is shorter than the clipping norm was not clipped. It is read off the whole update, so
    nothing may be missing of that, and the rounding of weights that travel may not make up for it. Of several steps, or
    clients, or behind a defense that changes the update, nobody can tell.
    """
    if training.clip_norm is None:
        return False
    tensors = observation.update.tensors
    is_changed = any(effects != UpdateEffects() for effects in told_effects(observation))
    if steps != 1 or observation.update.client < 0 or is_changed or not all(bool(t.any()) for t in tensors.values()):
        return True
    gradients = _undone(observation, {name: -tensor.double() for name, tensor in tensors.items()}, training, 1)
    weights = dict(observation.model().named_parameters())
    rounding = _norm([weights[name].detach() for name in tensors]) * torch.finfo(torch.float32).eps
    length = _norm(gradients.values()) + rounding / training.learning_rate
    return length > _UNCLIPPED * (training.clip_norm - CLIP_MARGIN)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors))


def local_steps(observation: Observation) -> int | None:
    """Return the number of local steps, or None when the grants do not tell."""
    training, examples = observation.training, observation.update.num_examples
    if training is None:
        return None
    if training.local_epochs is None:
        return training.local_steps
    if examples == 1:
        return training.local_epochs
    if examples < 1 or observation.batch_size is None:
        return None
    return training.local_epochs * math.ceil(examples / observation.batch_size)


def is_taken_for_one_step(observation: Observation) -> bool:
    """Return whether an update is of one step, as far as can be observed.

    Where the recipe is not granted, a delta of no more images than a batch has may be of one step or of several epochs; it
    is taken for one.
    """
    if observation.update.kind == "gradient":
        return True
    steps = local_steps(observation)
    return observation.update.num_examples <= (observation.batch_size or 1) if steps is None else steps == 1


def sgd_factors(training: TrainingKnowledge, steps: int, weight_decay: float) -> tuple[float, float]:
    """Return (a, sum of c_t) of w_T = a w_0 - sum_t c_t g_t for SGD with momentum and coupled weight decay.

    Args:
        training: learning rate and momentum.
        steps: T.
        weight_decay: of the tensor at hand.
    """
    kept, gain = 1.0, 0.0
    kept_velocity, gain_velocity = 0.0, 0.0
    for _ in range(steps):
        kept_velocity = training.momentum * kept_velocity + weight_decay * kept
        gain_velocity = training.momentum * gain_velocity + 1.0 - weight_decay * gain
        kept -= training.learning_rate * kept_velocity
        gain += training.learning_rate * gain_velocity
    return kept, gain
