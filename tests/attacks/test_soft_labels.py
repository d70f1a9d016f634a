import math

import pytest
import torch
from fedsim_attacks.soft_labels import SoftLabels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vit_cases import CLASSES, build, delta, gradient, noisy, observe, photos

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update

WIDTH = 24


class TinyHead(nn.Module):
    """A linear classifier behind a layer norm, with timm's names."""

    global_pool = "token"

    def __init__(self, classes, width=WIDTH, scale=0.3, seed=0, bias=True, norm=True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()
        self.head = nn.Linear(width, classes, bias=bias)
        with torch.no_grad():
            if bias:  # as torch draws it, but of whatever ran before independent
                self.head.bias.uniform_(-(width**-0.5), width**-0.5, generator=generator)
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            self.head.weight.copy_(scale * torch.randn(classes, width, generator=generator))

    def get_classifier(self):
        return self.head

    def forward(self, inputs):
        return self.head(self.norm(inputs.flatten(1)))


def soft(form, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randperm(classes, generator=generator)[:2]
    amount, label = float(torch.rand((), generator=generator)), torch.zeros(classes)
    if form == "one_hot":
        label[first] = 1
    elif form == "smoothing":
        label += amount / 2 / classes
        label[first] += 1 - amount / 2
    elif form == "mixup":
        label[first], label[second] = amount, 1 - amount
    else:
        label = torch.rand(classes, generator=generator).softmax(0)
    return label


def picture(seed, width=WIDTH):
    return torch.randn(1, 1, 1, width, generator=torch.Generator().manual_seed(seed))


def update_of(model, inputs, labels, hidden=(), factor=1.0, kind="gradient"):
    tensors = models.gradient_of(model, inputs, labels)
    shared = {name: factor * tensor.detach() for name, tensor in tensors.items() if name not in hidden}
    return Update(1, 0, kind, shared, len(inputs))


def seen(model, update, **granted):
    return Observation(update, lambda: model, (3, 32, 32), len(model.head.weight), **granted)


def run(observation, **params):
    return SoftLabels(**params).run(observation, torch.Generator())


def error(finding, label):
    return float((finding.labels[0] - label).abs().max())


def feature_error(finding, model, inputs):
    true = model.norm(inputs.flatten(1))[0].detach()
    return float((finding.features[0] - true).norm() / true.norm())


@settings(deadline=None, max_examples=20)
@given(
    form=st.sampled_from(["one_hot", "smoothing", "mixup", "any"]),
    classes=st.integers(2, 40),
    scale=st.sampled_from([0.02, 0.3, 1.0, 3.0]),
    seed=st.integers(0, 10_000),
)
def test_with_a_bias_gradient_any_label_is_read_off(form, classes, scale, seed):
    model, inputs, label = TinyHead(classes, scale=scale, seed=seed), picture(seed), soft(form, classes, seed)
    finding = run(seen(model, update_of(model, inputs, label[None])))
    assert error(finding, label) < 1e-4
    assert feature_error(finding, model, inputs) < 1e-4


@settings(deadline=None, max_examples=12)
@given(
    form=st.sampled_from(["one_hot", "smoothing", "mixup"]),
    classes=st.integers(8, 40),
    scale=st.sampled_from([0.02, 0.3, 1.0]),
    seed=st.integers(0, 10_000),
    layer_norm=st.booleans(),
)
def test_without_a_bias_gradient_the_search_finds_the_label(form, classes, scale, seed, layer_norm):
    model, inputs, label = TinyHead(classes, scale=scale, seed=seed), picture(seed), soft(form, classes, seed)
    finding = run(seen(model, update_of(model, inputs, label[None], {"head.bias"})), layer_norm=layer_norm)
    assert error(finding, label) < 1e-3 or finding.cautions


@pytest.mark.parametrize("form", ["one_hot", "smoothing", "mixup"])
@pytest.mark.parametrize("hidden", [(), ("head.bias",)])
def test_the_form_of_the_label_is_named(form, hidden):
    right = 0
    for seed in range(10):
        model, inputs, label = TinyHead(10, seed=seed), picture(seed), soft(form, 10, seed)
        finding = run(seen(model, update_of(model, inputs, label[None], hidden)))
        assert error(finding, label) < 1e-3
        assert finding.cautions == ()
        right += finding.trace["hypothesis"] == form
    assert right == 10


def test_a_head_without_a_bias_is_searched():
    model, inputs, label = TinyHead(10, bias=False), picture(0), soft("smoothing", 10, 0)
    finding = run(seen(model, update_of(model, inputs, label[None])))
    assert error(finding, label) < 1e-3


@pytest.mark.parametrize("gain", [4.0, 12.0, 30.0])
@pytest.mark.parametrize("hidden", [(), ("head.bias",)])
def test_confidence_down_to_the_last_bit_of_float32_is_no_defense(gain, hidden):
    for seed in range(3):
        model, inputs = TinyHead(10, seed=seed, norm=False), picture(seed)
        logits = model(inputs)[0].detach()
        with torch.no_grad():
            model.head.bias[int(logits.argmax())] += gain
        label = nn.functional.one_hot(logits.argmax(), 10).float()
        finding = run(seen(model, update_of(model, inputs, label[None], hidden)))
        assert error(finding, label) < 1e-3
        assert feature_error(finding, model, inputs) < 1e-3


def test_a_label_of_no_known_form_rests_on_the_layer_norm():
    model, inputs, label = TinyHead(10), picture(3), soft("any", 10, 3)
    finding = run(seen(model, update_of(model, inputs, label[None], {"head.bias"})))
    assert error(finding, label) < 1e-2
    assert finding.trace["hypothesis"] == "none"
    assert any("layer norm" in caution for caution in finding.cautions)
    blind = run(seen(model, update_of(model, inputs, label[None], {"head.bias"})), layer_norm=False)
    assert any("No hypothesis" in caution for caution in blind.cautions)


def test_neither_bias_nor_scale_leaves_a_choice_and_is_refused():
    model, inputs, label = TinyHead(10), picture(0), soft("one_hot", 10, 0)
    update = update_of(model, inputs, label[None], {"head.bias"}, factor=-0.1, kind="delta")
    with pytest.raises(AttackRefusedError, match="without the grant `training`"):
        run(seen(model, update))
    recipe = TrainingKnowledge("sgd", 0.1, 0.0, 0.0, 1, None)
    assert error(run(seen(model, update, training=recipe)), label) < 1e-3


@pytest.mark.parametrize("form", ["one_hot", "smoothing", "mixup"])
def test_the_bias_makes_up_for_an_unknown_scale(form):
    model, inputs, label = TinyHead(10), picture(1), soft(form, 10, 1)
    finding = run(seen(model, update_of(model, inputs, label[None], factor=-0.037, kind="delta")))
    assert error(finding, label) < 1e-3
    assert any("scale" in caution for caution in finding.cautions)


def test_clipping_is_seen_through_and_said():
    model, inputs, label = TinyHead(10), picture(1), soft("smoothing", 10, 1)
    finding = run(seen(model, update_of(model, inputs, label[None], factor=0.21)))
    assert error(finding, label) < 1e-3
    assert any("clipping" in caution for caution in finding.cautions)


def test_two_heads_whose_logits_are_averaged_are_one():
    kwargs = {"depth": 2, "embed_dim": 64, "num_heads": 2, "patch_size": 8}
    model = build("deit_tiny_distilled_patch16_224", **kwargs)
    images, label = photos().read([3]).images, soft("smoothing", CLASSES, 3)
    inputs = models.normalization(model).normalize(images)
    tensors = models.gradient_of(model, inputs, label[None])
    true = torch.cat(models.head_inputs(model, inputs), 1)
    for hidden in ((), ("head.bias", "head_dist.bias")):
        shared = {name: tensor for name, tensor in tensors.items() if name not in hidden}
        finding = run(observe(model, Update(1, 0, "gradient", shared, 1)))
        assert error(finding, label) < 1e-3
        assert float((finding.features - true).norm() / true.norm()) < 1e-3


def test_a_real_model_and_a_real_delta_of_one_step():
    model, batch = build("vit_nano"), photos().read([5])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 1, None)
    label = nn.functional.one_hot(batch.labels[0], CLASSES).float()
    finding = run(observe(model, delta(model, batch, recipe), training=recipe, batch_size=1))
    assert error(finding, label) < 1e-3


def test_another_clients_update_gives_its_label_instead():
    model, first, other = TinyHead(10), soft("smoothing", 10, 0), soft("smoothing", 10, 1)
    finding = run(seen(model, update_of(model, picture(1), other[None])))
    assert error(finding, other) < 1e-3
    assert error(finding, first) > float((1 / 10 - first).abs().max()) - 0.2


def test_noise_degrades_the_label_and_is_said():
    model, batch = build("vit_nano"), photos().read([5])
    label, errors = soft("mixup", CLASSES, 4), []
    update = gradient(model, LabeledImages(batch.images, label[None]))
    for multiplier in (0.0, 1e-4, 1e-2):
        finding = run(observe(model, noisy(update, multiplier), batch_size=1))
        errors.append(error(finding, label))
    assert errors[0] < 1e-3 < errors[2]
    assert any("Noise" in caution for caution in finding.cautions)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
def test_half_precision_updates_tell_the_label_and_are_noticed(dtype, bound):
    model, batch = build("vit_nano"), photos().read([50])
    label = soft("smoothing", CLASSES, 4)
    update = gradient(model, LabeledImages(batch.images, label[None]))
    rounded = {name: tensor.to(dtype).float() for name, tensor in update.tensors.items()}
    finding = run(observe(model, Update(1, 0, "gradient", rounded, 1), batch_size=1))
    assert error(finding, label) < bound
    assert any("Noise" in caution for caution in finding.cautions)


def test_several_images_are_refused_by_count_or_by_rank():
    model, batch = build("vit_nano"), photos().read([1, 300])
    update = gradient(model, batch)
    with pytest.raises(AttackRefusedError, match="2 images"):
        run(observe(model, update, batch_size=2))
    with pytest.raises(AttackRefusedError, match="second singular value"):
        run(observe(model, Update(1, 0, "gradient", update.tensors, 1)))
    same = LabeledImages(batch.images, batch.labels[:1].expand(2))
    with pytest.raises(AttackRefusedError, match="second singular value"):
        run(observe(model, Update(1, 0, "gradient", gradient(model, same).tensors, 1)))


def test_local_steps_on_one_image_are_a_caution():
    model, batch = build("vit_nano"), photos().read([9])
    recipe = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, None, 3)
    update = delta(model, batch, TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 3, None))
    finding = run(observe(model, update, training=recipe, batch_size=1))
    assert any("several local steps" in caution for caution in finding.cautions)


