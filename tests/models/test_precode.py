"""The bottleneck before the classifier against torch's distributions, the plain step, and attacks on it."""

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from fedsim_attacks.head import head_input
from fedsim_attacks.label_count import LabelCount
from fedsim_attacks.newton.last_block import _Parts
from fedsim_attacks.patch_embedding import PatchEmbedding
from fedsim_attacks.update.client_gradient import OneGradient
from fedsim_defenses._per_image import per_image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from fedsim import models
from fedsim.defense import LocalStep
from fedsim.errors import AttackRefusedError, ScenarioError
from fedsim.exchange import Update
from fedsim.federation.accuracy import evaluate
from fedsim.federation.training import local_update, plain_step
from fedsim.metrics.image import psnr
from fedsim.models.precode import Bottleneck, training_loss
from fedsim.planning import preparation as planning
from fedsim.scenario import ModelPart, PrecodePart
from fedsim.seeds import seeded, torch_generator
from fedsim.testing.fixtures import observation, random_images

KWARGS = {"depth": 2}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 4, 4])


def build(seed=0, name="vit_nano", kwargs=KWARGS, **precode):
    part = ModelPart(name=name, kwargs=kwargs, precode=PrecodePart(**{"size": 24, "beta": 0.5, **precode}))
    return models.build(part, 10, 32, seed)


def plain():
    return models.build(ModelPart(name="vit_nano", kwargs=KWARGS), 10, 32, 0)


def test_the_plain_model_gains_four_tensors_before_the_classifier_that_travel():
    model, original = build(), plain()
    added = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in original.state_dict()}
    assert added == {
        "head.bottleneck.encoder.weight": (48, 64),
        "head.bottleneck.encoder.bias": (48,),
        "head.bottleneck.decoder.weight": (64, 24),
        "head.bottleneck.decoder.bias": (64,),
    }
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in original.state_dict().items())
    assert set(added) < set(models.shared_state(model))
    assert model(IMAGES).shape == (3, 10)
    assert models.head_names(model) == models.head_names(original) and models.facts(model) == models.facts(original)


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 5), width=st.integers(1, 6), size=st.integers(1, 7), beta=st.floats(0, 10))
def test_the_term_is_the_divergence_that_torch_computes(batch, width, size, beta):
    with seeded(batch, "bottleneck"):
        layer, inputs = Bottleneck(width, size, beta), torch.randn(batch, width)
        layer(inputs)
    mean, log_variance = layer.encoder(inputs).chunk(2, -1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(layer.regularization(), beta * expected, rtol=1e-4, atol=1e-6)
    assert layer.regularization() is None


def test_training_draws_with_the_stated_mean_and_variance_and_evaluation_takes_the_mean():
    layer = Bottleneck(2, 2, 0.1)
    layer.decoder = nn.Identity()
    inputs = torch.tensor([[0.3, -1.0]])
    mean, log_variance = layer.encoder(inputs).chunk(2, -1)
    with seeded(0, "draws"):
        drawn = layer.train()(inputs.expand(40_000, -1))
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), log_variance[0].exp(), rtol=0.03, atol=0)
    assert torch.equal(layer.eval()(inputs), mean)


@pytest.mark.parametrize("is_training", [False, True])
def test_a_local_step_is_the_gradient_of_cross_entropy_and_divergence(is_training):
    model = build().train(is_training)
    with seeded(3, "step"):
        loss = plain_step(LocalStep(model, IMAGES, LABELS, 0.0))
    other = build().train(is_training)
    seen = []
    other.head.bottleneck.encoder.register_forward_hook(lambda *given: seen.append(given[2]))
    with seeded(3, "step"):
        logits = other(IMAGES)
    mean, log_variance = seen[0].chunk(2, -1)
    divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    expected = nn.functional.cross_entropy(logits, LABELS) + 0.5 * divergence
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for (name, found), parameter in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, parameter.grad, msg=name)


def test_attacks_and_per_image_gradients_minimize_what_the_client_does():
    model = build()
    step = copy.deepcopy(model)
    plain_step(LocalStep(step, IMAGES, LABELS, 0.0))
    expected = {name: parameter.grad for name, parameter in step.named_parameters()}
    names = tuple(expected)
    for attacked in (OneGradient(model, names, LABELS), OneGradient(model, names, LABELS).functional()):
        found = dict(zip(names, attacked.gradients(IMAGES, {}), strict=True))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    each = per_image(model, IMAGES, LABELS).gradients
    for found in ({n: g.mean(0) for n, g in each.items()}, models.gradient_of(model, IMAGES, LABELS)):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(bool(gradient.any()) for name, gradient in expected.items() if "encoder" in name)


