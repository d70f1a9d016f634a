"""The conformance check of `Defense.prepare_model`."""

from __future__ import annotations

import copy
import pickle

from timm.models import VisionTransformer
from torch import nn

from fedsim import models
from fedsim.defense import Defense
from fedsim.seeds import seeded
from fedsim.testing.isolation import TORCH_GENERATOR, Fault, equal, expect, no_global_effect
from fedsim.testing.local_step import hook, image_batch, plain_local_step, protected_local_step, same, weights


def check_preparation(defense: Defense, plain: VisionTransformer) -> VisionTransformer:
    """Check `prepare_model`, and return a prepared model."""
    who = hook(defense, "prepare_model")
    prepared, twin = models.copied(plain), models.copied(plain)
    _prepare(defense, prepared, seed=0)
    _prepare(defense, twin, seed=0)
    before, after = weights(plain), weights(prepared)
    kept = {name: tensor for name, tensor in after.items() if name in before}
    expect(same(kept, before), f"{who} renames, reorders or changes parameters of the plain model; only add to them.")
    expect(prepared.training == plain.training, f"{who} switches between training and evaluation mode.")
    expect(same(after, weights(twin)), f"{who} is no function of torch's global generator; draw from nothing else.")
    _check_alike(who, plain, prepared, "must behave like the plain one where the defense is off")
    _prepare(defense, twin, seed=1)
    expect(same(after, weights(twin)), f"{who} adds or draws parameters again when called twice; do nothing then.")
    _check_alike(who, prepared, twin, "must not change when prepared twice")
    batch = image_batch(plain, 3)
    expected = protected_local_step(defense, prepared, batch, 0.0).gradients
    for how, clone in (("deep copy", copy.deepcopy(prepared)), ("pickled copy", _pickled(who, prepared))):
        expect(same(after, weights(clone)), f"{who}: a {how} of the model has other parameters.")
        _check_alike(who, prepared, clone, f"must behave like its {how}")
        expect(
            same(expected, protected_local_step(defense, clone, batch, 0.0).gradients),
            f"{who}: on a {how} of the model, train_step gives other gradients; nothing may point at the first model.",
        )
    return prepared


def _prepare(defense: Defense, model: nn.Module, seed: int) -> None:
    with (
        seeded(seed, "testing"),
        no_global_effect(hook(defense, "prepare_model"), apart_from=[TORCH_GENERATOR]),
    ):
        defense.prepare_model(model)


def _pickled(who: str, model: VisionTransformer) -> VisionTransformer:
    try:
        clone: VisionTransformer = pickle.loads(pickle.dumps(model))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Fault(f"{who} leaves a model that cannot be pickled: {error}") from error
    return clone


def _check_alike(who: str, first: nn.Module, second: nn.Module, claim: str) -> None:
    """Compare loss and shared gradients of plain training, in both modes; other parameters must have no gradient."""
    batch = image_batch(first, 3)
    for training in (False, True):
        one, other = (plain_local_step(model, batch, training) for model in (first, second))
        shared = {name: other.gradients.get(name) for name in one.gradients}
        extra = [g for name, g in other.gradients.items() if name not in one.gradients and g is not None]
        expect(
            equal(one.loss, other.loss) and same(one.gradients, shared) and not any(g.any() for g in extra),
            f"{who}: a prepared model {claim}: the same loss and gradients bit for bit, in both modes.",
        )
