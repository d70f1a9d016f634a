import dataclasses

import pytest
import torch
from fedsim_attacks.head.counts import image_count
from fedsim_attacks.label_count import LabelCount
from vit_cases import CLASSES, build, delta, gradient, observe, photos

from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, TrainingKnowledge, Update
from fedsim.federation.training import local_update
from fedsim.metrics.label import label_recall


def drawn(batch_size, seed, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    pool = photos()
    samples = torch.randint(len(pool), (batch_size,), generator=generator).tolist()
    return LabeledImages(pool.read(samples).images, torch.randint(classes, (batch_size,), generator=generator))


def run(observation, **params):
    return LabelCount(**params).run(observation, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [1, 2, 8, 32])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_label_of_an_untrained_model_is_counted_repeats_included(batch_size, seed):
    model, batch = build(seed=seed), drawn(batch_size, seed)
    finding = run(observe(model, gradient(model, batch), batch_size=batch_size))
    assert label_recall(finding.labels, batch.labels) == 1.0
    assert len(finding.labels) == batch_size


def test_one_class_for_the_whole_batch_is_counted():
    batch = drawn(8, 3)
    same = LabeledImages(batch.images, torch.full((8,), 4))
    model = build("vit_micro")
    assert run(observe(model, gradient(model, same), batch_size=8)).labels.tolist() == [4] * 8


def test_another_clients_update_gives_its_labels_instead():
    model, batch = build("vit_micro"), drawn(8, 0)
    other = LabeledImages(batch.images, (batch.labels + 5) % CLASSES)
    finding = run(observe(model, gradient(model, other), batch_size=8))
    assert label_recall(finding.labels, other.labels) == 1.0
    assert label_recall(finding.labels, batch.labels) < 0.7


def test_counts_of_a_hand_made_gradient():
    # Any model: the head's bias gradient is mean(p) - n / B; with one image the sign alone tells.
    model = build("vit_nano", patch_size=8)
    probabilities = torch.full((CLASSES,), 1 / CLASSES)
    truth = torch.nn.functional.one_hot(torch.tensor(3), CLASSES).float()
    tensors = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    tensors["head.bias"] = probabilities - truth
    finding = run(observe(model, Update(1, 0, "gradient", tensors, 1), batch_size=1))
    assert finding.labels.tolist() == [3]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_local_steps_of_known_recipe_are_counted(momentum):
    recipe = TrainingKnowledge("sgd", 0.001, momentum, 0.0, 2, None)
    model, batch = build("vit_micro"), drawn(4, 1)
    update = delta(model, batch, recipe)
    finding = run(observe(model, update, batch_size=4, training=recipe))
    assert sorted(finding.labels.tolist()) == sorted(batch.labels.tolist())


def test_an_unknown_recipe_is_said_and_still_gives_the_labels_of_one_image():
    recipe = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    model, batch = build("vit_micro"), drawn(1, 5)
    finding = run(observe(model, delta(model, batch, recipe), batch_size=1))
    assert finding.labels.tolist() == batch.labels.tolist()


def test_confidence_is_a_probability_and_doubt_is_a_caution():
    model, batch = build("vit_micro"), drawn(64, 2)
    update = gradient(model, batch)
    noise = torch.Generator().manual_seed(0)
    scale = 0.01 * update.norm()
    noisy = {n: t + scale * torch.randn(t.shape, generator=noise) for n, t in update.tensors.items()}
    finding = run(observe(model, Update(1, 0, "gradient", noisy, 64), batch_size=64))
    assert 0 <= finding.trace["confidence"] < 0.9
    assert finding.cautions


def test_an_unshared_head_and_an_adaptive_optimizer_are_refused():
    model, batch = build("vit_micro"), drawn(2, 0)
    update = gradient(model, batch)
    body = {n: t for n, t in update.tensors.items() if not n.startswith("head.")}
    with pytest.raises(AttackRefusedError):
        run(observe(model, Update(1, 0, "gradient", body, 2), batch_size=2))
    adamw = TrainingKnowledge("adamw", 0.001, 0.0, 0.0, 1, None)
    with pytest.raises(AttackRefusedError, match="adamw"):
        run(observe(model, Update(1, 0, "delta", update.tensors, 2), batch_size=2, training=adamw))


def test_too_few_references_are_refused_by_name():
    with pytest.raises(ValueError, match="references"):
        LabelCount(references=1)


def test_a_delta_without_a_number_of_examples_gives_shares_and_says_so():
    recipe = TrainingKnowledge("sgd", 0.001, 0.0, 0.0, None, 2)
    model, batch = build("vit_nano"), drawn(4, 0)
    silent = dataclasses.replace(delta(model, batch, dataclasses.replace(recipe, local_steps=2)), num_examples=0)
    finding = run(observe(model, silent, batch_size=4))
    assert sorted(finding.labels.tolist()) == sorted(batch.labels.tolist())
    assert any("reported no num-examples" in caution and "4 labels" in caution for caution in finding.cautions)
    with pytest.raises(AttackRefusedError, match="number of examples"):
        image_count(observe(model, silent))


@pytest.mark.parametrize("granted", [True, False])
def test_a_flower_app_that_reports_its_data_set_size_gives_one_label_a_image_after_two_epochs(granted):
    model, batch = build("vit_nano"), drawn(4, 1)
    batch = LabeledImages(batch.images, torch.tensor([0, 3, 3, 7]))
    recipe = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, None, 2)
    update = delta(model, batch, dataclasses.replace(recipe, local_steps=2))
    finding = run(observe(model, update, batch_size=4, training=recipe if granted else None))
    assert update.num_examples == 4 and finding.labels.tolist() == [0, 3, 3, 7]


@pytest.mark.parametrize("grants", [[], ["training"]], ids=["untold", "told"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"local_epochs": 2, "batch_size": 20},
        {"local_epochs": 3, "batch_size": 99},
        {"local_epochs": 3, "batch_size": 20, "momentum": 0.9},
        {"local_epochs": 2, "batch_size": 20, "label_smoothing": 0.1},
        {"local_steps": 8, "batch_size": 5},
    ],
    ids=["epochs", "large_batch", "momentum", "smoothing", "steps"],
)
def test_every_label_of_20_images_is_found_however_often_they_were_used(tiny_plan, recipe, grants):
    plan = tiny_plan(
        data={"samples": 40},
        federation={"clients": 2},
        training={"shares": "delta", **recipe},
        threat={"grants": ["batch_size", *grants]},
    )
    start, truth = plan.initial_weights(), plan.data.truth(0, 1, plan.scenario.training)
    finding = run(ThreatModel(plan).observe(local_update(plan, 0, 1, start).update, start))
    assert len(finding.labels) == truth.pictures == 20
    assert label_recall(finding.labels, truth.labels, truth.pictures) == 1.0
