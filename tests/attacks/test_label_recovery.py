import dataclasses

import pytest
import timm
import torch
from fedsim_attacks.head.label_rules import RULES
from fedsim_attacks.label_recovery import LabelRecovery
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import CLASSES, build, delta, gradient, noisy, observe, photos

from fedsim.audit.threat import ModelFactory
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update
from fedsim.metrics.label import label_recall
from fedsim.seeds import seeded


def drawn(batch_size, seed, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    pool = photos()
    samples = torch.randint(len(pool), (batch_size,), generator=generator).tolist()
    return LabeledImages(pool.read(samples).images, torch.randint(classes, (batch_size,), generator=generator))


def run(observation, rule="auto"):
    return LabelRecovery(rule=rule).run(observation, torch.Generator().manual_seed(0))


def without(update, *names):
    return dataclasses.replace(update, tensors={n: t for n, t in update.tensors.items() if n not in names})


def replaced(update, change):
    return dataclasses.replace(update, tensors={n: change(t) for n, t in update.tensors.items()})


@pytest.fixture(scope="module")
def small():
    return build("vit_nano", depth=1)


@pytest.fixture(scope="module")
def sharp():
    """A model that tells images apart: its classifier's weights are large, as after training."""
    model = build("vit_nano", depth=2)
    with torch.no_grad():
        model.head.weight *= 40
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 16, 32, 64])
def test_auto_finds_every_label_of_an_untrained_model(small, batch_size):
    batch = drawn(batch_size, batch_size)
    finding = run(observe(small, gradient(small, batch), batch_size=batch_size))
    assert label_recall(finding.labels, batch.labels) == 1.0
    assert finding.trace["confidence"] > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_auto_is_ahead_of_the_published_rules_on_a_model_that_tells_images_apart(sharp, seed):
    batch = drawn(4, seed)
    observation = observe(sharp, gradient(sharp, batch), batch_size=4)
    published = [rule for rule, facts in RULES.items() if rule != "idlg" and facts.reference != "auxiliary"]
    best = max(label_recall(run(observation, rule).labels, batch.labels) for rule in published)
    assert label_recall(run(observation).labels, batch.labels) >= best


def test_another_clients_update_gives_its_labels_instead(small):
    batch = drawn(8, 0)
    other = LabeledImages(batch.images, (batch.labels + 5) % CLASSES)
    finding = run(observe(small, gradient(small, other), batch_size=8))
    assert label_recall(finding.labels, other.labels) == 1.0
    assert label_recall(finding.labels, batch.labels) < 0.7


def test_the_choice_follows_what_is_observable(small, sharp):
    one, few = drawn(1, 0), drawn(4, 0)
    update, single = gradient(small, few), gradient(small, one)
    assert run(observe(small, single, batch_size=1)).trace["rule"] == "idlg_bias"
    bare = run(observe(small, without(single, "head.bias"), batch_size=1))
    assert bare.trace["rule"] == "idlg" and bare.labels.tolist() == one.labels.tolist()
    trace = run(observe(small, update, batch_size=4)).trace
    assert trace["rule"] == "count" and trace["sharpness"] < 0.03 and 0.3 < trace["negative_inputs"] < 0.7
    lone = run(observe(sharp, without(gradient(sharp, few), "head.weight"), batch_size=4))
    assert lone.trace["rule"] == "llg" and not lone.trace["weights_shared"] and lone.trace["sharpness"] > 0.03


def test_a_sharp_model_without_a_bias_gradient_still_gives_one_label(sharp):
    batches = [drawn(1, seed) for seed in range(4)]
    for batch in batches:
        for rule in ("auto", "count"):
            bare = without(gradient(sharp, batch), "head.bias")
            assert run(observe(sharp, bare, batch_size=1), rule).labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("idlg", "grad_inversion")])
def test_every_rule_fit_for_signed_inputs_reads_two_labels_of_an_untrained_model(small, rule):
    batch = drawn(2, 1)
    known = LabeledImages(drawn(32, 9).images, drawn(32, 9).labels)
    finding = run(observe(small, gradient(small, batch), batch_size=2, auxiliary_data=known), rule)
    assert finding.trace["rule"] == rule and finding.trace["reason"] == "given"
    assert label_recall(finding.labels, batch.labels) == 1.0


def test_rules_say_what_defeats_them(small):
    observation = observe(small, gradient(small, drawn(4, 0)), batch_size=4)
    assert any("one sign" in caution for caution in run(observation, "grad_inversion").cautions)
    assert any("once at most" in caution for caution in run(observation, "rlg").cautions)
    assert run(observation).cautions == ()


