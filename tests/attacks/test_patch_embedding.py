import pytest
import torch
from fedsim_attacks.patch_embedding import PatchEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import best_control, build, decibels, delta, gradient, noisy, observe, photos

from fedsim.errors import AttackRefusedError
from fedsim.exchange import TrainingKnowledge, Update


def run(observation):
    return PatchEmbedding().run(observation, torch.Generator())


@pytest.mark.parametrize("sample", [0, 17, 200, 431])
def test_one_image_comes_back_from_its_gradient(sample):
    model, batch = build(), photos().read([sample])
    finding = run(observe(model, gradient(model, batch)))
    assert decibels(finding.images, batch) >= 60
    assert finding.trace["residual"] < 1e-5
    assert finding.cautions == ()


@pytest.mark.slow
def test_one_image_comes_back_from_the_stock_base_model():
    model, batch = build("vit_base_patch16_224", 224), photos(224).read([3])
    finding = run(observe(model, gradient(model, batch), 224))
    assert decibels(finding.images, batch) >= 60


@pytest.mark.parametrize(
    "kwargs",
    [{"reg_tokens": 4}, {"no_embed_class": True}, {"global_pool": "avg", "class_token": False}, {"pre_norm": True}],
)
def test_variants_of_the_token_sequence_make_no_difference(kwargs):
    model, batch = build(**kwargs), photos().read([5])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= 60


@settings(deadline=None, max_examples=6)
@given(patch=st.sampled_from([8, 16]), heads=st.integers(1, 3), depth=st.integers(1, 2), seed=st.integers(0, 50))
def test_any_shape_with_fewer_patches_than_width_is_inverted(patch, heads, depth, seed):
    model = build(seed=seed, patch_size=patch, embed_dim=32 * heads, num_heads=heads, depth=depth)
    batch = photos().read([seed])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= 45


def test_a_trained_model_leaks_no_less():
    model, pool = build("vit_micro"), photos()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    normalization = observe(model, Update(1, 0, "gradient", {}, 1)).normalization
    for step in range(20):
        batch = pool.read(range(16 * step, 16 * step + 16))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(normalization.normalize(batch.images)), batch.labels).backward()
        optimizer.step()
    batch = pool.read([400])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= 60


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_local_steps_are_no_defense(momentum):
    recipe = TrainingKnowledge("sgd", 0.05, momentum, 0.0, 5, None)
    model, batch = build("vit_micro"), photos().read([9])
    assert decibels(run(observe(model, delta(model, batch, recipe, double=True))).images, batch) >= 60


@pytest.mark.parametrize("is_granted", [True, False])
def test_weight_decay_does_not_hide_the_image(is_granted):
    model, batch = build("vit_micro"), photos().read([9])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.1, 5, None)
    granted = {"training": recipe} if is_granted else {}
    finding = run(observe(model, delta(model, batch, recipe, double=True), **granted))
    assert decibels(finding.images, batch) >= 60


def test_more_patches_than_width_are_completed_smoothly():
    model, batch = build("vit_micro", patch_size=4, embed_dim=60, num_heads=3), photos().read([17])
    finding = run(observe(model, gradient(model, batch)))
    assert decibels(finding.images, batch) >= best_control(batch) + 3
    assert any("exceed the width" in caution for caution in finding.cautions)


def test_two_images_are_told_by_the_residual():
    model, batch = build(), photos().read([1, 300])
    finding = run(observe(model, gradient(model, batch)))
    assert finding.trace["residual"] > 1e-3
    assert any("more than one image" in caution for caution in finding.cautions)


def test_another_clients_update_gives_another_image():
    model, batch, other = build(), photos().read([17]), photos().read([200])
    finding = run(observe(model, gradient(model, other)))
    assert decibels(finding.images, batch) <= best_control(batch) + 1


@pytest.mark.parametrize("multiplier", [1e-3, 1e-2, 1.0])
def test_noise_of_a_thousandth_of_the_norm_leaves_no_more_than_the_best_control(multiplier):
    model, pool = build(), photos()
    beyond = []
    for sample in (17, 100, 200, 333):
        batch = pool.read([sample])
        found = run(observe(model, noisy(gradient(model, batch), multiplier, sample))).images
        beyond.append(decibels(found, batch) - best_control(batch))
    assert sum(beyond) / len(beyond) <= 1


def test_noise_is_noticed_and_the_image_degrades_gracefully():
    model, batch = build(), photos().read([200])
    clean = gradient(model, batch)
    scores = [decibels(run(observe(model, noisy(clean, z))).images, batch) for z in (1e-6, 1e-5, 1e-4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= best_control(batch) + 3
    assert run(observe(model, noisy(clean, 1e-4))).cautions


@pytest.mark.parametrize("missing", ["pos_embed", "patch_embed.proj.weight"])
def test_what_is_not_shared_cannot_be_inverted(missing):
    model, batch = build("vit_micro"), photos().read([0])
    update = gradient(model, batch)
    tensors = {name: tensor for name, tensor in update.tensors.items() if name != missing}
    with pytest.raises(AttackRefusedError):
        run(observe(model, Update(1, 0, "gradient", tensors, 1)))


def test_an_update_of_zeros_and_an_adaptive_optimizer_are_refused():
    model, batch = build("vit_micro"), photos().read([0])
    update = gradient(model, batch)
    zeros = Update(1, 0, "gradient", {n: torch.zeros_like(t) for n, t in update.tensors.items()}, 1)
    with pytest.raises(AttackRefusedError):
        run(observe(model, zeros))
    adamw = TrainingKnowledge("adamw", 0.001, 0.0, 0.0, 1, None)
    with pytest.raises(AttackRefusedError, match="adamw"):
        run(observe(model, Update(1, 0, "delta", update.tensors, 1), training=adamw))


@pytest.mark.parametrize("params", [{"smoothness": 0.0}, {"smoothness": 1.5}, {"refinements": -1}])
def test_values_out_of_range_are_refused_by_name(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        PatchEmbedding(**params)
