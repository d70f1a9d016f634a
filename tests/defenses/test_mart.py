import pytest
import torch
from fedsim_defenses.mart import MART, beside_cross_entropy
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


def published(clean: Tensor, moved: Tensor, labels: Tensor, beta: float) -> Tensor:
    """The loss of the authors' code, which finds the strongest other class by sorting."""
    probabilities = moved.softmax(1)
    order = torch.argsort(probabilities, dim=1)[:, -2:]
    other = torch.where(order[:, -1] == labels, order[:, -2], order[:, -1])
    rows = torch.arange(len(labels))
    adversarial = nn.functional.cross_entropy(moved, labels) + nn.functional.nll_loss(
        torch.log(1.0001 - probabilities + 1e-12), other
    )
    natural = clean.softmax(1)
    each = nn.KLDivLoss(reduction="none")(torch.log(probabilities + 1e-12), natural).sum(1)
    return adversarial + beta * (each * (1.0000001 - natural[rows, labels])).mean()


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_gradient_is_that_of_the_published_loss(step: LocalStep) -> None:
    recipe = MART(steps=3, beta=5.0)
    moved = recipe._perturbed(step, client_context(), recipe.epsilon, torch_generator(0, "step"))
    step.model.zero_grad()
    loss = recipe.train_step(step, client_context(), torch_generator(0, "step"), plain_step)
    found = gradients(step.model)
    step.model.zero_grad()
    published(step.model(step.images), step.model(moved), step.labels, 5.0).backward()
    for own, expected in zip(found, gradients(step.model), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(step.model(moved), step.labels).detach())


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_all_but_the_cross_entropy_is_what_the_published_loss_adds(scale: float) -> None:
    draws = torch_generator(0, "logits")
    clean, moved = (scale * torch.randn(64, 7, generator=draws, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(7, (64,), generator=draws)
    added = published(clean, moved, labels, 5.0) - nn.functional.cross_entropy(moved, labels)
    torch.testing.assert_close(beside_cross_entropy(clean, moved, labels, 5.0).mean(), added, rtol=1e-5, atol=1e-6)


def test_an_image_that_the_model_is_sure_of_adds_no_divergence() -> None:
    sure = torch.tensor([[50.0, 0.0, 0.0]])
    moved, label = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    with_weight, without = (beside_cross_entropy(sure, moved, label, beta) for beta in (100.0, 0.0))
    torch.testing.assert_close(with_weight, without)


def test_it_stays_finite_where_the_model_is_sure_of_the_wrong_class() -> None:
    logits = torch.tensor([[0.0, 1000.0, 0.0]], requires_grad=True)
    loss = beside_cross_entropy(torch.zeros(1, 3), logits, torch.tensor([0]), 5.0)
    loss.backward()
    assert bool(torch.isfinite(loss).all()) and bool(torch.isfinite(logits.grad).all())
