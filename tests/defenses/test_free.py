"""Free adversarial training against its replays written out."""

from typing import Any

import pytest
import torch
from fedsim_defenses.dp_sgd import DPSGD
from fedsim_defenses.free import Free
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.defense import LocalStep
from fedsim.errors import ScenarioError
from fedsim.federation.training import in_parts, plain_step
from fedsim.models import normalization
from fedsim.seeds import torch_generator
from fedsim.testing import client_context, random_images, small_model


def step_of(count: int = 3, seed: int = 0) -> LocalStep:
    model = small_model()
    pictures = random_images(torch_generator(seed, "free"), count)
    return LocalStep(model, normalization(model).normalize(pictures.images), pictures.labels, 0.5)


def take(recipe: Free, step: LocalStep, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and the images that were trained on, replay by replay."""
    passed: list[Tensor] = []

    def proceed(moved: LocalStep) -> Tensor:
        passed.append(moved.images.detach().clone())
        return plain_step(moved)

    return recipe.train_step(step, client_context(), torch_generator(seed, "step"), proceed), passed


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("replays", [1, 3, 4])
def test_its_gradient_is_the_mean_over_replays_written_out(replays: int) -> None:
    step, epsilon = step_of(), 8 / 255
    loss, _ = take(Free(replays=replays), step)
    found = gradients(step.model)

    own, generator = normalization(step.model), torch_generator(0, "step")
    pixels = own.denormalize(step.images)
    delta = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    losses, total = [], dict[str, Tensor]()
    for _ in range(replays):
        shown = (pixels + delta).clamp(0, 1).requires_grad_()
        step.model.zero_grad(set_to_none=True)
        losses.append(nn.functional.cross_entropy(step.model(own.normalize(shown)), step.labels))
        losses[-1].backward()
        for name, gradient in gradients(step.model).items():
            total[name] = total.get(name, 0) + gradient / replays
        assert shown.grad is not None
        delta = (shown.detach() - pixels + epsilon * shown.grad.sign()).clamp(-epsilon, epsilon)
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach())
    for name, tensor in total.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


@given(seed=st.integers(0, 20), epsilon=st.sampled_from([1 / 255, 8 / 255, 0.5]))
@settings(max_examples=8, deadline=None)
def test_every_replay_is_within_epsilon_and_the_images_move_on(seed: int, epsilon: float) -> None:
    step = step_of(2, seed)
    _, passed = take(Free(epsilon=epsilon, replays=3), step, seed)
    own = normalization(step.model)
    pixels = own.denormalize(step.images)
    for images in passed:
        shown = own.denormalize(images)
        assert (shown - pixels).abs().max() <= epsilon + 1e-6 and -1e-6 <= shown.min() and shown.max() <= 1 + 1e-6
    assert len(passed) == 3 and not torch.equal(passed[0], passed[1])
    with torch.no_grad():
        first, last = (nn.functional.cross_entropy(step.model(passed[at]), step.labels) for at in (0, -1))
    assert last > first


def test_gradients_that_are_there_already_stay() -> None:
    step = step_of()
    take(Free(), step)
    once = gradients(step.model)
    take(Free(), step)
    for name, tensor in gradients(step.model).items():
        torch.testing.assert_close(tensor, 2 * once[name], rtol=1e-5, atol=1e-7)


def test_micro_batches_give_the_same_gradient() -> None:
    found = []
    for parts in (1, 2):
        step = step_of()
        Free().train_step(step, client_context(), torch_generator(0, "step"), in_parts(plain_step, parts))
        found.append(gradients(step.model))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_while_epsilon_is_zero_a_step_is_the_plain_one_bit_for_bit() -> None:
    step = step_of()
    plain = plain_step(step)
    expected = gradients(step.model)
    step.model.zero_grad(set_to_none=True)
    loss, passed = take(Free(warmup=0.9), LocalStep(step.model, step.images, step.labels, 0.0))
    found = gradients(step.model)
    assert torch.equal(loss, plain) and len(passed) == 1 and all(torch.equal(t, found[n]) for n, t in expected.items())


def test_a_step_behind_it_that_gives_images_no_gradient_is_a_fault() -> None:
    step = step_of()
    with pytest.raises(ValueError, match="the steps behind it give the images no gradient"):
        Free().train_step(step, client_context(), torch_generator(0), lambda moved: torch.zeros(()))


def test_a_defense_that_computes_the_gradient_itself_is_refused_beside_it() -> None:
    with pytest.raises(ScenarioError, match="Free beside DPSGD on client 0"):
        Free().check(small_model(), client_context(), [DPSGD()])
    Free().check(small_model(), client_context(), [])


@pytest.mark.parametrize(
    ("params", "message"),
    [({"replays": 0}, "replays: expected at least 1"), ({"epsilon": 0.0}, "epsilon: expected a number above 0")],
)
def test_parameters_without_meaning_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Free(**params)
