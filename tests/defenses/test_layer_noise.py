import pytest
import torch
from fedsim_defenses.layer_noise import LayerNoise, sensitivities, slice_numbers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim import models
from fedsim.defense import LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.federation.training import plain_step
from fedsim.plugins import configure
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context

UPDATE = Update(1, 0, "gradient", {"a": torch.zeros(40, 100), "b": torch.zeros(6000)}, 1)


def sent(state=None, update: Update = UPDATE, seed: int = 0, **params) -> torch.Tensor:
    context = client_context(state={} if state is None else state)
    found = LayerNoise(**params).protect_update(update, context, torch_generator(seed, "n"))
    return torch.cat([tensor.flatten() for tensor in found.tensors.values()])


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=5).filter(
        lambda tensors: sum(s for _, s in tensors) > 1e-3
    ),
    st.integers(1, 6),
)
def test_slices_are_contiguous_and_equally_sensitive_up_to_one_entry(tensors, slices):
    sizes, sensitivity = zip(*tensors, strict=True)
    found = slice_numbers(sizes, sensitivity, slices).tolist()
    each = [s / n for n, s in tensors for _ in range(n)]
    assert found == sorted(found) and len(found) == sum(sizes) and set(found) <= set(range(slices))
    for number in range(slices):
        part = sum(e for e, place in zip(each, found, strict=True) if place == number)
        assert part == pytest.approx(sum(each) / slices, abs=max(each) + 1e-9)


def test_where_nothing_is_sensitive_every_entry_counts_the_same():
    assert slice_numbers([2, 4], [0.0, 0.0], 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_sensitivity_of_a_linear_model_is_that_of_its_jacobian():
    with seeded(0, "test"):
        model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.randn(2, 1, 2, 2)
    labels = torch.tensor([0, 2])
    weight, bias = (parameter.detach() for parameter in model[1].parameters())

    def gradients(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = flat.view(2, 4)
        residual = ((rows @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 3)) / 2
        return residual.T @ rows, residual.sum(0)

    jacobians = torch.autograd.functional.jacobian(gradients, images.flatten())
    expected = [j.reshape(-1, 2, 4).sum(0).norm(dim=1).mean() for j in jacobians]
    found = sensitivities(model, images, labels)
    assert found == pytest.approx([float(value) for value in expected], abs=1e-6)
    # The mean square along random signs is the Jacobian's squared Frobenius norm; of one image, so that it is one norm.
    one, draws = (images[:1], labels[:1]), torch.Generator().manual_seed(0)
    squares = [sensitivities(model, *one, draws)[0] ** 2 for _ in range(300)]
    probabilities = (images[0].flatten() @ weight.T + bias).softmax(0)
    slope, residual = probabilities.diag() - torch.outer(probabilities, probabilities), probabilities - torch.eye(3)[0]
    jacobian = torch.einsum("ck,kj,i->cij", slope, weight, images[0].flatten())
    jacobian = jacobian + torch.einsum("c,ij->cij", residual, torch.eye(4))
    assert sum(squares) / 300 == pytest.approx(float(jacobian.square().sum()), rel=0.2)


def test_ones_do_not_see_the_patch_embedding_of_a_vit_and_signs_do():
    model = models.build(ModelPart(name="vit_nano", kwargs={"img_size": 16, "depth": 1}), 10, 16, 0)
    images, labels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    place = list(models.trained(model)).index("patch_embed.proj.weight")
    ones = sensitivities(model, images, labels)
    signs = sensitivities(model, images, labels, torch.Generator().manual_seed(0))
    assert ones[place] < 1e-4 * max(ones) and signs[place] > 0.01 * max(signs)
    assert "counts as insensitive" in LayerNoise().cautions(model)[1]
    assert len(LayerNoise(probe="signs").cautions(model)) == 1


def test_as_many_slices_as_stated_get_gaussian_noise_and_the_others_none():
    found = sent(noise=0.5, slices=10, perturbed=4).view(10, 1000)
    noisy = found.any(1)
    assert int(noisy.sum()) == 4
    assert float(found[noisy].double().std()) == pytest.approx(0.5, abs=5 * 0.5 / 8000**0.5)
    assert float(found[noisy].double().mean()) == pytest.approx(0.0, abs=5 * 0.5 / 4000**0.5)
    others = sent(noise=0.5, slices=10, perturbed=4, seed=1).view(10, 1000).any(1)
    assert not torch.equal(noisy, others)


def test_a_slice_that_gets_noise_is_clipped_by_itself():
    update = Update(1, 0, "gradient", {"a": torch.ones(40, 100), "b": torch.ones(6000)}, 1)
    norms = sent(update=update, noise=0.0, slices=10, perturbed=3, clip_norm=2.0).view(10, 1000).norm(dim=1)
    assert sorted(norms.tolist()) == pytest.approx([2.0] * 3 + [1000**0.5] * 7, rel=1e-5)


def test_slices_follow_what_the_first_step_of_the_round_was_sensitive_to():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    defense, context = LayerNoise(noise=1.0, slices=2, perturbed=1), client_context(state={})
    step = LocalStep(model, torch.randn(1, 1, 2, 2), torch.tensor([1]), 0.0)
    defense.train_step(step, context, torch_generator(0, "t"), plain_step)
    first = context.state["sensitivity"]
    assert first == sensitivities(model, step.images, step.labels)
    other = LocalStep(model, 3 * step.images, step.labels, 0.0)
    defense.train_step(other, context, torch_generator(0, "t"), plain_step)
    assert context.state["sensitivity"] == first
    later = client_context(state=context.state, round=2)
    defense.train_step(other, later, torch_generator(0, "t"), plain_step)
    assert later.state["sensitivity"] != first


def test_a_round_without_images_cuts_the_update_evenly():
    stale = {"round": 7, "sensitivity": [1.0, 0.0]}
    assert torch.equal(sent(stale, perturbed=3), sent(perturbed=3))


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert LayerNoise(noise=0.2).effects == UpdateEffects(partial_noise=0.2)
    assert LayerNoise(perturbed=0).effects == UpdateEffects()
    assert LayerNoise().budget(client_context()) is None
    assert "no guarantee" in LayerNoise().cautions(nn.Linear(2, 2))[0]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"noise": -1}, "noise"),
        ({"slices": 0}, "slices"),
        ({"perturbed": 11}, "perturbed"),
        ({"clip_norm": 0}, "clip_norm"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(LayerNoise, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
