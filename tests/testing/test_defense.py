"""Deliberately broken defenses, each caught when its hooks are called. The paper of none: https://example.org"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fedsim_defenses.dp_noise import DPNoise
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense, LocalStep, PrivacyBudget
from fedsim.exchange import Images, Labels, Update, UpdateEffects
from fedsim.labels import distributions, smooth
from fedsim.models import build
from fedsim.scenario import ModelPart
from fedsim.testing import check_defense, small_model

plugin = dataclass(frozen=True, kw_only=True)
TINY = build(ModelPart(name="vit_nano", kwargs={"embed_dim": 16, "depth": 1, "num_heads": 1}), 10, 32, 0)


@plugin
class Sound(Defense):
    """Uses every hook: adds a parameter, noises images, softens labels, adds a term, scales and noises updates."""

    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"

    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a number above 0, got {self.scale}.")

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        return ("scale hides nothing.",)

    def prepare_model(self, model: nn.Module) -> None:
        if not hasattr(model, "prompt"):
            model.register_parameter("prompt", nn.Parameter(torch.randn(4)))

    def protect_batch(
        self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        noisy = images + 0.1 * torch.randn(images.shape, generator=generator)
        return noisy, smooth(distributions(labels, 10), 0.1)

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        noisy = step.images + torch.randn(step.images.shape, generator=generator)
        loss = proceed(dataclasses.replace(step, images=noisy))
        torch.autograd.backward(step.progress * step.model.prompt.square().sum())
        return loss

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        noisy = {n: self.scale * t + torch.randn(t.shape, generator=generator) for n, t in update.tensors.items()}
        return dataclasses.replace(update, tensors=noisy)

    def budget(self, context: ClientContext) -> PrivacyBudget | None:
        return PrivacyBudget(context.participation * self.scale, 1e-5, "replace")


HOOKS = {name: getattr(Sound, name) for name in vars(Defense) if callable(getattr(Defense, name)) and name[0] != "_"}
calls = itertools.count()


def before(name: str, act: Callable[..., Any]) -> Any:
    """Return the sound hook, preceded by an act on its arguments."""

    def hook(self: Defense, *args: Any) -> Any:
        act(*args)
        return HOOKS[name](self, *args)

    return hook


def after(name: str, act: Callable[..., Any]) -> Any:
    """Return the sound hook, followed by an act on its arguments."""

    def hook(self: Defense, *args: Any) -> Any:
        result = HOOKS[name](self, *args)
        act(*args)
        return result

    return hook


def returning(name: str, change: Callable[..., Any]) -> Any:
    """Return the sound hook with its result changed."""
    return lambda self, *args: change(HOOKS[name](self, *args))


def nudge(step: LocalStep, *rest: Any) -> None:
    step.model.head.bias.data += 1e-3


def replace_parameter(step: LocalStep, *rest: Any) -> None:
    step.model.head.bias = nn.Parameter(torch.ones(10))


def empty_head_gradient(step: LocalStep, *rest: Any) -> None:
    step.model.head.bias.grad = None


def spoil_head_gradient(step: LocalStep, *rest: Any) -> None:
    step.model.head.bias.grad /= 0


def forget_gradients(step: LocalStep, *rest: Any) -> None:
    step.model.zero_grad(set_to_none=True)


def noise_gradient(step: LocalStep, *rest: Any) -> None:
    step.model.head.bias.grad += next(calls) + 1


def with_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    return returning("protect_update", lambda u: dataclasses.replace(u, tensors=change(dict(u.tensors))))


def unit_norm(self: Defense, update: Update, *rest: Any) -> Update:
    norm = update.norm()
    return dataclasses.replace(update, tensors={n: t / torch.tensor(norm) for n, t in update.tensors.items()})


def stated(*budgets: PrivacyBudget | None) -> Any:
    found = iter(budgets)
    return lambda self, participations: next(found)


FINE, LESS = PrivacyBudget(2.0, 1e-5, "replace"), PrivacyBudget(1.0, 1e-5, "replace")
BROKEN = {
    # protect_batch
    "images overwritten": ("protect_batch", before("protect_batch", lambda i, *r: i.zero_()), "the images in place"),
    "labels overwritten": ("protect_batch", after("protect_batch", lambda i, y, *r: y.zero_()), "the labels in place"),
    "batch by mood": ("protect_batch", returning("protect_batch", lambda b: (b[0] + next(calls), b[1])), "same batch"),
    "images cropped": (
        "protect_batch",
        returning("protect_batch", lambda b: (b[0][..., :16], b[1])),
        "turns images of shape",
    ),
    "label lost": ("protect_batch", returning("protect_batch", lambda b: (b[0], b[1][1:])), "1 images and 0 labels"),
    "batch from torch": ("protect_batch", before("protect_batch", lambda *a: torch.rand(())), "torch's global gen"),
    # train_step
    "step from numpy": ("train_step", before("train_step", lambda *a: np.random.rand()), "NumPy's global generator"),
    "step overwrites": ("train_step", after("train_step", lambda s, *r: s.images.zero_()), "the images in place"),
    "weights nudged": ("train_step", after("train_step", nudge), "changes weights; it may fill p.grad alone"),
    "parameter replaced": ("train_step", after("train_step", replace_parameter), "changes weights"),
    "parameter added": (
        "train_step",
        after("train_step", lambda s, *r: s.model.register_parameter("late", nn.Parameter(torch.ones(1)))),
        "adds or removes parameters; prepare_model is for that",
    ),
    "evaluation left": (
        "train_step",
        after("train_step", lambda s, *r: s.model.train()),
        "train_step switches between",
    ),
    "gradient missing": ("train_step", after("train_step", empty_head_gradient), r"leaves head\.bias\.grad empty"),
    "no gradient at all": ("train_step", after("train_step", forget_gradients), "leaves every gradient empty"),
    "gradient infinite": ("train_step", after("train_step", spoil_head_gradient), r"head\.bias\.grad must be finite"),
    "gradient by mood": ("train_step", after("train_step", noise_gradient), "other gradients"),
    "gradient replaced": ("train_step", before("train_step", forget_gradients), "must add to .*grad, not replace it"),
    "loss with a graph": (
        "train_step",
        returning("train_step", lambda loss: loss.clone().requires_grad_()),
        "a detached scalar",
    ),
    "loss per image": ("train_step", returning("train_step", lambda loss: loss.view(1)), "a detached scalar"),
    "loss infinite": ("train_step", returning("train_step", lambda loss: loss / 0), "returns the loss inf"),
    # protect_update
    "tensor dropped": ("protect_update", with_tensors(lambda t: dict(list(t.items())[1:])), "must keep the names"),
    "order turned": ("protect_update", with_tensors(lambda t: dict(reversed(t.items()))), "must keep the names"),
    "shape flattened": (
        "protect_update",
        with_tensors(lambda t: {n: v.view(-1) for n, v in t.items()}),
        "turns cls_to",
    ),
    "halved precision": ("protect_update", with_tensors(lambda t: {n: v.half() for n, v in t.items()}), "float16"),
    "update by mood": (
        "protect_update",
        with_tensors(lambda t: {n: v + next(calls) for n, v in t.items()}),
        "same update, same generator state",
    ),
    "update overwritten": (
        "protect_update",
        after("protect_update", lambda u, *r: u.tensors["head.bias"].zero_()),
        r"changes head\.bias in place",
    ),
    "update emptied": ("protect_update", after("protect_update", lambda u, *r: u.tensors.clear()), "changes the names"),
    "client changed": (
        "protect_update",
        returning("protect_update", lambda u: dataclasses.replace(u, client=5)),
        "must keep round, client and kind",
    ),
    "nothing divided by its norm": ("protect_update", unit_norm, "not finite, from an update of norm 0"),
    "noise from torch": ("protect_update", before("protect_update", lambda *a: torch.rand(())), "torch's global gen"),
    # begin_round and end_round
    "weights moved in secret": (
        "begin_round",
        lambda self, model, context: model.head.bias.add_(1),
        r"begin_round changes \['head.bias'\], which effects.local does not name: \[\]",
    ),
    "start by mood": (
        "begin_round",
        lambda self, model, context: model.head.bias.add_(next(calls) + 1),
        "same context.state, but other weights",
    ),
    "start from torch": ("begin_round", before("begin_round", lambda *a: torch.rand(())), "torch's global gen"),
    "state of objects": (
        "end_round",
        lambda self, model, context: context.state.update(kept=object()),
        "Sound.end_round: .*holds <object",
    ),
    # effects, budget and cautions
    "hidden is sent": ("effects", property(lambda self: UpdateEffects(hidden=("head.*",))), "says that head"),
    "signs are values": ("effects", property(lambda self: UpdateEffects(signs=True)), "says that signs alone are sent"),
    "clipped is long": ("effects", property(lambda self: UpdateEffects(clip_norm=1e-3)), "states the norm 0.001"),
    "budget shrinks": ("budget", stated(FINE, LESS, LESS, LESS, LESS), "must not shrink with participations"),
    "budget comes and goes": ("budget", stated(FINE, None, FINE, FINE, FINE), "for every count or None for all"),
    "budget negative": ("budget", lambda self, n: PrivacyBudget(-1.0, 1e-5, "replace"), "epsilon must be at least 0"),
    "budget not a number": ("budget", lambda self, n: PrivacyBudget(math.nan, 1e-5, "replace"), "epsilon must be at l"),
    "budget certain to fail": ("budget", lambda self, n: PrivacyBudget(1.0, 1.0, "replace"), "delta from 0 to below 1"),
    "budget of nothing": ("budget", lambda self, n: PrivacyBudget(1.0, 1e-5, ""), "must name the neighboring relation"),
    "caution without stop": ("cautions", lambda self, m: ("it hides nothing",), "ends with a full stop"),
    "cautions as a list": ("cautions", lambda self, m: ["It hides nothing."], "cautions must be a tuple"),
    "cautions by mood": ("cautions", lambda self, m: (f"Call {next(calls)} of many.",), "the same at every call"),
    "cautious trainer": (
        "cautions",
        after("cautions", lambda m: m.head.bias.data.add_(1)),
        r"changes head\.bias in place",
    ),
}


@pytest.mark.parametrize(("hook", "broken", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_defense_is_caught(hook: str, broken: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, hook, broken)
    with pytest.raises(AssertionError, match=message):
        check_defense(Sound, model=TINY)


def test_a_sound_defense_passes() -> None:
    check_defense(Sound)
    check_defense(Sound(scale=2.0), model=small_model(num_classes=10, seed=5))


def test_a_loss_of_its_own_may_leave_out_the_classifier_and_no_gradient_may_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sound, "effects", UpdateEffects(own_loss=True))
    monkeypatch.setattr(Sound, "train_step", after("train_step", empty_head_gradient))
    check_defense(Sound, model=TINY)
    monkeypatch.setattr(Sound, "train_step", after("train_step", forget_gradients))
    with pytest.raises(AssertionError, match="leaves every gradient empty"):
        check_defense(Sound, model=TINY)


def test_the_budget_of_an_honest_mechanism_passes() -> None:
    check_defense(DPNoise, model=TINY, clip_norm=1.0, noise_multiplier=2.0)


def test_a_budget_that_draws_of_the_update_refute_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DPNoise.protect_update

    def without_the_head(self: DPNoise, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        kept = DPNoise(clip_norm=self.clip_norm)
        clean = honest(kept, update, context, generator).tensors["head.weight"]
        sent = honest(self, update, context, generator)
        return dataclasses.replace(sent, tensors={**sent.tensors, "head.weight": clean})

    monkeypatch.setattr(DPNoise, "protect_update", without_the_head)
    with pytest.raises(AssertionError, match=r"claims epsilon 4\.38 .* 100 draws .* show at least"):
        check_defense(DPNoise, model=TINY, clip_norm=1.0, noise_multiplier=2.0)


def test_the_contract_itself_is_a_defense_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOOKS:
        monkeypatch.setattr(Sound, name, getattr(Defense, name))
    check_defense(Sound)


def test_the_check_leaves_the_given_model_as_it_is() -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_defense(Sound, model=model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
