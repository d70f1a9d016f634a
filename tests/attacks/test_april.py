import functools

import pytest
import torch
from fedsim_attacks.april import April
from fedsim_attacks.closed_form.april_system import read_april_system
from fedsim_attacks.closed_form.bilinear import complete_bilinear, decompose_bilinear
from fedsim_attacks.closed_form.first_attention import first_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import best_control, build, decibels, delta, gradient, noisy, observe
from vit_cases import build_april as build_anew
from vit_cases import photos as load_photos

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import TrainingKnowledge, Update

photos, build_april = functools.cache(load_photos), functools.cache(build_anew)


def run(observation):
    return April().run(observation, torch.Generator().manual_seed(0))


def altered(update, **tensors):
    """Return the update with tensors exchanged, or left out where None is given; __ stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in {**update.tensors, **named}.items() if tensor is not None}
    return Update(1, 0, update.kind, kept, update.num_examples)


# The identity and its solution


@pytest.mark.parametrize(
    "kwargs", [{}, {"qk_norm": True}, {"qkv_bias": False}, {"no_embed_class": True, "reg_tokens": 2}, {"num_heads": 1}]
)
def test_pulled_back_weight_gradients_are_token_gradients_times_inputs(kwargs):
    model = build_anew(**kwargs).double()
    images = models.normalization(model).normalize(photos().read([7]).images).double()
    seen = []
    model.blocks[0].attn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    tensors = models.gradient_of(model, images, torch.tensor([3]))
    rows = tensors["pos_embed"][0]
    if len(rows) < seen[0].shape[1]:
        rows = torch.cat([tensors["cls_token"][0], tensors["reg_token"][0], rows])
    pulled = model.blocks[0].attn.qkv.weight.T @ tensors["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(pulled, rows.T @ seen[0][0], rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(
    count=st.integers(1, 12),
    width=st.integers(1, 12),
    patch=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_the_bilinear_system_gives_back_what_its_equations_hold(count, width, patch, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, width), (width, patch), (count, patch))
    tokens, projection, patches = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    products = tokens.T @ patches @ projection.T
    system = decompose_bilinear(tokens, projection, products, 0.0)
    assert system.unexplained <= 1e-9 * float(products.norm())
    weights = torch.full((patch,), 1e-20, dtype=torch.float64)
    found = complete_bilinear(system, weights, lambda given: given).patches
    torch.testing.assert_close(tokens.T @ found @ projection.T, products, rtol=1e-6, atol=1e-6)
    if count <= width and patch <= width:
        torch.testing.assert_close(found, patches, rtol=1e-3, atol=1e-3)
    else:
        assert found.norm() <= patches.norm() + 1e-6


def test_directions_at_the_noise_edge_hold_no_equation():
    tokens = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    square = torch.eye(3, dtype=torch.float64)
    system = decompose_bilinear(tokens, square, tokens, noise_edge=1.5)
    assert (system.gains != 0).any(1).tolist() == [True, True, False]
    assert system.unexplained == pytest.approx(1)


def test_a_gradient_in_double_precision_gives_the_image_exactly():
    model, batch = build_april(), photos().read([23])
    images = models.normalization(model).normalize(batch.images).double()
    tensors = models.gradient_of(build_anew().double(), images, batch.labels)
    finding = run(observe(model, Update(1, 0, "gradient", tensors, 1)))
    assert decibels(finding.images, batch) >= 100
    assert finding.trace["determined"] == 1


# What comes back


@pytest.mark.parametrize("sample", [0, 17, 200, 369, 431])
def test_one_image_comes_back_from_its_gradient(sample):
    model, batch = build_april(), photos().read([sample])
    finding = run(observe(model, gradient(model, batch)))
    assert decibels(finding.images, batch) >= 40
    assert finding.trace["residual"] < 1e-5
    assert finding.cautions == ()


@pytest.mark.slow
def test_twenty_images_come_back_from_a_model_of_few_heads():
    model, pool = build_april(num_heads=4), photos()
    scores = []
    for sample in range(0, 400, 20):
        batch = pool.read([sample])
        scores.append(decibels(run(observe(model, gradient(model, batch))).images, batch))
    assert sum(scores) / len(scores) >= 45
    assert min(scores) >= 38


@pytest.mark.parametrize(
    "kwargs",
    [{"qk_norm": True}, {"qkv_bias": False}, {"embed_dim": 384, "depth": 4, "num_heads": 6}, {"init_values": 0.1}],
)
def test_variants_of_the_attention_make_no_difference(kwargs):
    model, batch = build_april(**kwargs), photos().read([5])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= 40


@pytest.mark.parametrize(
    "kwargs", [{"reg_tokens": 2}, {"no_embed_class": True}, {"global_pool": "avg", "class_token": False}]
)
def test_variants_of_the_token_sequence_stay_far_above_the_controls(kwargs):
    model, batch = build_april(**kwargs), photos().read([5])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= best_control(batch) + 10


@settings(deadline=None, max_examples=5)
@given(
    heads=st.sampled_from([6, 8, 12]),
    width=st.sampled_from([192, 240]),
    depth=st.integers(2, 3),
    seed=st.integers(0, 50),
)
def test_any_shape_with_a_width_above_patches_and_values_is_inverted(heads, width, depth, seed):
    model, batch = build_april(seed, embed_dim=width, num_heads=heads, depth=depth), photos().read([seed])
    assert decibels(run(observe(model, gradient(model, batch))).images, batch) >= 40


@pytest.mark.parametrize("kwargs", [{"embed_dim": 64, "num_heads": 4}, {"patch_size": 4}])
def test_what_rounding_and_width_hide_is_filled_smoothly_and_said(kwargs):
    model, batch = build_april(**kwargs), photos().read([17])
    finding = run(observe(model, gradient(model, batch)))
    assert decibels(finding.images, batch) >= best_control(batch) + 3
    assert finding.trace["determined"] < 0.9
    assert any("settles" in caution for caution in finding.cautions)


def test_a_smooth_filling_beats_the_paper_s_pseudo_inverse():
    model, batch = build_april(num_heads=4), photos().read([369])
    seen = observe(model, gradient(model, batch))
    system = read_april_system(seen, seen.normalization, torch.Generator().manual_seed(0))
    inverted = torch.linalg.pinv(system.tokens.T) @ (system.products - system.known)
    patches = inverted @ torch.linalg.pinv(system.attention.projection).T
    plain = (system.attention.grid.join(patches[None]) + 0.5).clamp(0, 1).float()
    assert decibels(run(seen).images, batch) >= decibels(plain, batch) + 10


# Deltas


@pytest.mark.parametrize("is_granted", [True, False])
@pytest.mark.parametrize("exempt", [(), ("pos_embed", "cls_token")])
def test_weight_decay_does_not_hide_the_image(is_granted, exempt):
    model, batch = build_april(), photos().read([9])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.1, 1, None, exempt)
    granted = {"training": recipe} if is_granted else {}
    finding = run(observe(model, delta(model, batch, recipe), **granted))
    assert decibels(finding.images, batch) >= 40


def test_local_steps_move_the_weights_and_are_said():
    model, batch = build_april(), photos().read([9])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 5, None)
    finding = run(observe(model, delta(model, batch, recipe), training=recipe))
    assert any("several local steps" in caution for caution in finding.cautions)


def test_adaptive_optimizers_are_refused():
    model, batch = build_april(), photos().read([0])
    adamw = TrainingKnowledge("adamw", 0.001, 0.0, 0.0, 1, None)
    update = Update(1, 0, "delta", gradient(model, batch).tensors, 1)
    with pytest.raises(AttackRefusedError, match="adamw"):
        run(observe(model, update, training=adamw))


# Doubts


def test_two_images_are_told_by_the_residual():
    model, batch = build_april(), photos().read([1, 300])
    finding = run(observe(model, gradient(model, batch)))
    assert finding.trace["residual"] > 1e-2
    assert any("more than one image" in caution for caution in finding.cautions)


def test_another_clients_update_gives_another_image():
    model, batch, other = build_april(), photos().read([17]), photos().read([200])
    finding = run(observe(model, gradient(model, other)))
    assert decibels(finding.images, batch) <= best_control(batch) + 1


@pytest.mark.parametrize("kwargs", [{}, {"qk_norm": True}, {"qkv_bias": False}])
def test_noise_is_measured(kwargs):
    model, batch = build_april(**kwargs), photos().read([0])
    update = gradient(model, batch)
    seen = observe(model, noisy(update, 1e-4))
    level = read_april_system(seen, seen.normalization, torch.Generator().manual_seed(0)).noise.level
    assert level == pytest.approx(1e-4 * update.norm(), rel=0.25)


def test_noise_is_noticed_and_the_image_degrades_gracefully():
    model, batch = build_april(), photos().read([200])
    clean = gradient(model, batch)
    findings = [run(observe(model, noisy(clean, z))) for z in (1e-7, 1e-5, 1e-2)]
    scores = [decibels(finding.images, batch) for finding in findings]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= best_control(batch) + 3
    assert scores[2] <= best_control(batch) + 1
    assert all(any("Noise of" in caution for caution in finding.cautions) for finding in findings[1:])


def test_hidden_entries_are_no_noise():
    model, batch = build_april(), photos().read([3])
    update = gradient(model, batch)
    positions = update.tensors["pos_embed"].clone()
    positions[:, 1:5] = 0
    finding = run(observe(model, altered(update, pos_embed=positions)))
    assert any("hidden" in caution for caution in finding.cautions)
    assert any("4 of 16 patches have no gradient" in caution for caution in finding.cautions)


def test_dropout_at_the_input_of_the_attention_is_a_caution():
    model, batch = build_april(pos_drop_rate=0.1), photos().read([3])
    update = gradient(model, batch)
    assert any("drops 10%" in caution for caution in run(observe(model, update)).cautions)
    assert run(observe(model, update, train_mode=False)).cautions == ()


# Refusals


@pytest.mark.parametrize("kwargs", [{}, {"pre_norm": True}, {"qk_norm": True}])
def test_a_stock_model_is_refused_with_what_to_do(kwargs):
    model, batch = build("vit_nano", **kwargs), photos().read([0])
    with pytest.raises(AttackRefusedError, match=r"patch_embedding.*model\.first_block: april"):
        run(observe(model, gradient(model, batch)))


def test_a_residual_alone_is_enough_to_refuse():
    model, batch = build("vit_nano"), photos().read([0])
    model.blocks[0].norm1 = torch.nn.Identity()
    with pytest.raises(AttackRefusedError, match="patch_embedding"):
        run(observe(model, gradient(model, batch)))


def test_a_layer_norm_before_the_blocks_is_enough_to_refuse():
    model, batch = build_april(pre_norm=True), photos().read([0])
    with pytest.raises(AttackRefusedError, match="layer norm"):
        run(observe(model, gradient(model, batch)))


def test_the_image_on_which_the_model_is_tried_does_not_matter():
    model = build_april()
    seen = observe(model, gradient(model, photos().read([0])))
    one, two = (first_attention(seen, seen.normalization, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(one.inputs, two.inputs)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"pos_embed": None}, "gradient of pos_embed is missing"),
        ({"blocks__0__attn__qkv__weight": None}, "gradient of blocks.0.attn.qkv.weight is missing"),
        ({"pos_embed": torch.zeros(1, 17, 192)}, "gradient of pos_embed is zero"),
        ({"pos_embed": torch.full((1, 17, 192), float("nan"))}, "not finite"),
        ({"blocks__0__attn__qkv__weight": torch.zeros(576, 192)}, "gradient of blocks.0.attn.qkv.weight is zero"),
        ({"pos_embed": torch.eye(17, 192)[None] * torch.eye(17, 1)}, "patches' position embeddings is zero"),
    ],
)
def test_what_is_frozen_or_not_shared_is_named(tensors, message):
    model, batch = build_april(), photos().read([0])
    with pytest.raises(AttackRefusedError, match=message):
        run(observe(model, altered(gradient(model, batch), **tensors)))


def test_prefix_tokens_without_a_position_have_to_be_shared():
    model, batch = build_april(no_embed_class=True), photos().read([0])
    with pytest.raises(AttackRefusedError, match="prefix tokens"):
        run(observe(model, altered(gradient(model, batch), cls_token=None)))


def test_a_model_without_learned_positions_is_refused():
    model, batch = build_april(pos_embed="none"), photos().read([0])
    with pytest.raises(AttackRefusedError, match="no learned position embedding"):
        run(observe(model, gradient(model, batch)))


@pytest.mark.parametrize("params", [{"smoothness": 0.0}, {"smoothness": 1.5}, {"refinements": -1}])
def test_values_out_of_range_are_refused_by_name(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        April(**params)
