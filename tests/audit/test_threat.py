import dataclasses
import pickle
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objects import reachable
from safetensors.torch import load
from torch import Tensor, nn

from fedsim.audit import attempt
from fedsim.audit.threat import ThreatModel
from fedsim.data.batches import FederatedData
from fedsim.defense import knowledge_of
from fedsim.errors import RunFolderError
from fedsim.exchange import Normalization, Truth, View
from fedsim.federation.engine import train
from fedsim.federation.training import local_update
from fedsim.planning.context import training_knowledge
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedDefense
from fedsim.scenario import Scenario
from fedsim.source import Pool, Pools

GRANTS = ("batch_size", "labels", "normalization", "training", "train_mode", "defenses", "auxiliary_data")
RECIPE = {"batch_size": 4, "shares": "delta", "local_steps": 2, "weight_decay": 0.1}
NOISE = {"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}}


@pytest.fixture
def observe(tiny_plan):
    """Return a function: grants, client, further parts -> plan and observation of round 2."""

    def make(grants=(), client=1, **parts):
        plan = tiny_plan(threat={"grants": sorted(grants)}, **{"training": RECIPE, "defenses": [NOISE], **parts})
        weights = {name: weight + 0.01 for name, weight in plan.initial_weights().items()}
        update = local_update(plan, client, 2, weights).update
        return plan, ThreatModel(plan).observe(update, weights)

    return make


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grants=st.sets(st.sampled_from(GRANTS)))
def test_exactly_the_granted_fields_are_set(observe, grants):
    plan, observation = observe(grants)
    assert {name for name in GRANTS if getattr(observation, name) is not None} == grants
    assert observation.image_shape == (3, 32, 32) and observation.num_classes == 10
    assert list(observation.update.tensors) == list(plan.initial_weights())


def test_grants_tell_the_truth(observe):
    plan, seen = observe(GRANTS)
    truth = plan.data.truth(1, 2, plan.scenario.training)
    assert seen.batch_size == 4 and seen.train_mode is True
    assert seen.labels.tolist() == sorted(truth.labels.tolist()) and len(seen.labels) == 8
    assert seen.normalization == plan.normalization
    assert seen.training == training_knowledge(plan.scenario, plan.model(), 2)
    assert seen.training.decay_exempt == ("cls_token", "pos_embed")
    assert seen.defenses == (knowledge_of("dp_noise", plan.defenses[0].defense),)
    assert len(seen.auxiliary_data) == 8
    for picture in seen.auxiliary_data.images:
        assert not any(torch.equal(picture, own) for own in truth.images)


def test_granted_soft_labels_are_those_of_the_truth_without_its_order(observe):
    recipe = {"batch_size": 4, "label_smoothing": 0.2, "mixup": 0.5}
    plan, seen = observe(GRANTS, training=recipe)
    truth = plan.data.truth(1, 2, plan.scenario.training)
    assert seen.labels.shape == (4, 10)
    assert sorted(seen.labels.tolist()) == sorted(truth.labels.tolist())
    assert seen.labels.tolist() == sorted(seen.labels.tolist(), reverse=True) != truth.labels.tolist()
    assert (seen.training.label_smoothing, seen.training.mixup) == (0.2, 0.5)
    assert seen.auxiliary_data.labels.dtype == torch.int64


def test_a_client_without_defenses_is_known_to_have_none(observe):
    assert observe(["defenses"], client=0)[1].defenses == ()


@pytest.mark.parametrize(("recipe", "expected"), [({"batch_size": 99}, 16), ({"batch_size": 5}, 5)])
def test_the_batch_size_is_what_the_client_could_fill(observe, recipe, expected):
    assert observe(["batch_size"], training=recipe)[1].batch_size == expected


def test_a_client_that_reports_no_number_of_examples_is_taken_at_the_recipes_word(observe):
    plan, seen = observe(["batch_size"])
    silent = ThreatModel(plan).observe(dataclasses.replace(seen.update, num_examples=0), plan.initial_weights())
    assert silent.batch_size == 4