def broken(update, name, change):
    return Update(1, 0, "gradient", {n: change(t) if n == name else t for n, t in update.tensors.items()}, 1)


def test_bad_input_is_refused_with_a_reason():
    model, label = TinyHead(10), soft("one_hot", 10, 0)
    update = update_of(model, picture(0), label[None])
    with pytest.raises(AttackRefusedError, match="not finite"):
        run(seen(model, broken(update, "head.weight", lambda t: t * math.nan)))
    with pytest.raises(AttackRefusedError, match="zero"):
        run(seen(model, broken(update, "head.weight", torch.zeros_like)))
    with pytest.raises(AttackRefusedError, match=r"head\.weight was not shared"):
        run(seen(model, update_of(model, picture(0), label[None], {"head.weight"})))
    with pytest.raises(AttackRefusedError, match="adamw"):
        recipe = TrainingKnowledge("adamw", 0.1, 0.0, 0.0, 1, None)
        run(seen(model, Update(1, 0, "delta", update.tensors, 1), training=recipe))
    headless = build("vit_nano")
    headless.reset_classifier(0)
    with pytest.raises(AttackRefusedError, match="no linear classifier"):
        run(observe(headless, Update(1, 0, "gradient", {}, 1)))


def test_zeros_for_the_bias_gradient_stand_for_one_held_back():
    model, inputs, label = TinyHead(10), picture(2), soft("mixup", 10, 2)
    update = broken(update_of(model, inputs, label[None]), "head.bias", torch.zeros_like)
    assert error(run(seen(model, update)), label) < 1e-3


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_very_few_classes_never_fail_without_a_word(classes):
    model, label = TinyHead(classes), torch.full((classes,), 1 / classes)
    try:
        finding = run(seen(model, update_of(model, picture(0), label[None], {"head.bias"})))
    except AttackRefusedError as refusal:
        assert str(refusal)
    else:
        assert error(finding, label) < 1e-3 or finding.cautions