@given(
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@settings(max_examples=6, deadline=None)
def test_deltas_of_a_known_recipe_are_undone(small, momentum, decay, steps, seed):
    recipe, batch = TrainingKnowledge("sgd", 0.01, momentum, decay, steps, None), drawn(4, seed)
    finding = run(observe(small, delta(small, batch, recipe), batch_size=4, training=recipe))
    assert label_recall(finding.labels, batch.labels) >= 0.9


def test_weight_decay_that_is_not_undone_would_be_read_as_labels(small):
    recipe, batch = TrainingKnowledge("sgd", 0.01, 0.9, 5.0, 2, None), drawn(4, 1)
    update, blind = delta(small, batch, recipe), dataclasses.replace(recipe, weight_decay=0.0)
    told = run(observe(small, update, batch_size=4, training=recipe))
    misled = run(observe(small, update, batch_size=4, training=blind))
    assert label_recall(told.labels, batch.labels) == 1.0
    assert told.trace["confidence"] >= misled.trace["confidence"]


def test_an_unknown_recipe_is_a_caution_where_the_scale_matters(small):
    recipe, batch = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None), drawn(4, 3)
    observation = observe(small, delta(small, batch, recipe), batch_size=4)
    for rule in ("auto", "bias_count", "ilrg"):
        finding = run(observation, rule)
        assert any("scale" in caution for caution in finding.cautions), rule
        assert label_recall(finding.labels, batch.labels) == 1.0, rule
    assert not any("scale" in caution for caution in run(observation, "llg").cautions)


def test_labels_of_a_client_known_to_smooth_them_are_doubted(small):
    recipe = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None, label_smoothing=0.2)
    finding = run(observe(small, delta(small, drawn(2, 0), recipe), batch_size=2, training=recipe))
    assert any("smooths" in caution for caution in finding.cautions)


def test_noise_lowers_the_confidence_until_it_is_a_caution(small):
    update = gradient(small, drawn(8, 2))
    findings = [run(observe(small, noisy(update, m), batch_size=8)) for m in (0.0, 1e-3, 1e-1)]
    confidences = [finding.trace["confidence"] for finding in findings]
    assert confidences == sorted(confidences, reverse=True)
    assert not findings[0].cautions and any("probability" in caution for caution in findings[-1].cautions)


@pytest.mark.parametrize("rule", ["auto", "count", *RULES])
def test_bad_gradients_are_refused_by_every_rule(small, rule):
    update = gradient(small, drawn(1, 0))
    for change, words in ((lambda t: t * torch.nan, "not finite"), (torch.zeros_like, "zero")):
        with pytest.raises(AttackRefusedError, match=words):
            run(observe(small, replaced(update, change), batch_size=1), rule)
    with pytest.raises(AttackRefusedError, match="missing"):
        run(observe(small, without(update, "head.weight", "head.bias"), batch_size=1), rule)
    with pytest.raises(AttackRefusedError, match="batch_size"):
        run(observe(small, update), rule)


@pytest.mark.parametrize("rule", ["auto", "count", "rlg", "ilrg"])
def test_weights_held_back_as_zeros_do_no_harm(small, rule):
    batch = drawn(2, 3)
    update = gradient(small, batch)
    held = dataclasses.replace(update, tensors={**update.tensors, "head.weight": torch.zeros(CLASSES, 64)})
    finding = run(observe(small, held, batch_size=2), rule)
    assert len(finding.labels) <= 2
    if rule in ("auto", "count"):
        assert label_recall(finding.labels, batch.labels) == 1.0


def tiny(classes):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
    with seeded(0, "model"):
        return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **kwargs).eval()


@pytest.mark.parametrize("classes", [0, 1])
def test_models_without_a_choice_of_classes_are_refused(classes):
    model = tiny(classes)
    tensors = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    update = Update(1, 0, "gradient", tensors, 2)
    with pytest.raises(AttackRefusedError, match="classifier"):
        run(Observation(update, ModelFactory(model), (3, 32, 32), classes, batch_size=2))


@pytest.mark.parametrize("label", [0, 1])
def test_two_classes_without_a_bias_gradient_leave_the_label_open(label):
    model, picture = tiny(2), drawn(1, 0).images
    bare = without(gradient(model, LabeledImages(picture, torch.tensor([label]))), "head.bias")
    finding = run(Observation(bare, ModelFactory(model), (3, 32, 32), 2, batch_size=1))
    assert finding.trace["confidence"] < 0.1 and finding.cautions


def test_auxiliary_data_is_asked_for_by_the_rule_that_reads_it(small):
    observation = observe(small, gradient(small, drawn(2, 0)), batch_size=2)
    with pytest.raises(AttackRefusedError, match="auxiliary_data"):
        run(observation, "bias_count_auxiliary")


def test_several_images_are_refused_by_the_rule_for_one(small):
    with pytest.raises(AttackRefusedError, match="one image"):
        run(observe(small, gradient(small, drawn(2, 0)), batch_size=2), "idlg")


def test_parameters_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="references"):
        LabelRecovery(references=1)


def test_labels_come_from_the_seed_alone(small):
    observation = observe(small, gradient(small, drawn(16, 5)), batch_size=16)
    first, second = run(observation), run(observation)
    assert torch.equal(first.labels, second.labels) and first.trace == second.trace
