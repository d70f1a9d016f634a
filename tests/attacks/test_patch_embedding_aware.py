"""Patch-embedding inversion against updates that a defense has passed."""

import dataclasses

import pytest
import torch
from fedsim_attacks.patch_embedding import PatchEmbedding
from fedsim_attacks.priors.color_edges import ColorEdges
from fedsim_attacks.update.jigsaw import restore
from fedsim_attacks.update.rounding import recognize
from fedsim_defenses.dp_noise import DPNoise
from fedsim_defenses.mjp import MJP
from fedsim_defenses.quantization import Quantization
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import best_control, build, decibels, delta, gradient, noisy, observe, photos

from fedsim.defense import LocalStep, knowledge_of
from fedsim.errors import AttackRefusedError
from fedsim.exchange import TrainingKnowledge, Update
from fedsim.federation.training import plain_step
from fedsim.models import normalization, patch_grid
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context

POOL = photos()
FEW = (200, 333, 431)
MANY = (0, 17, 100, 200, 333, 431, 50, 260, 5, 9, 41, 77, 123, 150, 180, 222, 300, 350, 390, 410)
THREE = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


def run(observation):
    return PatchEmbedding().run(observation, torch.Generator())


def rounded(update, format, rounding="nearest"):
    return Quantization(format=format, rounding=rounding).protect_update(
        update, client_context(), torch_generator(0, "test")
    )


def jigsaw(defense, batch, seed=0, model_seed=0, context=None):
    """Return a prepared model and the gradient of one masked batch on it."""
    model = build(seed=model_seed)
    with seeded(0, "test"):
        defense.prepare_model(model)
    step = LocalStep(model, normalization(model).normalize(batch.images), batch.labels, 0.0)
    defense.train_step(step, context or client_context(), torch_generator(seed, "jigsaw"), plain_step)
    tensors = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return model, Update(1, 0, "gradient", tensors, len(batch))


# Rounding


def rounded_score(format, sample):
    model, batch = build(seed=sample % 3), POOL.read([sample])
    finding = run(observe(model, rounded(gradient(model, batch), format)))
    assert finding.trace["rounding"] == format
    assert any(format in caution for caution in finding.cautions)
    assert not any("more than one image" in caution for caution in finding.cautions)
    return decibels(finding.images, batch)


@pytest.mark.parametrize(("format", "mean"), [("fp16", 47.0), ("bf16", 35.0)])
def test_a_image_comes_back_from_a_rounded_update(format, mean):
    assert sum(rounded_score(format, sample) for sample in FEW) / len(FEW) >= mean


@pytest.mark.slow
@pytest.mark.parametrize(("format", "mean", "least"), [("fp16", 45.0, 36.0), ("bf16", 35.0, 30.0)])
def test_twenty_images_come_back_from_rounded_updates_of_untrained_models(format, mean, least):
    scores = [rounded_score(format, sample) for sample in MANY]
    assert sum(scores) / len(scores) >= mean and min(scores) >= least


def int8_skill(sample, **kwargs):
    model, batch = build(seed=sample % 3, **kwargs), POOL.read([sample])
    finding = run(observe(model, rounded(gradient(model, batch), "int8")))
    assert finding.trace["rounding"] == "int8"
    return decibels(finding.images, batch) - best_control(batch)


@pytest.mark.slow
def test_int8_leaves_about_the_mean_color_where_the_class_token_sets_the_scale_and_a_image_where_none_does():
    beside = sum(int8_skill(sample) for sample in FEW) / len(FEW)
    alone = sum(int8_skill(sample, class_token=False, global_pool="avg") for sample in FEW) / len(FEW)
    assert 0 <= beside < 3
    assert alone >= 5


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8"])
def test_a_rounded_update_of_another_client_gives_no_more_than_the_best_control(format):
    model, batch, other = build(), POOL.read([17]), POOL.read([200])
    finding = run(observe(model, rounded(gradient(model, other), format)))
    assert decibels(finding.images, batch) <= best_control(batch) + 1


@pytest.mark.parametrize("format", ["fp16", "bf16"])
def test_two_images_are_told_from_one_after_rounding(format):
    model, batch = build(), POOL.read([1, 300])
    finding = run(observe(model, rounded(gradient(model, batch), format)))
    assert any("more than one image" in caution for caution in finding.cautions)


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_grid_is_recognized_and_what_is_granted_tells_how_entries_were_rounded(format, rounding):
    model, batch = build(), POOL.read([17])
    update = rounded(gradient(model, batch), format, rounding)
    blind = recognize(observe(model, update), THREE)
    knowledge = (knowledge_of("quantization", Quantization(format=format, rounding=rounding)),)
    told = recognize(observe(model, update, defenses=knowledge), THREE)
    assert blind is not None and told is not None and blind.format == told.format == format
    factor = 2.0 if rounding == "stochastic" else 1.0
    for name in THREE:
        torch.testing.assert_close(told.variances[name], factor * blind.variances[name])
    clean = gradient(model, batch).tensors
    for name in THREE if rounding == "nearest" and format != "int8" else ():
        error = (update.tensors[name] - clean[name]).double().square()
        assert float((error / blind.variances[name]).mean()) == pytest.approx(1, abs=0.15)


