"""Deliberately broken preparations of a model, each caught. The paper of none of them: https://example.org"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim.defense import Defense, LocalStep
from fedsim.models import build
from fedsim.scenario import ModelPart
from fedsim.testing import check_defense

TINY = build(ModelPart(name="vit_nano", kwargs={"embed_dim": 16, "depth": 1, "num_heads": 1}), 10, 32, 0)


class Prompt(nn.Module):
    """A parameter that plain training does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))


@dataclass(frozen=True, kw_only=True)
class Sound(Defense):
    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"

    def prepare_model(self, model: nn.Module) -> None:
        if not hasattr(model, "prompt"):
            model.prompt = Prompt()


SOUND = Sound.prepare_model


def then(act: Callable[[nn.Module], Any]) -> Any:
    """Return the sound preparation, followed by an act on the model."""

    def prepare_model(self: Defense, model: nn.Module) -> None:
        SOUND(self, model)
        act(model)

    return prepare_model


def rename_head(model: nn.Module) -> None:
    if hasattr(model, "head"):
        model.classifier, model.head = model.head, nn.Identity()


def reorder(model: nn.Module) -> None:
    first = next(iter(model._modules))
    model._modules[first] = model._modules.pop(first)


def shift_bias(model: nn.Module) -> None:
    model.head.bias.data += 1


def add_dropout(model: nn.Module) -> None:
    model.head_drop = nn.Dropout(0.5)


def scale_logits(model: nn.Module) -> None:
    model.head.register_forward_hook(double)


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def prompt_from_numpy(model: nn.Module) -> None:
    if not hasattr(model, "prompt"):
        model.prompt = Prompt()
        model.prompt.weight.data = torch.from_numpy(np.random.default_rng().normal(size=4)).float()


def prompt_again(model: nn.Module) -> None:
    model.prompt = Prompt()


def unpicklable(model: nn.Module) -> None:
    model.note = lambda: None


def scale_when_prepared_again(self: Defense, model: nn.Module) -> None:
    if hasattr(model, "prompt"):
        scale_logits(model)
    SOUND(self, model)


class Forgetful(VisionTransformer):
    """Loses the head when it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Forgetful":
        clone = pickle.loads(pickle.dumps(self))
        clone.head.weight.data.zero_()
        return clone


def make_forgetful(model: nn.Module) -> None:
    model.__class__ = Forgetful


def use_prompt(model: nn.Module) -> None:
    model.head_drop = Added(model.prompt)


class Added(nn.Module):
    def __init__(self, prompt: nn.Module) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self, features: Tensor) -> Tensor:
        return features + 0 * self.prompt.weight.sum()


first_models: list[nn.Module] = []


def remember(model: nn.Module) -> None:
    first_models.append(model)


def step_on_the_first_model(
    self: Defense, step: LocalStep, context: Any, generator: torch.Generator, proceed: Any
) -> Tensor:
    remembered = next(m for m in first_models if hasattr(m, "prompt"))
    return proceed(replace(step, model=remembered))


BROKEN = {
    "head renamed": (then(rename_head), "renames, reorders or changes parameters"),
    "layers reordered": (then(reorder), "renames, reorders or changes parameters"),
    "weights changed": (then(shift_bias), "renames, reorders or changes param"),
    "mode switched": (then(lambda m: m.train()), "switches between training and ev"),
    "entropy drawn": (lambda self, m: prompt_from_numpy(m), "no function of torch's global generator"),
    "numpy drawn": (then(lambda m: np.random.rand()), "NumPy's global generator"),
    "dropout added": (then(add_dropout), "must behave like the plain one"),
    "logits scaled": (then(scale_logits), "must behave like the plain one"),
    "drawn twice": (lambda self, m: prompt_again(m), "adds or draws parameters again"),
    "scaled by a second call": (scale_when_prepared_again, "must not change when prepared twice"),
    "head lost by copies": (then(make_forgetful), "a deep copy of the model has other parameters"),
    "not picklable": (then(unpicklable), "leaves a model that cannot be pickled"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_preparation_is_caught(broken: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "prepare_model", broken)
    with pytest.raises(AssertionError, match=message):
        check_defense(Sound, model=TINY)


def test_an_added_parameter_may_have_a_zero_gradient_in_plain_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sound, "prepare_model", then(use_prompt))
    check_defense(Sound, model=TINY)


def test_a_step_on_another_model_than_the_given_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    first_models.clear()
    monkeypatch.setattr(Sound, "prepare_model", then(remember))
    monkeypatch.setattr(Sound, "train_step", step_on_the_first_model)
    with pytest.raises(AssertionError, match="nothing may point at the first model"):
        check_defense(Sound, model=TINY)
