from typing import Any

import pytest
import torch
from fedsim_defenses.dp_sgd import DPSGD
from fedsim_defenses.fast import Fast
from torch import Tensor

from fedsim.defense import LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import TrainingKnowledge
from fedsim.federation.training import plain_step
from fedsim.models import normalization
from fedsim.seeds import torch_generator
from fedsim.testing import client_context
from fedsim.testing.fixtures import random_images, small_model


def step_of(count: int = 4) -> LocalStep:
    model = small_model()
    pictures = random_images(torch_generator(0, "fast"), count)
    inputs = normalization(model).normalize(pictures.images)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    return LocalStep(model, inputs, labels, 0.9)


def take(recipe: Fast, step: LocalStep, round: int, state: dict[str, Any], seed: int = 0) -> Tensor:
    """Return the images that were trained on."""
    passed: list[Tensor] = []

    def proceed(moved: LocalStep) -> Tensor:
        passed.append(moved.images)
        return plain_step(moved)

    context = client_context(round=round, state=state)
    recipe.train_step(step, context, torch_generator(seed, "step"), proceed)
    return passed[0]


def single_step(step: LocalStep, generator: torch.Generator) -> Tensor:
    """One step of the attack, written out."""
    epsilon, own = 8 / 255, normalization(step.model)
    pixels = own.denormalize(step.images)
    start = (pixels + epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)).clamp(0, 1).requires_grad_()
    loss = torch.nn.functional.cross_entropy(step.model(own.normalize(start)), step.labels)
    (gradient,) = torch.autograd.grad(loss, start)
    delta = (start.detach() + 1.25 * epsilon * gradient.sign() - pixels).clamp(-epsilon, epsilon)
    return own.normalize((pixels + delta).clamp(0, 1))


def test_a_step_is_one_of_fgsm_from_a_random_start() -> None:
    step = step_of()
    found = take(Fast(), step, 1, {"round": 1})
    torch.testing.assert_close(found, single_step(step, torch_generator(0, "step")))


def test_the_accuracy_is_looked_at_once_a_round_and_the_best_is_kept() -> None:
    step, state = step_of(), dict[str, Any]()
    take(Fast(epsilon=1e-6), step, 1, state)
    assert state == {"round": 1, "best": 1.0, "collapsed": False}
    state["best"] = 0.9
    take(Fast(epsilon=1e-6), step, 1, state)
    assert state["best"] == 0.9
    take(Fast(epsilon=1e-6), step, 2, state)
    assert state == {"round": 2, "best": 1.0, "collapsed": False}


def test_after_a_collapse_the_client_takes_several_steps_for_good() -> None:
    step, state = step_of(), {"round": 1, "best": 1.0, "collapsed": False}
    wrong = LocalStep(step.model, step.images, (step.labels + 1) % 10, 0.9)
    before = take(Fast(), step, 1, dict(state))
    take(Fast(), wrong, 2, state)
    assert state["collapsed"]
    after = take(Fast(), step, 3, state)
    assert state["collapsed"]
    losses = [torch.nn.functional.cross_entropy(step.model(images), step.labels) for images in (before, after)]
    assert losses[0] < losses[1]  # five steps raise it further than one


def test_a_fall_within_the_tolerance_is_no_collapse() -> None:
    step = step_of()
    labels = step.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    state: dict[str, Any] = {"round": 1, "best": 1.0, "collapsed": False}
    take(Fast(epsilon=1e-6, tolerance=0.25), LocalStep(step.model, step.images, labels, 0.9), 2, state)
    assert not state["collapsed"]
    take(Fast(epsilon=1e-6, tolerance=0.24), LocalStep(step.model, step.images, labels, 0.9), 3, state)
    assert state["collapsed"]


def test_nothing_is_looked_at_while_epsilon_rises() -> None:
    step, state = step_of(), dict[str, Any]()
    take(Fast(warmup=0.95), step, 1, state)
    assert state == {}


def test_few_images_a_round_are_a_caution_and_many_are_none() -> None:
    assert "4 images a round" in Fast().client_cautions(client_context(batch_size=4, num_examples=100))[0]
    assert Fast().client_cautions(client_context(batch_size=64, num_examples=100)) == ()


def test_dp_sgd_is_refused_beside_it_since_a_batch_decides_on_the_attack() -> None:
    training = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None, sampling="poisson")
    with pytest.raises(ScenarioError, match="Fast beside dp_sgd does not say that it treats each image alone"):
        DPSGD().check(small_model(), client_context(training=training), [Fast()])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": 0.0}, "alpha: expected a number of epsilons above 0"),
        ({"steps": 1}, "steps: expected at least 2"),
        ({"tolerance": 1.0}, "tolerance: expected a share from 0 to below 1"),
        ({"epsilon": 2.0}, "epsilon: expected a number above 0, at most 1"),
    ],
)
def test_parameters_without_meaning_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fast(**params)
