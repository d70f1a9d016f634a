import copy
import math

import pytest
import torch
from fedsim_defenses import _evasion
from fedsim_defenses._evasion import evaluating, fgsm, frozen, margin, objective, pgd
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.evaluator import PixelModel
from fedsim.exchange import Normalization
from fedsim.models import normalization
from fedsim.seeds import seeded, torch_generator
from fedsim.testing.fixtures import random_images, small_model

SHAPE = (3, 4, 4)


class Linear(nn.Module):
    """Logits are linear in pixels, so the worst perturbation has a closed form."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch_generator(0, "linear")
        self.weight = nn.Parameter(torch.randn(classes, math.prod(SHAPE), generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def draws(seed: int = 0) -> torch.Generator:
    return torch_generator(seed, "attack")


def inner_images(count: int = 4) -> tuple[Tensor, Tensor]:
    """Images so far from 0 and 1 that no perturbation of 0.1 reaches them."""
    generator = draws(1)
    return 0.2 + 0.6 * torch.rand(count, *SHAPE, generator=generator), torch.randint(3, (count,), generator=generator)


def vit() -> PixelModel:
    model = small_model()
    return PixelModel(model, normalization(model)).eval()


def test_fgsm_on_a_linear_model_of_two_classes_is_the_worst_perturbation() -> None:
    model, (images, _) = Linear(2), inner_images()
    labels = torch.tensor([0, 1, 0, 1])
    moved = fgsm(model, images, labels, 0.1)
    towards = (model.weight[1 - labels] - model.weight[labels]).detach().reshape(images.shape)
    torch.testing.assert_close(moved, images + 0.1 * towards.sign())


@pytest.mark.parametrize("loss", ["cross_entropy", "cw"])
def test_pgd_on_a_linear_model_of_two_classes_ends_at_the_worst_perturbation_from_any_start(loss: str) -> None:
    model, (images, _) = Linear(2), inner_images()
    labels = torch.tensor([0, 1, 0, 1])
    moved = pgd(model, images, labels, 0.1, step=0.05, steps=6, generator=draws(), loss=loss)
    torch.testing.assert_close(moved, fgsm(model, images, labels, 0.1))


def test_pgd_equals_a_loop_written_out() -> None:
    model, (images, labels) = Linear(), inner_images()
    moved = pgd(model, images, labels, 0.1, step=0.03, steps=4, generator=draws())
    expected = (images + (2 * torch.rand(images.shape, generator=draws()) - 1) * 0.1).clamp(0, 1)
    for _ in range(4):
        expected = expected.detach().requires_grad_()
        nn.functional.cross_entropy(model(expected), labels).backward()
        expected = expected + 0.03 * expected.grad.sign()
        expected = images + (expected - images).clamp(-0.1, 0.1)
        expected = expected.clamp(0, 1)
    torch.testing.assert_close(moved, expected.detach())


@settings(deadline=None, max_examples=25)
@given(
    epsilon=st.floats(0, 1),
    step=st.floats(0, 2),
    steps=st.integers(0, 3),
    start=st.sampled_from(["uniform", "normal", "zero"]),
    loss=st.sampled_from(["cross_entropy", "kl", "cw"]),
    seed=st.integers(0, 50),
)
def test_no_value_leaves_the_ball_or_the_range_of_pixels(
    epsilon: float, step: float, steps: int, start: str, loss: str, seed: int
) -> None:
    images = torch.rand(3, *SHAPE, generator=draws(seed)).round(decimals=1)
    labels = torch.tensor([0, 1, 2])
    moved = pgd(
        Linear(), images, labels, epsilon, step=step, steps=steps, restarts=2, generator=draws(), loss=loss, start=start
    )
    assert float((moved - images).abs().max()) <= epsilon + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_pixels_beyond_the_range_move_by_epsilon_at_most() -> None:
    images = torch.full((1, *SHAPE), 1.3)
    moved = pgd(Linear(), images, torch.tensor([0]), 0.1, step=0.1, steps=3, generator=draws())
    assert float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert float(moved.max()) <= 1.3


def test_of_several_restarts_each_image_gets_its_worst() -> None:
    model, pictures = vit(), random_images(draws(2), 6)
    labels = model(pictures.images).argmax(1)
    worse = pgd(model, pictures.images, labels, 0.02, step=0.01, steps=1, restarts=4, generator=draws(), loss="cw")
    generator = draws()
    one_by_one = [
        pgd(model, pictures.images, labels, 0.02, step=0.01, steps=1, generator=generator, loss="cw") for _ in range(4)
    ]
    margins = torch.stack([margin(model(images), labels) for images in one_by_one])
    torch.testing.assert_close(margin(model(worse), labels), margins.amax(0))


def test_a_misclassified_image_beats_one_of_a_larger_loss() -> None:
    logits = {0.25: [1.0, 0.9, -9.0], 0.75: [0.1, 0.2, 0.15]}

    class Table(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([logits[round(float(image.flatten()[0]), 2)] for image in images])

    first, second = torch.full((1, *SHAPE), 0.25), torch.full((1, *SHAPE), 0.75)
    flat = lambda logits, labels: torch.ones(len(logits)) * (2 - logits[:, 2])  # noqa: E731
    labels = torch.tensor([0])
    assert torch.equal(_evasion._better(Table(), first, second, labels, flat), second)
    assert torch.equal(_evasion._better(Table(), second, first, labels, flat), second)


def test_an_image_is_perturbed_alike_alone_and_in_a_batch() -> None:
    model, pictures = vit(), random_images(draws(2), 4)
    together = pgd(model, pictures.images, pictures.labels, 0.03, step=0.01, steps=2, start="zero")
    alone = [
        pgd(model, pictures.images[i : i + 1], pictures.labels[i : i + 1], 0.03, step=0.01, steps=2, start="zero")
        for i in range(4)
    ]
    assert float((together == torch.cat(alone)).float().mean()) > 0.99  # but for signs of what is zero up to rounding


def test_parameters_need_no_gradient_inside_and_are_as_before_afterwards() -> None:
    model = vit()
    model.model.pos_embed.requires_grad_(False)
    needing = [parameter.requires_grad for parameter in model.parameters()]
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(any(p.requires_grad for p in model.parameters())))
    pictures = random_images(draws(2), 2)
    pgd(model, pictures.images, pictures.labels, 0.03, step=0.01, steps=2, generator=draws(), loss="kl")
    assert seen == [False] * 3
    assert [parameter.requires_grad for parameter in model.parameters()] == needing
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_exception_leaves_parameters_and_modes_as_they_were() -> None:
    model = vit()
    model.model.blocks[1].train()
    modes = [module.training for module in model.modules()]

    def fails(logits: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("planted")

    pictures = random_images(draws(2), 1)
    with pytest.raises(RuntimeError, match="planted"), evaluating(model):
        assert not any(module.training for module in model.modules())
        pgd(model, pictures.images, pictures.labels, 0.03, step=0.01, steps=2, generator=draws(), loss=fails)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="planted"), frozen(model):
        raise RuntimeError("planted")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_draws_from_the_global_generator_and_the_same_generator_gives_the_same_images() -> None:
    model, pictures = vit(), random_images(draws(2), 2)
    with seeded(0, "test"):
        before = torch.get_rng_state()
        first, again = (
            pgd(model, pictures.images, pictures.labels, 0.03, step=0.01, steps=1, generator=draws()) for _ in range(2)
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)


def test_a_random_start_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="generator: got none"):
        pgd(Linear(), *inner_images(), 0.1, step=0.1, steps=1)


def test_masks_of_ones_change_nothing_and_masks_of_zeros_leave_one_step() -> None:
    model, (images, labels) = Linear(), inner_images()
    kept = torch.ones(SHAPE[1:], dtype=torch.bool)
    plain, same, gone = (
        pgd(model, images, labels, 0.1, step=0.03, steps=3, generator=draws(), masks=masks)
        for masks in (None, lambda: kept, lambda: ~kept)
    )
    assert torch.equal(plain, same)
    assert torch.equal(gone, pgd(model, images, labels, 0.1, step=0.03, steps=1, start="zero"))


def test_epsilon_is_in_pixels_whatever_the_normalization() -> None:
    model = small_model()
    scaled = PixelModel(model, Normalization((0.3,) * 3, (0.01,) * 3)).eval()
    pictures = random_images(draws(2), 2)
    moved = pgd(scaled, pictures.images, pictures.labels, 8 / 255, step=2 / 255, steps=5, generator=draws())
    assert 7 / 255 < float((moved - pictures.images).abs().max()) <= 8 / 255 + 1e-6


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "cw"])
def test_constant_and_duplicate_images_and_soft_labels_stay_finite(loss: str) -> None:
    model = vit()
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    labels = torch.full((6, 10), 0.1)
    for steps, start in ((2, "uniform"), (2, "zero")):
        moved = pgd(
            model,
            images.repeat(2, 1, 1, 1),
            labels,
            0.03,
            step=0.01,
            steps=steps,
            start=start,
            generator=draws(),
            loss=loss,
        )
        assert bool(torch.isfinite(moved).all())


def test_an_empty_batch_stays_empty() -> None:
    moved = pgd(Linear(), torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.long), 0.1, step=0.1, steps=2)
    assert moved.shape == (0, *SHAPE)


def test_the_margin_is_positive_exactly_where_the_model_is_wrong() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin(logits, torch.tensor([0, 0])).tolist() == [-1.0, 2.0]
    assert margin(logits, torch.tensor([[0.2, 0.1, 0.7], [0.0, 1.0, 0.0]])).tolist() == [1.0, -1.0]


def test_the_divergence_is_zero_at_the_image_and_that_of_torch_elsewhere() -> None:
    model, (images, labels) = Linear(), inner_images()
    raised = objective("kl", model, images)
    torch.testing.assert_close(raised(model(images), labels), torch.zeros(4), atol=1e-6, rtol=0)
    other = model(images.flip(0))
    kinds = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(kinds(logits=model(images)), kinds(logits=other))
    torch.testing.assert_close(raised(other, labels), expected)


def test_the_model_is_left_bit_for_bit() -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    pictures = random_images(draws(2), 2)
    pgd(model, pictures.images, pictures.labels, 0.03, step=0.01, steps=1, generator=draws())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
