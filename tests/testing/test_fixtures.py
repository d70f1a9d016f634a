"""The kit's fixtures is what a scenario gives. The paper of its stub defense: https://example.org"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.audit.threat import ThreatModel
from fedsim.defense import Defense, LocalStep
from fedsim.federation.training import local_update, plain_step
from fedsim.models import build, gradient_of
from fedsim.scenario import ModelPart, TrainingPart
from fedsim.seeds import torch_generator
from fedsim.testing import ALL_GRANTS, check_defense, make_update, observation, random_images, small_model


@dataclass(frozen=True, kw_only=True)
class DoesNothing(Defense):
    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"


GIVEN = {"update", "model", "image_shape", "num_classes", "members"}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@given(seed=st.integers(0, 2**31), count=st.integers(1, 5), num_classes=st.integers(2, 20))
def test_images_are_a_function_of_the_generator_and_fit_the_model(seed, count, num_classes):
    first, second = (random_images(torch_generator(seed), count, num_classes) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.images.shape == (count, 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert first.images.std() > 0.05
    assert first.labels.min() >= 0
    assert first.labels.max() < num_classes


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 224, 224)])
def test_images_come_in_the_shape_that_is_asked_for(shape):
    assert random_images(torch_generator(0), 2, image_shape=shape).images.shape == (2, *shape)


def test_a_larger_model_is_observed_and_defended_with_images_of_its_size():
    kwargs = {"img_size": 48, "embed_dim": 16, "depth": 1, "num_heads": 1}
    model = build(ModelPart(name="vit_nano", kwargs=kwargs), 5, 48, 0)
    pictures = random_images(torch_generator(0), 2, 5, image_shape=(3, 48, 48))
    seen = observation(pictures, grants=ALL_GRANTS, model=model)
    assert seen.image_shape == (3, 48, 48)
    assert seen.auxiliary_data.images.shape == (10, 3, 48, 48)
    assert int(seen.auxiliary_data.labels.max()) < 5
    check_defense(DoesNothing, model=model)


def test_given_labels_are_used_and_move_no_image():
    labels = torch.tensor([7, 7, 1])
    given_labels = random_images(torch_generator(0), 3, labels=labels)
    assert given_labels.labels is labels
    assert torch.equal(given_labels.images, random_images(torch_generator(0), 3).images)


@pytest.mark.parametrize("kind", ["gradient", "delta"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_update_is_bit_equal_to_what_a_client_of_a_scenario_sends(tiny_plan, kind, batch_size):
    plan = tiny_plan(training={"batch_size": batch_size, "shares": kind, "learning_rate": 0.05, "mode": "eval"})
    sent = local_update(plan, 1, 1, plan.initial_weights()).update
    (inputs,) = plan.data.client_inputs(1, 1, plan.scenario.training)
    batch = plan.data.read(inputs, plan.scenario.training)
    found = make_update(plan.model(), batch, kind, learning_rate=0.05)
    assert_equal(found.tensors, sent.tensors)
    assert (found.kind, found.num_examples) == (sent.kind, sent.num_examples)


def test_several_steps_are_those_of_torchs_sgd():
    model, pictures = small_model(), random_images(torch_generator(0), 2)
    trained = small_model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        plain_step(LocalStep(trained, 2 * pictures.images - 1, pictures.labels, 0.0))
        optimizer.step()
    found = make_update(model, pictures, "delta", learning_rate=0.1, local_steps=3)
    before = dict(model.named_parameters())
    assert_equal(found.tensors, {n: p.detach() - before[n].detach() for n, p in trained.named_parameters()})


@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_making_an_update_leaves_the_model_as_it_is(kind):
    model, untouched = small_model(), small_model()
    make_update(model, random_images(torch_generator(0)), kind, local_steps=2)
    assert_equal(model.state_dict(), untouched.state_dict())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("grants", [frozenset(), *({grant} for grant in sorted(ALL_GRANTS)), ALL_GRANTS])
def test_grants_give_what_the_threat_model_gives(tiny_plan, grants):
    plan = tiny_plan(threat={"grants": sorted(grants)}, training={"batch_size": 2, "mode": "eval"})
    update = local_update(plan, 0, 1, plan.initial_weights()).update
    expected = ThreatModel(plan).observe(update, plan.initial_weights())
    found = observation(random_images(torch_generator(0), 2), grants=grants)
    for field in dataclasses.fields(expected):
        known, wanted = getattr(found, field.name), getattr(expected, field.name)
        assert type(known) is type(wanted) or callable(wanted), field.name
        assert (known is not None) == (field.name in grants | GIVEN)
    assert (found.image_shape, found.num_classes, found.batch_size, found.normalization, found.train_mode) == (
        (expected.image_shape, expected.num_classes, expected.batch_size, expected.normalization, expected.train_mode)
    )
    assert found.training == expected.training


def test_the_default_grants_are_those_of_a_scenario(tiny_plan):
    seen = observation(random_images(torch_generator(0)))
    granted = {grant for grant in ALL_GRANTS if getattr(seen, grant) is not None}
    assert granted == set(tiny_plan().scenario.threat.grants)
    assert TrainingPart().learning_rate == 0.01  # the default of `observation` too


def test_granted_labels_come_in_no_telling_order():
    pictures = random_images(torch_generator(0), 3, labels=torch.tensor([5, 1, 3]))
    assert observation(pictures, grants=["labels"]).labels.tolist() == [1, 3, 5]


def test_every_call_of_the_factory_gives_a_fresh_model_that_explains_the_update():
    pictures, model = random_images(torch_generator(0), 2), small_model(num_classes=4, seed=3)
    pictures = dataclasses.replace(pictures, labels=pictures.labels % 4)
    seen = observation(pictures, model=model)
    spoiled = seen.model()
    with torch.no_grad():
        spoiled.head.weight.zero_()
    fresh = seen.model()
    assert not fresh.training
    assert seen.num_classes == 4
    inputs = seen.normalization.normalize(pictures.images)
    assert_equal(gradient_of(fresh, inputs, pictures.labels), seen.update.tensors)


def test_a_protected_update_can_be_observed():
    pictures = random_images(torch_generator(0))
    update = dataclasses.replace(make_update(small_model(), pictures), client=4)
    assert observation(pictures, update=update).update is update