def test_every_model_is_a_fresh_copy_with_the_rounds_weights(observe):
    plan, seen = observe()
    first = seen.model()
    assert not first.training
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, plan.initial_weights()[name] + 0.01)
    nn.init.zeros_(first.head.weight)
    first.train()
    second = seen.model()
    assert not second.training and second.head.weight.abs().sum() > 0
    assert torch.equal(plan.model().head.weight, plan.initial_weights()["head.weight"])


def test_the_model_says_nothing_about_the_normalization(observe):
    model = observe()[1].model()
    assert model.pretrained_cfg == model.default_cfg == {}


def test_the_factory_travels_to_other_processes(observe):
    seen = observe()[1]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(seen.model))()(images), seen.model()(images))


# Sealed truth

SEALED = (Plan, Scenario, FederatedData, Pools, Pool, Truth, ThreatModel, PlannedDefense)


def test_the_walk_finds_what_a_closure_or_a_method_hides(tiny_plan):
    plan = tiny_plan()
    for leak in (lambda: plan.model(), plan.model, {"x": [(plan,)]}, types.SimpleNamespace(plan=plan)):
        assert any(isinstance(item, Pool) for item in reachable(leak))


@pytest.mark.parametrize("defense", [NOISE, {"name": "mjp", "clients": [1]}], ids=lambda defense: defense["name"])
@pytest.mark.parametrize("grants", [(), GRANTS], ids=["nothing granted", "all granted"])
def test_nothing_in_an_observation_reaches_the_data(observe, grants, defense):
    plan, seen = observe(grants, defenses=[defense])
    truth = plan.data.truth(1, 2, plan.scenario.training)
    pictures = [*truth.images, *plan.normalization.normalize(truth.images)]
    tensors = 0
    for item in (*reachable(seen), *reachable(seen.model())):
        assert not isinstance(item, SEALED), type(item)
        assert grants or not isinstance(item, Normalization)
        if isinstance(item, Tensor) and item.shape[-3:] == truth.images.shape[-3:]:
            tensors += 1
            assert not any(torch.equal(one, own) for one in item.reshape(-1, *item.shape[-3:]) for own in pictures)
    assert tensors == (1 if grants else 0)  # the auxiliary images


def test_changing_the_truth_after_the_observation_changes_no_finding(observe):
    plan, seen = observe(GRANTS)
    attack = plan.attacks[0].attack
    before = attack.run(seen, torch.Generator().manual_seed(1))
    labels = seen.labels.clone()
    truth = plan.data.truth(1, 2, plan.scenario.training)
    truth.images.zero_()
    truth.labels.fill_(0)
    after = attack.run(seen, torch.Generator().manual_seed(1))
    assert torch.equal(seen.labels, labels)
    assert torch.equal(before.images, after.images) and torch.equal(before.labels, after.labels)
    assert before.trace == after.trace


def test_an_attempt_without_granted_labels_never_asks_for_the_truth(tiny_plan, run_folder, monkeypatch):
    plan = tiny_plan(federation={"rounds": 1}, threat={"grants": [grant for grant in GRANTS if grant != "labels"]})
    folder, other = run_folder(plan), run_folder(plan, "other")
    for one in (folder, other):
        train(plan, one)
    free = attempt.make(plan, folder, View.of_update(1, 0), plan.attacks[0])

    def refuse(*arguments):
        raise AssertionError("the attempt asked for the truth")

    monkeypatch.setattr(FederatedData, "truth", refuse)
    sealed = attempt.make(plan, other, View.of_update(1, 0), plan.attacks[0])
    assert free.status == sealed.status == "found"
    assert torch.equal(load(free.content)["images"], load(sealed.content)["images"])


@pytest.mark.parametrize("damage", ["missing", "shape"])
@pytest.mark.parametrize("side", ["weights", "update"])
def test_captures_of_another_model_are_refused(observe, side, damage):
    plan, seen = observe()
    weights, tensors = dict(plan.initial_weights()), dict(seen.update.tensors)
    hurt = weights if side == "weights" else tensors
    if damage == "missing":
        del hurt["head.weight"]
    else:
        hurt["head.weight"] = torch.zeros(3, 3)
    with pytest.raises(RunFolderError, match=r"round 2, client 1 are not of model vit_nano: head\.weight is of shape"):
        ThreatModel(plan).observe(dataclasses.replace(seen.update, tensors=tensors), weights)
