import pytest
import timm
import torch
from fedsim_defenses._evaluation import evaluated
from fedsim_defenses.soteria import Soteria, leakage
from torch import nn

from fedsim import models
from fedsim.defense import LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import UpdateEffects
from fedsim.federation.training import plain_step
from fedsim.plugins import configure
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context


class Dense(nn.Module):
    """Flattened images, one hidden layer with a fixed slope for each unit, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.hidden(images.flatten(1))))


@pytest.fixture
def dense() -> Dense:
    with seeded(0, "test"):
        return Dense().eval()


IMAGES, LABELS = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 3])


def stepped(model: nn.Module, defense: Soteria | None, images: torch.Tensor = IMAGES) -> dict[str, torch.Tensor]:
    model.zero_grad()
    step = LocalStep(model, images, LABELS[: len(images)], 0.0)
    if defense is None:
        plain_step(step)
    else:
        defense.train_step(step, client_context(), torch_generator(0, "s"), plain_step)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def tiny() -> nn.Module:
    return models.build(ModelPart(name="vit_nano", kwargs={"img_size": 16, "depth": 1}), 10, 16, 0)


def by_loop(model: nn.Module, read: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The released code: one backward pass for each entry, all images at once."""
    inputs = images.clone().requires_grad_()
    caught = []
    handle = read.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    model(inputs)
    handle.remove()
    found = []
    for entry in range(caught[0].shape[1]):
        (slope,) = torch.autograd.grad(caught[0][:, entry].sum(), inputs, retain_graph=True)
        found.append(sum(s.norm() / r.abs() for s, r in zip(slope, caught[0][:, entry].detach(), strict=True)))
    return torch.stack(found)


def test_the_ratio_of_a_linear_representation_has_a_closed_form(dense):
    rows = dense.hidden(IMAGES.flatten(1)).detach()
    expected = (dense.hidden.weight.detach().norm(dim=1) / rows.abs()).sum(0)
    torch.testing.assert_close(leakage(dense, IMAGES)[0], expected)


def test_the_ratios_are_those_of_a_loop_over_the_entries():
    model, images = tiny(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(leakage(model, images)[0], by_loop(model, model.head, images), rtol=1e-3, atol=1e-4)


def test_behind_a_bottleneck_the_ratios_are_of_what_the_bottleneck_gives():
    part = ModelPart(name="vit_nano", kwargs={"img_size": 16, "depth": 1}, precode={"size": 8})
    model, images = models.build(part, 10, 16, 0), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs, caught = images.clone().requires_grad_(), []
    with evaluated(model), torch.enable_grad(), models.unfused_attention(model):
        handle = model.head.bottleneck.register_forward_hook(lambda *given: caught.append(given[2]))
        model(inputs)
        handle.remove()
        (slope,) = torch.autograd.grad(caught[0][:, 3].sum(), inputs)
    expected = (slope.flatten(1).norm(dim=1) / caught[0][:, 3].abs()).sum()
    torch.testing.assert_close(leakage(model, images)[0][3], expected, rtol=1e-3, atol=1e-4)


def test_every_classifier_of_a_distilled_vit_has_ratios_of_its_own():
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=24, num_heads=2
    )
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = leakage(model.eval(), images)
    assert [ratios.shape for ratios in found] == [(24,), (24,)] and not torch.equal(*found)


def test_the_stated_share_of_columns_with_the_smallest_ratios_is_zero_and_all_else_stays(dense):
    plain, hidden = stepped(dense, None), stepped(dense, Soteria(prune=0.5))
    columns = leakage(dense, IMAGES)[0].argsort()[:3]
    assert not hidden["head.weight"][:, columns].any()
    plain["head.weight"][:, columns] = 0
    assert hidden.keys() == plain.keys() and all(torch.equal(hidden[name], plain[name]) for name in plain)


def test_an_entry_that_is_zero_tells_nothing_and_is_never_taken_out(dense):
    with torch.no_grad():
        dense.hidden.weight[2], dense.hidden.bias[2] = 0.0, 0.0
    ratios = leakage(dense, IMAGES)[0]
    assert ratios[2] == torch.inf and bool(ratios[[0, 1, 3, 4, 5]].isfinite().all())


def test_looking_at_the_representation_leaves_model_and_random_numbers_as_they_were(dense):
    dense.train()
    dense.head.eval()
    before = torch.get_rng_state()
    leakage(dense, IMAGES)
    assert dense.training and dense.drop.training and not dense.head.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_without_a_share_or_images_or_a_trained_classifier_the_step_is_the_plain_one(dense):
    plain = stepped(dense, None)
    assert all(torch.equal(found, plain[name]) for name, found in stepped(dense, Soteria(prune=0.0)).items())
    dense.head.weight.requires_grad_(False)
    dense.zero_grad()
    Soteria().train_step(LocalStep(dense, IMAGES, LABELS, 0.0), client_context(), torch_generator(0, "s"), plain_step)
    assert dense.head.weight.grad is None and torch.equal(dense.hidden.weight.grad, plain["hidden.weight"])


def test_a_model_without_a_linear_classifier_is_refused():
    with pytest.raises(ScenarioError, match=r"^model\.name: soteria hides the input of a linear classifier"):
        Soteria().check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), client_context(), ())


def test_it_says_what_it_does_and_claims_no_guarantee(dense):
    assert Soteria().effects == UpdateEffects(dropped="classifier columns")
    assert Soteria(prune=0.0).effects == UpdateEffects()
    assert Soteria().budget(client_context()) is None
    assert "guarantees nothing" in Soteria().cautions(dense)[0]
    with pytest.raises(ScenarioError, match="prune"):
        configure(Soteria, {"prune": 1.5}, "defenses.0.params")
