import pytest
import torch
from fedsim_attacks.head.features import recover_features
from fedsim_attacks.head.shared_head import FeatureNorm, SharedHead
from fedsim_attacks.head.system import HeadSystem, Penalty
from fedsim_attacks.head_features import HeadFeatures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vit_cases import CLASSES, build, delta, gradient, noisy, observe, photos

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, TrainingKnowledge, Update
from fedsim.metrics.feature import feature_errors


def batch(labels, first=0):
    samples = [(first + 23 * i) % 400 for i in range(len(labels))]
    return LabeledImages(photos().read(samples).images, torch.tensor(labels))


def inputs_of(model, pictures):
    return models.head_inputs(model, models.normalization(model).normalize(pictures.images))[0]


def run(observation, seed=0, **params):
    return HeadFeatures(**{"references": 16, **params}).run(observation, torch.Generator().manual_seed(seed))


def attacked(model, pictures, **granted):
    granted = {"batch_size": len(pictures), "labels": torch.sort(pictures.labels).values, **granted}
    return run(observe(model, gradient(model, pictures), **granted))


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["vit_micro", pytest.param("vit_mini", marks=pytest.mark.slow)])
def test_one_image_and_eight_of_different_classes_are_exact_on_an_untrained_model(name):
    model = build(name)
    for labels in ([4], [0, 1, 2, 3, 5, 6, 8, 9]):
        pictures = batch(labels)
        finding = run(observe(model, gradient(model, pictures), batch_size=len(labels)))
        assert max(feature_errors(finding.features, inputs_of(model, pictures))) < 1e-5
        assert finding.labels.tolist() == labels
        assert finding.cautions == ()


def test_repeated_classes_are_told_apart_with_the_error_that_is_stated():
    model = build("vit_nano")
    for labels in ([3, 3], [1, 1, 1, 6, 7, 7]):
        pictures = batch(labels)
        finding = attacked(model, pictures)
        errors = feature_errors(finding.features, inputs_of(model, pictures))
        assert mean(errors) < 0.01
        assert mean(errors) < 10 * mean(finding.trace["estimated_errors"])


def test_the_weight_gradient_alone_is_enough():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    shared = {n: t for n, t in gradient(model, pictures).tensors.items() if n != "head.bias"}
    finding = run(observe(model, Update(1, 0, "gradient", shared, 4), batch_size=4, labels=pictures.labels))
    assert max(feature_errors(finding.features, inputs_of(model, pictures))) < 1e-4


def test_soft_labels_that_are_granted_are_used():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    soft = 0.8 * nn.functional.one_hot(pictures.labels, CLASSES).float() + 0.02
    update = gradient(model, LabeledImages(pictures.images, soft))
    finding = run(observe(model, update, batch_size=4, labels=soft))
    assert max(feature_errors(finding.features, inputs_of(model, pictures))) < 1e-4
    recipe = TrainingKnowledge("sgd", 0.1, 0.0, 0.0, 1, None, label_smoothing=0.2)
    told = run(observe(model, update, batch_size=4, labels=pictures.labels, training=recipe))
    assert max(feature_errors(told.features, inputs_of(model, pictures))) < 1e-4


def test_wrong_labels_leave_a_residual_that_is_said():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    finding = attacked(model, pictures, labels=torch.tensor([0, 2, 5, 8]))
    assert finding.trace["residual"] > 1e-3
    assert any("a label is wrong" in caution for caution in finding.cautions)


def test_more_images_than_classes_are_filled_with_what_is_usual():
    model, pictures = build("vit_nano"), batch([i % CLASSES for i in range(12)])
    finding = attacked(model, pictures)
    true = inputs_of(model, pictures)
    assert mean(feature_errors(finding.features, true)) < mean(feature_errors(torch.zeros_like(true), true))
    assert any("too many for the classes" in caution for caution in finding.cautions)


def test_another_clients_update_gives_its_head_inputs_instead():
    model, pictures, other = build("vit_nano"), batch([0, 2, 5, 7]), batch([1, 3, 6, 9], first=11)
    finding = attacked(model, other)
    true, theirs = inputs_of(model, pictures), inputs_of(model, other)
    found = mean(feature_errors(finding.features, true))
    assert found == pytest.approx(mean(feature_errors(theirs, true)), rel=1e-3)
    assert found > 0.5


def test_noise_grows_into_the_stated_errors():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    true, stated, found = inputs_of(model, pictures), [], []
    for multiplier in (0.0, 1e-5, 1e-4):
        update = noisy(gradient(model, pictures), multiplier)
        finding = run(observe(model, update, batch_size=4, labels=pictures.labels))
        stated.append(mean(finding.trace["estimated_errors"]))
        found.append(mean(feature_errors(finding.features, true)))
    assert found == sorted(found)
    assert stated == sorted(stated)
    assert 0.1 < found[1] / stated[1] < 10