def test_an_unrounded_or_noisy_update_lies_on_no_grid():
    model, batch = build(), POOL.read([17])
    update = gradient(model, batch)
    assert recognize(observe(model, update), THREE) is None
    assert recognize(observe(model, noisy(rounded(update, "fp16"), 1e-4)), THREE) is None


def test_a_delta_shows_the_rounding_of_its_weights_and_a_wider_one_before():
    model, batch = build(), POOL.read([431])
    recipe = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 1, None)
    plain = delta(model, batch, recipe)
    assert recognize(observe(model, plain), THREE).format == "float32"
    assert recognize(observe(model, delta(model, batch, recipe, double=True)), THREE) is None
    start = dict(model.named_parameters())
    sent = {n: start[n].detach() + t for n, t in rounded(plain, "fp16").tensors.items()}
    update = dataclasses.replace(plain, tensors={n: t - start[n].detach() for n, t in sent.items()})
    finding = run(observe(model, update))
    assert finding.trace["rounding"] == "fp16"
    assert decibels(finding.images, batch) >= best_control(batch) + 15


def test_small_steps_of_sgd_cost_less_when_the_rounding_of_the_weights_is_weighed():
    model, batch = build(), POOL.read([0])
    finding = run(observe(model, delta(model, batch, TrainingKnowledge("sgd", 0.001, 0.0, 0.0, 1, None))))
    assert finding.trace["rounding"] == "float32"
    assert decibels(finding.images, batch) >= 40


# Clipping


@settings(deadline=None, max_examples=3)
@given(clip_norm=st.floats(1e-3, 10))
def test_clipping_is_a_common_factor_and_hides_nothing(clip_norm):
    model, batch = build("vit_micro"), POOL.read([9])
    update = gradient(model, batch)
    clipped = DPNoise(clip_norm=clip_norm).protect_update(update, client_context(), torch.Generator())
    assert decibels(run(observe(model, clipped)).images, batch) >= 60


# Masked jigsaw


@pytest.mark.parametrize(
    ("gamma", "mean"),
    [(0.1, 27.0), pytest.param(0.27, 22.0, marks=pytest.mark.slow), pytest.param(0.5, 18.5, marks=pytest.mark.slow)],
)
def test_the_jigsaw_is_undone_as_far_as_the_masked_span_allows(gamma, mean):
    scores = []
    for sample in FEW:
        batch = POOL.read([sample])
        model, update = jigsaw(MJP(gamma=gamma), batch, sample, sample % 3)
        finding = run(observe(model, update))
        assert finding.trace["masked_patches"] >= 2
        assert finding.trace["localization_weight"] == pytest.approx(0.01, rel=1e-4)
        assert any("share the unknown position" in caution for caution in finding.cautions)
        assert not any("more than one image" in caution for caution in finding.cautions)
        scores.append(decibels(finding.images, batch))
    assert sum(scores) / len(scores) >= mean


def test_across_the_span_of_the_masked_patches_the_others_are_exact():
    batch = POOL.read([431])
    model, update = jigsaw(MJP(gamma=0.1), batch)
    finding = run(observe(model, update))
    hidden = ~update.tensors["pos_embed"][0, 1:].any(dim=1)
    true, found = (patch_grid(model).cut(images)[0].double() for images in (batch.images, finding.images))
    masked = true[hidden]
    span = torch.linalg.svd(masked - masked.mean(0), full_matrices=False).Vh[: int(hidden.sum()) - 1]
    error = (found - true)[~hidden]
    across = error - error @ span.T @ span
    # A median, because pixels that leave [0, 1] are clamped.
    assert float(across.square().mean(1).median()) < 1e-6 * float(error.square().mean(1).median())


@pytest.mark.parametrize("dal", ["none", "linear", "nonlinear", "pca"])
def test_the_localization_gradient_is_subtracted_and_masked_rows_get_their_mean(dal):
    batch = POOL.read([17])
    model, update = jigsaw(MJP(gamma=0.2, dal=dal, dal_weight=0.5), batch)
    _, plain = jigsaw(MJP(gamma=0.2, dal="none"), batch)
    tensors = {name: tensor.double() for name, tensor in update.tensors.items()}
    restored, occlusion = restore(model, tensors, tensors["pos_embed"][0, 1:])
    assert occlusion.localization == pytest.approx(0.0 if dal == "none" else 0.5, rel=1e-4)
    expected = plain.tensors["pos_embed"][0, 1:].double()
    scale = float(expected.abs().max())
    torch.testing.assert_close(restored[~occlusion.hidden], expected[~occlusion.hidden], rtol=0, atol=1e-3 * scale)
    torch.testing.assert_close(restored.sum(0), tensors["patch_embed.proj.bias"], rtol=0, atol=1e-3 * scale)


