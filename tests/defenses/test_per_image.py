import copy

import pytest
import timm
import torch
from fedsim_defenses import _per_image
from fedsim_defenses._per_image import clipped_sum, per_image
from fedsim_defenses._position import occluded
from fedsim_defenses.mjp import MJP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.labels import distributions, smooth
from fedsim.models import build, gradient_of, trained
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator

MODELS = {
    "vit_nano": ({}, 32),
    "vit_mini": ({"depth": 2}, 32),
    "test_vit": ({}, 32),
    "convnet": ({}, 32),
    "test_vit without a class token": ({"class_token": False, "global_pool": "avg", "reg_tokens": 2}, 32),
}
CLASSES = 5


def model_of(name, **kwargs):
    stated, size = MODELS[name]
    part = ModelPart(name=name.split()[0], kwargs={**stated, **kwargs})
    return build(part, CLASSES, size, 0)


def batch(count, soft=False, seed=0, size=32):
    generator = torch_generator(seed, "batch")
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images, smooth(distributions(labels, CLASSES), 0.1) if soft else labels


def looped(model, images, labels):
    """Return the gradient of each image, computed alone."""
    return [gradient_of(model, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]


def norm_of(gradient):
    return float(torch.cat([tensor.double().flatten() for tensor in gradient.values()]).norm())


def clipped_by_a_loop(model, images, labels, clip_norm):
    gradients = looped(model, images, labels)
    factors = [min(1.0, clip_norm / norm_of(gradient)) for gradient in gradients]
    return {
        name: sum(factor * gradient[name] for factor, gradient in zip(factors, gradients, strict=True))
        for name in gradients[0]
    }


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(count=st.integers(1, 4), soft=st.booleans(), training=st.booleans(), seed=st.integers(0, 2**32))
def test_gradients_agree_with_a_loop_over_single_images(name, count, soft, training, seed):
    model = model_of(name).train(training)
    images, labels = batch(count, soft, seed)
    found = per_image(model, images, labels)
    assert list(found.gradients) == list(trained(model))
    for index, expected in enumerate(looped(model, images, labels)):
        for parameter, gradient in expected.items():
            close(found.gradients[parameter][index], gradient)
    close(found.losses, nn.functional.cross_entropy(model(images), labels, reduction="none").detach())


@pytest.mark.parametrize("name", ["vit_nano", "test_vit"])
def test_position_embedding_and_class_token_have_gradients_of_their_own_for_each_image(name):
    found = per_image(model_of(name), *batch(3)).gradients
    for parameter in ("pos_embed", "cls_token"):
        assert found[parameter].shape[0] == 3
        assert all(gradient.any() for gradient in found[parameter])
        assert not torch.allclose(found[parameter][0], found[parameter][1])


@pytest.mark.parametrize("clip_norm", [0.01, 3.0, 1e9])
def test_the_sum_agrees_with_a_loop_that_clips_each_image(clip_norm):
    model, (images, labels) = model_of("vit_nano"), batch(5)
    found, gradients = clipped_sum(model, images, labels, clip_norm), looped(model, images, labels)
    for name, expected in clipped_by_a_loop(model, images, labels, clip_norm).items():
        close(found.gradients[name], expected)
    assert found.within == sum(norm_of(gradient) <= clip_norm for gradient in gradients)
    close(found.loss, nn.functional.cross_entropy(model(images), labels).detach())
    assert norm_of(found.gradients) <= 5 * clip_norm * (1 + 1e-5)


def test_a_sum_in_parts_is_the_same_sum(monkeypatch):
    model, (images, labels) = model_of("vit_nano"), batch(5)
    whole = clipped_sum(model, images, labels, 1.0)
    monkeypatch.setattr(_per_image, "_MOST_VALUES", 2 * sum(p.numel() for p in model.parameters()))
    parts = clipped_sum(model, images, labels, 1.0)
    assert parts.within == whole.within
    for name, expected in whole.gradients.items():
        close(parts.gradients[name], expected)


def test_of_no_image_the_sum_is_zero():
    images, labels = batch(1)
    model = model_of("vit_nano")
    found = clipped_sum(model, images[:0], labels[:0], 1.0)
    assert list(found.gradients) == list(trained(model))
    assert not any(gradient.any() for gradient in found.gradients.values())
    assert (found.within, float(found.loss)) == (0, 0.0)


def test_frozen_parameters_have_no_gradient():
    model = model_of("vit_nano")
    model.pos_embed.requires_grad_(False)
    assert "pos_embed" not in per_image(model, *batch(2)).gradients


def test_nothing_stays_on_the_model():
    model = model_of("vit_nano").train()
    before = copy.deepcopy(model.__dict__), {n: t.clone() for n, t in model.state_dict().items()}
    fused = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    clipped_sum(model, *batch(2), 1.0)
    assert model.__dict__.keys() == before[0].keys()
    assert model.state_dict().keys() == before[1].keys()
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in model.state_dict().items())
    assert all(type(parameter) is nn.Parameter and parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == fused


def test_dropout_draws_for_each_image_anew_and_the_gradient_is_that_of_the_draw():
    with seeded(0, "model"):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, CLASSES)).train()
    images = torch.randn(1, 3, 2, 2, generator=torch_generator(0, "images")).expand(4, -1, -1, -1)
    labels = torch.tensor([1, 1, 1, 1])
    with seeded(0, "draws"):
        found = per_image(model, images, labels)
    kept = []
    for weight, bias in zip(found.gradients["2.weight"], found.gradients["2.bias"], strict=True):
        # The gradient of a linear layer is the outer product of that of its bias and of its input.
        seen = weight[1] / bias[1]
        is_kept = seen.abs() > 1e-6
        close(seen, torch.where(is_kept, 2 * images[0].flatten(), 0.0))
        logits = model[2].weight @ seen + model[2].bias
        close(bias, (logits.softmax(0) - nn.functional.one_hot(labels[0], CLASSES)).detach())
        kept.append(tuple(is_kept.tolist()))
    assert len(set(kept)) == 4
    with seeded(0, "draws"):
        assert torch.equal(per_image(model, images, labels).losses, found.losses)


@pytest.mark.parametrize("rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_every_dropout_of_a_vit_works_and_draws_for_each_image(rate):
    model = model_of("vit_nano", **{rate: 0.5}).train()
    images, labels = batch(1)
    found = per_image(model, images.expand(6, -1, -1, -1), labels.expand(6))
    assert len(set(found.losses.tolist())) > 1
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.gradients.values())


def test_what_a_defense_has_set_on_the_model_is_seen():
    model = model_of("vit_nano")
    with seeded(0, "defenses"):
        MJP().prepare_model(model)
    images, labels = batch(3)
    mask = torch.arange(model.patch_embed.num_patches) % 3 == 0
    with occluded(model, mask):
        found, expected = per_image(model, images, labels).gradients, looped(model, images, labels)
    for index, gradient in enumerate(expected):
        for name, tensor in gradient.items():
            close(found[name][index], tensor)
    assert found["mjp.unknown"].any()
    assert not found["pos_embed"][:, 0, 1:][:, mask].any()


def test_a_model_that_changes_a_buffer_is_refused_by_name():
    model = timm.create_model("test_resnet", num_classes=CLASSES).train()
    with pytest.raises(
        ValueError, match=r"gradients of single images cannot be computed on ResNet: .*in-place operation"
    ):
        per_image(model, *batch(2))
