import pytest
import torch
from fedsim_defenses.adversarial_training import AdversarialTraining
from fedsim_defenses.trades import TRADES
from torch import Tensor, nn

from fedsim.defense import LocalStep
from fedsim.federation.training import plain_step
from fedsim.models import build, normalization
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.testing import client_context
from fedsim.testing.fixtures import random_images

KWARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 2}


@pytest.fixture
def step() -> LocalStep:
    model = build(ModelPart(name="vit_nano", kwargs=KWARGS), 10, 8, 0)
    pictures = random_images(torch_generator(0, "batch"), 4, image_shape=(3, 8, 8))
    return LocalStep(model, normalization(model).normalize(pictures.images), pictures.labels, 0.9)


def perturbed(recipe: TRADES, step: LocalStep) -> Tensor:
    return recipe._perturbed(step, client_context(), recipe.epsilon, torch_generator(0, "step"))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_gradient_is_that_of_the_published_loss(step: LocalStep) -> None:
    recipe = TRADES(steps=3, beta=6.0)
    moved = perturbed(recipe, step)
    step.model.zero_grad()
    loss = recipe.train_step(step, client_context(), torch_generator(0, "step"), plain_step)
    found = gradients(step.model)
    step.model.zero_grad()
    # As in the authors' code: natural loss, and KLDivLoss of log-probabilities summed over classes, divided by the batch.
    clean, other = step.model(step.images), step.model(moved)
    natural = nn.functional.cross_entropy(clean, step.labels)
    robust = nn.KLDivLoss(reduction="sum")(other.log_softmax(1), clean.softmax(1)) / len(moved)
    (natural + 6.0 * robust).backward()
    for own, expected in zip(found, gradients(step.model), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, natural.detach())


def test_the_attack_raises_the_divergence_more_than_one_of_the_cross_entropy_does(step: LocalStep) -> None:
    def divergence(moved: Tensor) -> float:
        with torch.no_grad():
            clean, other = step.model(step.images), step.model(moved)
        return float(nn.KLDivLoss(reduction="sum")(other.log_softmax(1), clean.softmax(1)))

    own, other = TRADES(steps=10), AdversarialTraining(steps=10)
    at_start = divergence(step.images + 0.002 * torch.randn(step.images.shape, generator=torch_generator(0, "noise")))
    assert divergence(perturbed(own, step)) > 10 * at_start
    moved = other._perturbed(step, client_context(), other.epsilon, torch_generator(0, "step"))
    assert divergence(perturbed(own, step)) > divergence(moved)


def test_with_beta_zero_a_step_is_the_plain_one(step: LocalStep) -> None:
    TRADES(steps=2, beta=0.0).train_step(step, client_context(), torch_generator(0, "step"), plain_step)
    found = gradients(step.model)
    step.model.zero_grad()
    plain_step(step)
    assert all(torch.equal(own, plain) for own, plain in zip(found, gradients(step.model), strict=True))


def test_it_hands_on_the_images_as_they_are(step: LocalStep) -> None:
    passed: list[Tensor] = []

    def proceed(handed: LocalStep) -> Tensor:
        passed.append(handed.images)
        return plain_step(handed)

    TRADES(steps=2).train_step(step, client_context(), torch_generator(0, "step"), proceed)
    assert torch.equal(passed[0], step.images)