def test_the_jigsaw_and_rounding_together_leave_a_image_still():
    batch = POOL.read([431])
    model, update = jigsaw(MJP(gamma=0.1), batch)
    finding = run(observe(model, rounded(update, "fp16")))
    assert finding.trace["rounding"] == "fp16" and finding.trace["masked_patches"] >= 2
    assert decibels(finding.images, batch) >= best_control(batch) + 4


def test_a_masked_update_of_another_client_gives_no_more_than_the_best_control():
    batch, other = POOL.read([17]), POOL.read([200])
    model, update = jigsaw(MJP(gamma=0.1), other)
    assert decibels(run(observe(model, update)).images, batch) <= best_control(batch) + 1


def test_two_masked_images_are_told_from_one():
    model, update = jigsaw(MJP(gamma=0.1), POOL.read([1, 300]))
    finding = run(observe(model, update))
    assert any("more than one image" in caution for caution in finding.cautions)


def test_a_client_without_the_jigsaw_on_a_prepared_model_is_inverted_as_ever():
    model, batch = build(), POOL.read([17])
    MJP().prepare_model(model)
    finding = run(observe(model, gradient(model, batch)))
    assert decibels(finding.images, batch) >= 60
    assert finding.trace["masked_patches"] == 0 and finding.cautions == ()
    noise = run(observe(model, noisy(gradient(model, batch), 1e-3)))
    assert not any("unknown position" in caution for caution in noise.cautions)


@pytest.mark.parametrize(
    ("defense", "round", "masked"),
    [
        (MJP(gamma=0.3, warmup=0.5), 2, False),
        (MJP(gamma=0.3, warmup=0.5), 3, True),
        (MJP(gamma=0.3, warmup=0.5, rise="linear"), 1, False),
        (MJP(gamma=0.3, warmup=0.5, rise="linear"), 2, True),
        (MJP(gamma=0.3, p_apply=0.0), 1, False),
        (MJP(gamma=0.3, p_apply=0.0, dal="linear"), 3, False),
        (MJP(gamma=0.3, p_apply=0.0, dal="pca"), 3, False),
    ],
)
def test_what_is_told_of_a_schedule_spoils_no_update_that_goes_out_unmasked(defense, round, masked):
    batch = POOL.read([17])
    model, update = jigsaw(defense, batch, context=client_context(round=round, rounds=4))
    finding = run(observe(model, update, defenses=(knowledge_of("mjp", defense),)))
    assert (finding.trace["masked_patches"] > 0) == masked
    assert (decibels(finding.images, batch) >= 60) != masked


def test_a_shuffle_without_unknown_position_stays_and_is_named_where_defenses_are_granted():
    batch = POOL.read([17])
    defense = MJP(gamma=0.3, unknown=False)
    model, update = jigsaw(defense, batch)
    told = (knowledge_of("mjp", defense),)
    finding = run(observe(model, update, defenses=told))
    assert finding.trace["defenses_told"] == ["mjp"]
    assert any("wrong places" in caution for caution in finding.cautions)
    assert run(observe(model, update)).trace["defenses_told"] is None


# The prior


def test_the_fitted_prior_finds_that_hue_varies_less_than_brightness():
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64).cumsum(-1).expand(1, 3, 16, 16)
    images = 0.1 * grey + 0.01 * torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    precision = ColorEdges.fitted(images, 0.1).precision
    brightness, hue = torch.ones(3, dtype=torch.float64) / 3**0.5, torch.tensor([1.0, -1.0, 0.0]).double() / 2**0.5
    assert float(hue @ precision @ hue) > 10 * float(brightness @ precision @ brightness)


def test_the_gradient_of_the_fitted_prior_is_symmetric_positive_and_linear():
    generator = torch.Generator().manual_seed(0)
    prior = ColorEdges.fitted(torch.rand(1, 3, 8, 8, generator=generator).double(), 0.1)
    one, other = (torch.randn(1, 3, 8, 8, generator=generator).double() for _ in range(2))
    assert float((one * prior.gradient(other)).sum()) == pytest.approx(float((other * prior.gradient(one)).sum()))
    assert float((one * prior.gradient(one)).sum()) > 0
    torch.testing.assert_close(prior.gradient(one + other), prior.gradient(one) + prior.gradient(other))
    assert torch.isfinite(ColorEdges.fitted(torch.zeros(1, 3, 8, 8).double(), 0.1).precision).all()


# Bad input


@pytest.mark.parametrize("name", THREE)
def test_entries_that_are_not_finite_are_refused_by_name(name):
    model, batch = build("vit_micro"), POOL.read([0])
    update = gradient(model, batch)
    broken = update.tensors[name].clone()
    broken.view(-1)[3] = float("nan")
    with pytest.raises(AttackRefusedError, match="not finite"):
        run(observe(model, dataclasses.replace(update, tensors={**update.tensors, name: broken})))