def test_a_delta_of_one_known_step_is_as_good_and_others_are_refused():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 1, None)
    update = delta(model, pictures, recipe)
    finding = run(observe(model, update, batch_size=4, training=recipe))
    assert max(feature_errors(finding.features, inputs_of(model, pictures))) < 1e-2
    with pytest.raises(AttackRefusedError, match="scale of this update"):
        run(observe(model, update, batch_size=4, labels=pictures.labels))
    several = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 2, None)
    with pytest.raises(AttackRefusedError, match="several local steps"):
        run(observe(model, update, batch_size=4, labels=pictures.labels, training=several))


def test_bad_input_is_refused_with_a_reason():
    model, pictures = build("vit_nano"), batch([0, 2])
    tensors = gradient(model, pictures).tensors
    for changed, reason in (
        ({"head.weight": tensors["head.weight"] * torch.nan}, "not finite"),
        ({"head.weight": torch.zeros_like(tensors["head.weight"])}, "zero"),
    ):
        update = Update(1, 0, "gradient", {**tensors, **changed}, 2)
        with pytest.raises(AttackRefusedError, match=reason):
            run(observe(model, update, batch_size=2, labels=pictures.labels))
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    with pytest.raises(AttackRefusedError, match="was not shared"):
        run(observe(model, Update(1, 0, "gradient", body, 2), batch_size=2, labels=pictures.labels))
    with pytest.raises(AttackRefusedError, match="batch_size"):
        run(observe(model, Update(1, 0, "gradient", tensors, 2)))
    with pytest.raises(AttackRefusedError, match="too many"):
        labels = torch.zeros(600, dtype=torch.int64)
        run(observe(model, Update(1, 0, "gradient", tensors, 600), batch_size=600, labels=labels))


@pytest.mark.parametrize(("params", "name"), [({"references": 1}, "references"), ({"restarts": -1}, "restarts")])
def test_values_out_of_range_are_refused_by_name(params, name):
    with pytest.raises(ValueError, match=name):
        HeadFeatures(**params)


def test_another_attack_can_take_the_head_inputs_as_a_prior():
    model, pictures = build("vit_nano"), batch([0, 2, 5, 7])
    seen = observe(model, gradient(model, pictures), batch_size=4)
    found = recover_features(seen, pictures.labels, 16, 0, torch.Generator().manual_seed(0))
    true = inputs_of(model, pictures).double()
    # Rows keep the order of the labels.
    assert float((found.inputs - true).norm() / true.norm()) < 1e-5
    assert found.is_solved and found.is_determined


def random_system(seed, count, classes, width, has_bias):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    norm = FeatureNorm(drawn(1, width).abs() + 0.5, drawn(1, width))
    head = SharedHead(drawn(classes, width), drawn(classes), drawn(classes, width), None, norm, True)
    if has_bias:
        head = SharedHead(head.weight, head.bias, head.weight_gradient, drawn(classes), norm, True)
    labels = torch.softmax(drawn(count, classes), 1)
    basis = torch.linalg.qr(drawn(width, min(count, width))).Q.T
    return HeadSystem.of(head, labels, basis, drawn(count, width)), drawn(count, len(basis))


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), count=st.integers(1, 4), classes=st.integers(2, 6), has_bias=st.booleans())
def test_normal_equations_are_those_of_automatic_differentiation(seed, count, classes, has_bias):
    system, at = random_system(seed, count, classes, 7, has_bias)
    penalty = Penalty(0.7, 0.3, torch.ones_like(at))

    def residuals(flat):
        here = flat.view(at.shape)
        errors = (here @ system.slopes.T + system.offsets).softmax(1) - system.labels
        columns = [errors.T @ here / count] + ([errors.mean(0)[:, None]] if has_bias else [])
        z = (here @ system.basis + system.rest - system.norm.shift[0]) / system.norm.scale[0]
        moments = penalty.normed * torch.stack([z.mean(1), z.square().mean(1) - 1])
        parts = [torch.cat(columns, 1) - system.target, moments, penalty.prior * (here - 1)]
        return torch.cat([part.flatten() for part in parts])

    jacobian, value = torch.autograd.functional.jacobian(residuals, at.flatten()), residuals(at.flatten())
    squares, slope = system._normal(system._state(at, penalty), penalty)
    assert torch.allclose(squares, jacobian.T @ jacobian, atol=1e-9)
    assert torch.allclose(slope, jacobian.T @ value, atol=1e-9)
    assert system.cost(at, penalty) == pytest.approx(float(value.square().sum()))


def test_a_solution_is_never_worse_than_its_start():
    for seed in range(5):
        system, at = random_system(seed, 3, 5, 7, True)
        penalty = Penalty(0.1, 0.01, at)
        assert system.cost(system.solve(at, penalty, 20), penalty) <= system.cost(at, penalty)
