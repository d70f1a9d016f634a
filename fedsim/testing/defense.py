"""The conformance check of a defense."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim import models
from fedsim.audit.mechanism import FEWEST_DRAWS, check_mechanism
from fedsim.defense import ClientContext, Defense, PrivacyBudget
from fedsim.exchange import Update, UpdateEffects, UpdateKind
from fedsim.recording.client_state import ClientState, gathered
from fedsim.seeds import seeded, torch_generator
from fedsim.testing.contract import check_contract
from fedsim.testing.fixtures import client_context, image_shape, make_update, random_images, small_model
from fedsim.testing.isolation import check_cautions, equal, expect, no_change, no_global_effect, told_at_once
from fedsim.testing.local_step import Batch, hook, image_batch, plain_local_step, protected_local_step, same, weights
from fedsim.testing.preparation import check_preparation

_STEPS = ((1, 0.0, False), (3, 0.75, False), (2, 0.5, True))  # batch size, progress, whether labels are soft
_KINDS: tuple[UpdateKind, ...] = ("gradient", "delta")
_ROUNDING = 1e-4  # of a norm
_PARTICIPATIONS = (1, 2, 3, 10, 100)
_SURE = 0.999  # with which a budget is refuted


def check_defense(plugin: type[Any] | Defense, /, *, model: VisionTransformer | None = None, **params: Any) -> None:
    """Check that a defense keeps the contract of `fedsim.defense.Defense`.

    Args:
        plugin: the class, or an instance.
        model: what to protect, without dropout; `small_model()` unless given.
        params: parameters that differ from the defaults.

    Raises:
        AssertionError: says all that is wrong and what the simulator relies on.
    """
    with told_at_once() as faults:
        defense: Defense = check_contract(plugin, Defense, params, faults)
        plain = small_model() if model is None else models.copied(model)
        claims = False
        with faults.of("budget"):
            claims = _check_budget(defense)
        prepared = check_preparation(defense, plain)
        for count, progress, soft in _STEPS:
            batch = image_batch(plain, count, soft)
            with faults.of("protect_batch"):
                batch = _check_batch(defense, batch)
            with faults.of("train_step"):
                _check_step(defense, plain, prepared, batch, progress)
        for kind in _KINDS:
            generator = torch_generator(0, "testing", "update")
            pictures = random_images(generator, 2, plain.num_classes, image_shape=image_shape(plain))
            update = make_update(prepared, pictures, kind)
            nothing = {name: torch.zeros_like(tensor) for name, tensor in update.tensors.items()}
            with faults.of("protect_update"):
                _check_update(defense, update)
            with faults.of("protect_update of nothing"):
                _check_update(defense, dataclasses.replace(update, tensors=nothing))
            if claims and kind == "gradient" and not faults:
                with faults.of("budget"):
                    _check_draws(defense, update)
        with faults.of("begin_round and end_round"):
            _check_rounds(defense, prepared)
        with faults.of("cautions"):
            _check_own_cautions(defense, prepared)


# One local step


def _check_batch(defense: Defense, given: Batch) -> Batch:
    """Check `protect_batch`, and return the batch that it gives."""
    who = hook(defense, "protect_batch")

    def protect(global_seed: int) -> Batch:
        with (
            seeded(global_seed, "testing"),
            no_global_effect(who),
            no_change(who, {"the images": given.images, "the labels": given.labels}),
        ):
            return Batch(
                *defense.protect_batch(
                    given.images, given.labels, client_context(), torch_generator(0, "testing", "batch")
                )
            )

    found, again = protect(0), protect(1)
    images, labels = found
    repeats = equal(images, again.images) and equal(labels, again.labels)
    expect(repeats, f"{who}: same batch, same generator state, but another result. Draw from the generator alone.")
    expect(
        images.shape[1:] == given.images.shape[1:] and images.dtype == given.images.dtype,
        f"{who} turns images of shape {tuple(given.images.shape)} into {tuple(images.shape)}, {images.dtype}.",
    )
    expect(len(labels) == len(images) > 0, f"{who} returns {len(images)} images and {len(labels)} labels.")
    return found


def _check_step(defense: Defense, plain: nn.Module, prepared: nn.Module, batch: Batch, progress: float) -> None:
    who = hook(defense, "train_step")
    found = protected_local_step(defense, prepared, batch, progress)
    expect(
        found.loss.ndim == 0 and not found.loss.requires_grad, f"{who} must return the mean loss, a detached scalar."
    )
    expect(bool(torch.isfinite(found.loss)), f"{who} returns the loss {float(found.loss)}.")
    filled = any(gradient is not None for gradient in found.gradients.values())
    expect(filled, f"{who} leaves every gradient empty.")
    for name, gradient in plain_local_step(plain, image_batch(plain, 1), plain.training).gradients.items():
        own = found.gradients[name]
        # A loss of its own need not pass every parameter.
        if gradient is not None and not (own is None and defense.effects.own_loss):
            expect(own is not None, f"{who} leaves {name}.grad empty, which plain training fills.")
            assert own is not None
            finite = own.shape == gradient.shape and bool(torch.isfinite(own).all())
            expect(finite, f"{who}: {name}.grad must be finite and of shape {tuple(gradient.shape)}.")
    again = protected_local_step(defense, prepared, batch, progress, global_seed=1)
    expect(
        equal(found.loss, again.loss) and same(found.gradients, again.gradients),
        f"{who}: same step, same generator state, but other gradients. Draw from the generator alone.",
    )
    twice = protected_local_step(defense, prepared, batch, progress, fresh=False)
    for name, once in found.gradients.items():
        total = twice.gradients[name]
        adds = (once is None) == (total is None)
        if once is not None and total is not None:
            adds = torch.allclose(total, 2 * once, rtol=1e-3, atol=1e-5 * (1 + float(once.abs().max())))
        expect(adds, f"{who} must add to {name}.grad, not replace it: another defense's step may come before.")


def _check_rounds(defense: Defense, prepared: nn.Module) -> None:
    """Check what the hooks around a round change and keep, of a round in which every weight moved."""
    who, local = hook(defense, "begin_round"), defense.effects.local

    def begin(kept: ClientState) -> tuple[nn.Module, ClientContext]:
        model, context = models.copied(prepared), client_context(state=kept.of("own"))
        with torch.no_grad(), no_global_effect(who):
            defense.begin_round(model, context)
        return model, context

    model, context = begin(ClientState())
    with torch.no_grad(), no_global_effect(hook(defense, "end_round")):
        for parameter in model.parameters():
            parameter.add_(1)
        defense.end_round(model, context)
    try:
        kept = gathered([("own", context.state)])
    except ValueError as error:
        raise AssertionError(f"{hook(defense, 'end_round')}: {error}.") from None
    before, after = weights(prepared), weights(begin(kept)[0])
    expect(list(before) == list(after), f"{who} adds or removes parameters; prepare_model is for that.")
    expect(same(after, weights(begin(kept)[0])), f"{who}: same context.state, but other weights.")
    changed = [name for name in before if not equal(before[name], after[name])]
    undeclared = [name for name in changed if not any(fnmatchcase(name, pattern) for pattern in local)]
    expect(not undeclared, f"{who} changes {undeclared[:1]}, which effects.local does not name: {list(local)}.")


# The update


def _check_update(defense: Defense, update: Update) -> None:
    who = hook(defense, "protect_update")

    def protect(global_seed: int) -> Update:
        with seeded(global_seed, "testing"), no_global_effect(who), no_change(who, update.tensors):
            return defense.protect_update(update, client_context(), torch_generator(0, "testing", "update"))

    sent, again = protect(0), protect(1)
    expect(list(sent.tensors) == list(update.tensors), f"{who} must keep the names of the tensors and their order.")
    for name, tensor in update.tensors.items():
        own = sent.tensors[name]
        expect(
            own.shape == tensor.shape and own.dtype == tensor.dtype,
            f"{who} turns {name}, {tensor.dtype} {tuple(tensor.shape)}, into {own.dtype} {tuple(own.shape)}.",
        )
    kept = (sent.round, sent.client, sent.kind) == (update.round, update.client, update.kind)
    expect(kept, f"{who} must keep round, client and kind; use dataclasses.replace(update, tensors=...).")
    expect(sent.is_finite(), f"{who} sends entries that are not finite, from an update of norm {update.norm():g}.")
    expect(
        same(sent.tensors, again.tensors),
        f"{who}: same update, same generator state, but another result. Draw from the generator alone.",
    )
    _check_state(defense, update)
    _check_effects(defense, sent)


def _check_effects(defense: Defense, sent: Update) -> None:
    """Check that what the defense says of itself is true of an update that it protected."""
    who, effects = hook(defense, "effects"), defense.effects
    expect(isinstance(effects, UpdateEffects), f"{who} must be UpdateEffects, not {type(effects).__name__}.")
    for pattern in effects.hidden:
        shown = [n for n, tensor in sent.tensors.items() if fnmatchcase(n, pattern) and bool(tensor.any())]
        expect(not shown, f"{who} says that {pattern} is hidden, and {shown[:1]} was sent.")
    if effects.signs:
        uneven = [n for n, t in sent.tensors.items() if not _is_signs(t)]
        expect(not uneven, f"{who} says that signs alone are sent, and entries of {uneven[:1]} differ in magnitude.")
    if effects.clip_norm is not None and not effects.noise:
        within = sent.norm() <= effects.clip_norm * (1 + _ROUNDING)
        expect(within, f"{who} states the norm {effects.clip_norm:g}, and an update of {sent.norm():g} was sent.")


def _is_signs(tensor: Tensor) -> bool:
    magnitudes = tensor[tensor != 0].abs()
    return len(magnitudes) == 0 or bool(magnitudes.max() <= magnitudes.min() * (1 + _ROUNDING))


def _check_state(defense: Defense, update: Update) -> None:
    """Check that what a defense keeps can be stored, and is all that it remembers."""
    who = hook(defense, "protect_update")

    def protect(kept: ClientState) -> tuple[Update, ClientState]:
        context = client_context(state=kept.of("own"))
        sent = defense.protect_update(update, context, torch_generator(0, "testing", "update"))
        try:
            return sent, gathered([("own", context.state)])
        except ValueError as error:
            raise AssertionError(f"{who}: {error}.") from None

    _, kept = protect(ClientState())
    (first, left), (second, left_again) = protect(kept), protect(kept)
    remembers = same(first.tensors, second.tensors) and same(left.tensors, left_again.tensors)
    expect(
        remembers and left.values == left_again.values,
        f"{who}: same update, same context.state, but another result. Keep what lasts over rounds in context.state alone.",
    )


# Claims


def _check_draws(defense: Defense, update: Update) -> None:
    """Check that a few draws of the noise do not refute the budget; gross faults alone are found."""
    found = check_mechanism(defense, update, client_context, 0, FEWEST_DRAWS, _SURE)
    if found is None or found.lower_bound is None:
        return
    claimed = found.claimed
    expect(
        found.status != "refuted",
        f"{hook(defense, 'budget')} claims epsilon {claimed.epsilon:.3g} for one update (delta {claimed.delta:g}, "
        f"{claimed.neighbors}), and {found.draws} draws of protect_update show at least {found.lower_bound:.3g} "
        f"({found.statistic}). Clip before the noise, noise every tensor, and scale the noise to the sensitivity.",
    )


def _check_budget(defense: Defense) -> bool:
    """Check the budgets that a defense states; returns whether it states any."""
    who = hook(defense, "budget")
    budgets = [defense.budget(client_context(participation=count)) for count in _PARTICIPATIONS]
    stated = [budget for budget in budgets if isinstance(budget, PrivacyBudget)]
    if not any(budget is not None for budget in budgets):
        return False
    expect(
        len(stated) == len(budgets), f"{who} must return a PrivacyBudget for every count or None for all: {budgets}."
    )
    for budget in stated:
        sound = budget.epsilon >= 0 and 0 <= budget.delta < 1 and not math.isnan(budget.delta)
        expect(sound, f"{who}: epsilon must be at least 0, delta from 0 to below 1; got {budget}.")
        expect(bool(budget.neighbors), f"{who} must name the neighboring relation; got {budget}.")
    for fewer, more in itertools.pairwise(stated):
        grows = fewer.epsilon <= more.epsilon and fewer.delta <= more.delta and fewer.neighbors == more.neighbors
        expect(grows, f"{who} must not shrink with participations: {fewer}, then {more}.")
    return True


def _check_own_cautions(defense: Defense, prepared: nn.Module) -> None:
    who = hook(defense, "cautions")

    def cautions(global_seed: int) -> object:
        with seeded(global_seed, "testing"), no_global_effect(who), no_change(who, weights(prepared)):
            return defense.cautions(prepared)

    stated = cautions(0)
    check_cautions(who, stated)
    expect(stated == cautions(1), f"{who} must be the same at every call.")
    check_cautions(hook(defense, "client_cautions"), defense.client_cautions(client_context()))