def test_a_model_without_a_bottleneck_has_the_loss_of_old():
    model = plain()
    logits = model(IMAGES)
    assert torch.equal(training_loss(model, logits, LABELS), nn.functional.cross_entropy(logits, LABELS))


def test_it_is_copied_and_pickled_while_a_term_waits():
    model = build()
    model(IMAGES)
    copied = copy.deepcopy(model)
    assert copied.head.bottleneck.regularization() is None and model.head.bottleneck.regularization() is not None
    restored = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(restored(IMAGES), model(IMAGES)) and torch.equal(copied(IMAGES), model(IMAGES))
        assert model.head.bottleneck.regularization() is None


def test_head_inputs_are_what_the_bottleneck_gives():
    model = build()
    (found,) = models.head_inputs(model, IMAGES)
    torch.testing.assert_close(nn.functional.linear(found, model.head.weight, model.head.bias), model(IMAGES))
    torch.testing.assert_close(head_input(model, IMAGES), found)


def test_the_client_draws_from_its_own_seed_and_the_server_evaluates_without_draws(tiny_plan):
    plan = tiny_plan(model={"precode": {"size": 8}}, training={"mode": "train"})
    weights, name = plan.initial_weights(), "head.bottleneck.decoder.weight"
    first, again, later = (local_update(plan, 0, round, weights).update.tensors[name] for round in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)
    with seeded(1, "somebody else"):
        assert torch.equal(local_update(plan, 0, 1, weights).update.tensors[name], first)
    assert evaluate(plan, weights) == evaluate(plan, weights)


@pytest.mark.parametrize(
    ("parts", "where", "text"),
    [
        ({"training": {"mode": "eval"}}, "training.mode", "draws nothing"),
        (
            {"training": {"mode": "train", "batch_size": 2, "accumulate": 2}},
            "training.accumulate",
            "draws other numbers",
        ),
        ({"model": {"precode": {"size": 8}, "lora": {"rank": 2}}}, "model.precode", "Leave one of both out"),
    ],
)
def test_what_would_hide_nothing_or_be_another_gradient_is_refused(tiny_scenario, parts, where, text):
    content = {"model": {"precode": {"size": 8}}, "training": {"mode": "train"}, **parts}
    with pytest.raises(ScenarioError) as caught:
        planning.make(tiny_scenario(**content))
    assert caught.value.where == where and text in caught.value.message


class Headless(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


def test_a_model_without_a_linear_classifier_is_refused(monkeypatch):
    part = ModelPart(name="test_precode:Headless", precode=PrecodePart(size=4))
    monkeypatch.setitem(sys.modules, "test_precode", SimpleNamespace(Headless=Headless))
    with pytest.raises(ScenarioError, match="no linear classifier"):
        models.build(part, 10, 32, 0)


def test_a_cnn_gets_one_too():
    model = build(name="resnet18", kwargs={})
    assert isinstance(model.fc, models.BottleneckedLinear) and model.fc.bottleneck.encoder.in_features == 512


@pytest.fixture(scope="module")
def protected():
    """One image that a client trained on with draws, and what the server sees of it."""
    model = build(size=32, beta=0.001, kwargs={"embed_dim": 192, "depth": 2})
    pictures = random_images(torch_generator(5, "precode"), 1, 10)
    client = copy.deepcopy(model).train()
    with seeded(9, "draws of the client"):
        gradient = models.gradient_of(client, models.normalization(model).normalize(pictures.images), pictures.labels)
    update = Update(1, 0, "gradient", gradient, 1)
    return pictures, observation(pictures, model=model, update=update)


def test_the_label_leaks_whatever_was_drawn(protected):
    pictures, seen = protected
    assert LabelCount().run(seen, torch_generator(0, "attack")).labels.tolist() == pictures.labels.tolist()


def test_the_image_leaks_through_the_layers_before_the_bottleneck(protected):
    pictures, seen = protected
    found = PatchEmbedding().run(seen, torch_generator(0, "attack")).images
    assert psnr(found[0].clamp(0, 1), pictures.images[0], 1.0) > 40


def test_features_of_the_last_block_are_refused_and_named(protected):
    with pytest.raises(AttackRefusedError, match=r"behind a bottleneck \(model\.precode\)"):
        _Parts.of(protected[1].model())
