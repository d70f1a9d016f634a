"""What all recipes of adversarial training share."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fedsim_defenses._adversarial import AdversarialRecipe, IteratedRecipe, calibrated, floor_of
from fedsim_defenses._evasion import pgd
from fedsim_defenses.adversarial_training import AdversarialTraining
from fedsim_defenses.ard import ARD
from fedsim_defenses.clipping import Clipping
from fedsim_defenses.dp_noise import DPNoise
from fedsim_defenses.dp_sgd import DPSGD
from fedsim_defenses.mart import MART
from fedsim_defenses.mjp import MJP
from fedsim_defenses.prm import PRM
from fedsim_defenses.trades import TRADES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.defense import ClientContext, LocalStep
from fedsim.errors import ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.federation.training import plain_step
from fedsim.models import build, normalization
from fedsim.planning import preparation as planning
from fedsim.scenario import ModelPart, parse
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context
from fedsim.testing.fixtures import random_images

RECIPES = [AdversarialTraining, ARD, PRM, TRADES, MART]
SHORT: dict[str, Any] = {"steps": 2}
POISSON = client_context().training.__class__("sgd", 0.01, 0.0, 0.0, 1, None, sampling="poisson")


def tiny(**kwargs: object) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 2}
    return build(ModelPart(name="vit_nano", kwargs={**sizes, **kwargs}), 10, 8, 0)


def batch(model: nn.Module, count: int = 3, seed: int = 0, side: int = 8) -> LocalStep:
    pictures = random_images(torch_generator(seed, "batch"), count, image_shape=(3, side, side))
    return LocalStep(model, normalization(model).normalize(pictures.images), pictures.labels, 0.0)


def at(step: LocalStep, progress: float) -> LocalStep:
    return LocalStep(step.model, step.images, step.labels, progress)


def take(
    recipe: AdversarialRecipe, step: LocalStep, context: ClientContext | None = None, seed: int = 0
) -> tuple[Tensor, list[LocalStep], dict[str, Tensor]]:
    """Return the loss, the steps that were passed on, and the gradients."""
    passed: list[LocalStep] = []

    def proceed(step: LocalStep) -> Tensor:
        passed.append(step)
        return plain_step(step)

    step.model.zero_grad()
    loss = recipe.train_step(step, context or client_context(), torch_generator(seed, "step"), proceed)
    return loss, passed, {n: p.grad.clone() for n, p in step.model.named_parameters() if p.grad is not None}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_step_equals_plain_training_on_images_that_pgd_perturbs() -> None:
    model = tiny()
    step = batch(model)
    loss, (passed,), gradients = take(AdversarialTraining(), step)
    pixels = normalization(model).denormalize(step.images)
    moved = pgd(
        PixelModel(model, normalization(model)),
        pixels,
        step.labels,
        8 / 255,
        step=2 / 255,
        steps=7,
        generator=torch_generator(0, "step"),
    )
    assert torch.equal(passed.images, normalization(model).normalize(moved))
    model.zero_grad()
    expected = plain_step(LocalStep(model, passed.images, step.labels, 0.0))
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients[name], p.grad) for name, p in model.named_parameters())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda cls: cls.__name__)
def test_perturbations_stay_within_epsilon_in_pixels_and_raise_the_loss(recipe: type[IteratedRecipe]) -> None:
    model = tiny()
    step = at(batch(model, 4), 0.9)
    moved = recipe(epsilon=0.05)._perturbed(step, client_context(), 0.05, torch_generator(0, "step"))
    own = normalization(model)
    distance = own.denormalize(moved) - own.denormalize(step.images)
    assert 0.02 < float(distance.abs().max()) <= 0.05 + 1e-5
    assert -1e-5 <= float(own.denormalize(moved).min()) and float(own.denormalize(moved).max()) <= 1 + 1e-5
    losses = [nn.functional.cross_entropy(model(images), step.labels) for images in (step.images, moved)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("prm", [False, True])
@pytest.mark.parametrize("recipe", [ARD, PRM])
def test_keeping_everything_equals_plain_adversarial_training_bit_for_bit(
    recipe: type[IteratedRecipe], prm: bool
) -> None:
    step = batch(tiny())
    both = {"prm" if recipe is ARD else "ard": prm}
    plain = take(AdversarialTraining(steps=4), step)
    kept = take(recipe(steps=4, rise=0.0, keep=1.0, **both), step)
    late = take(recipe(steps=4, **both), at(step, 0.25))
    assert torch.equal(plain[0], kept[0]) and torch.equal(plain[0], late[0])
    assert same(plain[2], kept[2]) and same(plain[2], late[2])
    early = take(recipe(steps=4, **both), at(step, 0.05))
    assert not same(plain[2], early[2])


def test_ard_and_prm_name_the_same_recipe_when_each_has_the_other() -> None:
    step = at(batch(tiny()), 0.1)
    results = [
        take(recipe, step)[2]
        for recipe in (ARD(prm=True), PRM(ard=True), AdversarialTraining(ard=True, prm=True, steps=10))
    ]
    assert same(results[0], results[1]) and same(results[0], results[2])
    assert not same(results[0], take(ARD(), step)[2])


def test_ard_without_attention_attacks_a_model_with_detached_attention() -> None:
    class Detached(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor, **given: object) -> Tensor:
            return self.attention(x, **given).detach()

    pooled: dict[str, object] = {"class_token": False, "global_pool": "avg"}
    model, detached = tiny(**pooled), tiny(**pooled)
    for block in detached.blocks:
        block.attn = Detached(block.attn)
    moved = take(ARD(rise=0.0, keep=0.0), batch(model))[1][0].images
    # Gates draw after the start, so that both begin at the same one.
    assert torch.equal(moved, take(AdversarialTraining(steps=10), batch(detached))[1][0].images)
    assert not torch.equal(moved, take(AdversarialTraining(steps=10), batch(model))[1][0].images)


def test_a_class_token_without_attention_leaves_the_random_start() -> None:
    model = tiny()
    step, own = batch(model), normalization(model)
    moved = take(ARD(rise=0.0, keep=0.0), step)[1][0].images
    pixels, draws = own.denormalize(step.images), torch_generator(0, "step")
    start = pixels + (2 * torch.rand(pixels.shape, generator=draws) - 1) * 8 / 255
    torch.testing.assert_close(own.denormalize(moved), start.clamp(0, 1), atol=1e-5, rtol=0)


def test_prm_that_masks_everything_is_one_step_from_the_image_and_with_the_final_mask_the_image() -> None:
    model = tiny()
    step = batch(model)
    own = normalization(model)
    for final, most in ((False, 2 / 255), (True, 0.0)):
        recipe = PRM(rise=0.0, keep=0.0, steps=3, final_mask=final)
        moved = take(recipe, step)[1][0].images
        assert float((own.denormalize(moved) - own.denormalize(step.images)).abs().max()) == pytest.approx(
            most, abs=1e-5
        )


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0, 1), first=st.floats(0, 0.999), second=st.floats(0, 0.999))
def test_schedules_rise_and_end_at_their_value(share: float, first: float, second: float) -> None:
    low, high = sorted((first, second))
    recipe = ARD(rise=share, keep=0.9, warmup=min(share, 0.99))
    assert 0 <= recipe.keep_at(low) <= recipe.keep_at(high) <= 0.9
    assert 0 <= recipe.epsilon_at(low) <= recipe.epsilon_at(high) <= recipe.epsilon
    assert recipe.keep_at(share) == pytest.approx(0.9) if share > 1e-300 else True
    assert ARD(rise=0.0, keep=0.5).keep_at(0.0) == 0.5
    assert AdversarialTraining().epsilon_at(0.0) == 8 / 255


@pytest.mark.parametrize("recipe", [AdversarialTraining, ARD, PRM])
def test_while_epsilon_is_zero_a_step_is_the_plain_one_bit_for_bit(recipe: type[IteratedRecipe]) -> None:
    step = batch(tiny())
    _, (passed,), gradients = take(recipe(warmup=0.5), step)
    assert torch.equal(passed.images, step.images)
    step.model.zero_grad()
    plain_step(step)
    assert all(torch.equal(gradients[name], p.grad) for name, p in step.model.named_parameters())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("soft", [False, True])
def test_steps_are_finite_on_single_constant_and_duplicate_images(recipe: type[IteratedRecipe], soft: bool) -> None:
    model = tiny()
    shades = torch.tensor([0.0, 1.0, 0.5])[:, None, None, None].expand(3, 3, 8, 8)
    for images in (shades[:1], shades, shades[2:].repeat(4, 1, 1, 1)):
        hard = torch.arange(len(images)) % 10
        labels = 0.9 * nn.functional.one_hot(hard, 10) + 0.01 if soft else hard
        step = LocalStep(model, normalization(model).normalize(images), labels, 0.1)
        loss, _, gradients = take(recipe(**SHORT, calibration=1.0), step)
        assert math.isfinite(loss)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda cls: cls.__name__)
def test_an_exception_leaves_nothing_on_the_model(recipe: type[IteratedRecipe]) -> None:
    model = tiny(attn_drop_rate=0.1).train()
    model.blocks[0].train(False)
    modes = [module.training for module in model.modules()]
    options = {name: True for name in ("ard", "prm") if hasattr(recipe, name)}
    step = batch(model)

    def fails(_: LocalStep) -> Tensor:
        raise RuntimeError("planted")

    def breaks(*_: object) -> None:
        raise RuntimeError("planted")

    for proceed in (fails, plain_step):
        with pytest.raises(RuntimeError, match="planted"):
            handle = model.head.register_forward_hook(breaks) if proceed is plain_step else None
            try:
                recipe(**options, calibration=1.0).train_step(
                    step, client_context(), torch_generator(0, "step"), proceed
                )
            finally:
                if handle is not None:
                    handle.remove()
        assert hooks_of(model) == 0
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_attack_is_in_evaluation_mode_and_the_update_in_the_clients() -> None:
    model = tiny(drop_rate=0.2).train()
    modes = []
    model.register_forward_pre_hook(lambda *_: modes.append(model.training))
    take(AdversarialTraining(steps=3), batch(model))
    assert modes == [False, False, False, True]


def test_the_attack_leaves_running_statistics_to_the_update() -> None:
    def normalized() -> nn.Module:
        with seeded(0, "test"):
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        return model.train()

    model, plain = normalized(), normalized()
    pictures = random_images(torch_generator(0, "batch"), 4, image_shape=(3, 8, 8))
    _, (passed,), _ = take(AdversarialTraining(), LocalStep(model, 2 * pictures.images - 1, pictures.labels, 0.0))
    plain_step(LocalStep(plain, passed.images, passed.labels, 0.0))
    assert all(torch.equal(own, other) for own, other in zip(model.buffers(), plain.buffers(), strict=True))
    assert bool(model[1].running_mean.any())


@pytest.mark.parametrize(
    "part",
    [
        ModelPart(name="convnet"),
        ModelPart(name="vit_nano", lora={"rank": 2}),
        ModelPart(name="vit_nano", precode={"size": 8}),
        ModelPart(name="deit_tiny_distilled_patch16_224", kwargs={"patch_size": 8, "depth": 1, "embed_dim": 48}),
    ],
    ids=["convnet", "lora", "precode", "distilled"],
)
def test_recipes_train_what_each_kind_of_model_trains(part: ModelPart) -> None:
    model = build(part, 10, 32, 0)
    step = batch(model, 2, side=32)
    plain_step(step)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for recipe in (AdversarialTraining(**SHORT), TRADES(**SHORT), MART(**SHORT)):
        _, _, gradients = take(recipe, step)
        assert set(gradients) == trained
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())


def test_frozen_parameters_stay_frozen_and_get_no_gradient() -> None:
    model = tiny()
    model.pos_embed.requires_grad_(False)
    for recipe in (AdversarialTraining(**SHORT), TRADES(**SHORT), MART(**SHORT)):
        assert "pos_embed" not in take(recipe, batch(model))[2]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_calibration_adds_the_logarithm_of_the_class_counts_to_logits_in_attack_and_update() -> None:
    model, context = tiny(), client_context(class_counts=(4, 0, 1, 3, 0, 9, 0, 0, 2, 1))
    offsets = 0.5 * torch.tensor([4.0, 1, 1, 3, 1, 9, 1, 1, 2, 1]).log()
    step = batch(model)
    plain = model(step.images)
    with calibrated(model, offsets):
        torch.testing.assert_close(model(step.images), plain + offsets)
    assert torch.equal(model(step.images), plain) and hooks_of(model) == 0
    calls: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, inputs, logits: calls.append(logits.detach()))
    loss, (passed,), _ = take(AdversarialTraining(steps=1, calibration=0.5), step, context)
    handle.remove()
    expected = nn.functional.cross_entropy(model(passed.images) + offsets, step.labels)
    torch.testing.assert_close(loss, expected.detach())
    assert len(calls) == 2  # one of the attack, one of the update


def test_two_recipes_on_a_client_are_refused() -> None:
    for first, second in ((ARD(), PRM()), (AdversarialTraining(), TRADES()), (MART(), MART())):
        with pytest.raises(
            ScenarioError, match=r"defenses: .* would each attack what the other made\. Give a client one"
        ):
            first.check(tiny(), client_context(), [Clipping(), second])


def test_ard_needs_attention_with_a_way_around_it_and_prm_needs_patches() -> None:
    convnet = build(ModelPart(name="convnet"), 10, 32, 0)
    april = build(ModelPart(name="vit_nano", first_block="april"), 10, 32, 0)
    for recipe in (ARD(), AdversarialTraining(ard=True), TRADES(ard=True)):
        with pytest.raises(ScenarioError, match=r"model\.name: ConvNet has no attention that ard could drop"):
            recipe.check(convnet, client_context(), [])
        with pytest.raises(ScenarioError, match=r"model\.first_block: got april"):
            recipe.check(april, client_context(), [])
    for recipe in (PRM(), AdversarialTraining(prm=True)):
        with pytest.raises(ScenarioError, match=r"model\.name: ConvNet does not cut images into patches\. prm needs"):
            recipe.check(convnet, client_context(), [])
    AdversarialTraining().check(convnet, client_context(), [])


def test_calibration_is_refused_beside_a_guarantee_for_single_images_alone() -> None:
    context = client_context(training=POISSON)
    with pytest.raises(ScenarioError, match=r"calibration 1 beside DPSGD: the number of images of each class"):
        AdversarialTraining(calibration=1.0).check(tiny(), context, [DPSGD()])
    AdversarialTraining(calibration=1.0).check(tiny(), context, [DPSGD(noise_multiplier=0.0), DPNoise(clip_norm=1.0)])
    AdversarialTraining().check(tiny(), context, [DPSGD()])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda cls: cls.__name__)
def test_dp_sgd_accepts_the_recipes_whose_whole_gradient_it_clips(recipe: type[IteratedRecipe]) -> None:
    def check() -> None:
        DPSGD().check(tiny(), client_context(training=POISSON), [recipe()])

    if recipe in (TRADES, MART):
        with pytest.raises(ScenarioError, match="does not say that it treats each image alone"):
            check()
    else:
        check()


@pytest.mark.parametrize("recipe", [AdversarialTraining(), ARD(), PRM()], ids=lambda recipe: type(recipe).__name__)
def test_an_image_is_perturbed_alone_whatever_else_is_in_the_batch(recipe: IteratedRecipe) -> None:
    model = tiny()
    step = at(batch(model, 3), 0.9)
    others = batch(model, 3, seed=1)
    mixed = LocalStep(model, torch.cat([step.images[:1], others.images[1:]]), step.labels, 0.9)
    first, second = take(recipe, step)[1][0].images[0], take(recipe, mixed)[1][0].images[0]
    assert float((first - second).abs().max()) < 1e-5 or float((first == second).float().mean()) > 0.99


def test_dp_sgd_behind_a_recipe_clips_gradients_of_perturbed_images() -> None:
    model, seen = tiny(), []
    step, context = batch(model, 3), client_context(training=POISSON, batch_size=3)
    private = DPSGD(noise_multiplier=0.0, clip_norm=1e-3)  # without noise calibration is allowed

    def proceed(passed: LocalStep) -> Tensor:
        seen.append(passed.images)
        return private.train_step(passed, context, torch_generator(0, "dp"), plain_step)

    recipe = AdversarialTraining(**SHORT, calibration=1.0)
    recipe.train_step(step, context, torch_generator(0, "step"), proceed)
    assert not torch.equal(seen[0], step.images)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert 0 < float(norm) <= 1e-3 * (1 + 1e-4)


def test_an_empty_batch_is_passed_on() -> None:
    step = batch(tiny())
    empty = LocalStep(step.model, step.images[:0], step.labels[:0], 0.0)
    for recipe in RECIPES:
        passed: list[LocalStep] = []

        def proceed(step: LocalStep, passed: list[LocalStep] = passed) -> Tensor:
            passed.append(step)
            return torch.zeros(())

        recipe().train_step(empty, client_context(), torch_generator(0, "step"), proceed)
        assert len(passed) == 1 and not len(passed[0].images)


def test_a_jigsaw_before_a_recipe_is_attacked_as_it_is_trained_on() -> None:
    model = tiny()
    jigsaw = MJP(gamma=1.0, mask="random", dal="none")
    jigsaw.prepare_model(model)
    step, seen = batch(model, 2), []
    recipe = AdversarialTraining(**SHORT)

    def proceed(shuffled: LocalStep) -> Tensor:
        seen.append(shuffled.images)
        return recipe.train_step(shuffled, client_context(), torch_generator(0, "step"), last)

    def last(passed: LocalStep) -> Tensor:
        seen.append(passed.images)
        return plain_step(passed)

    jigsaw.train_step(step, client_context(), torch_generator(0, "mjp"), proceed)
    own = normalization(model)
    assert not torch.equal(seen[0], step.images)
    distance = (own.denormalize(seen[1]) - own.denormalize(seen[0])).abs().max()
    assert 1 / 255 < float(distance) <= 8 / 255 + 1e-5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda cls: cls.__name__)
def test_a_recipe_says_that_it_is_no_privacy_defense_and_from_what_psnr_on_images_leak(
    recipe: type[IteratedRecipe],
) -> None:
    first, second, *more = recipe().cautions(tiny())
    assert "no privacy defense" in first and "at least 30.1 dB" in first
    assert "no guarantee of robustness" in second
    assert bool(more) == (recipe is TRADES)
    assert recipe().budget(client_context()) is None


def test_the_floor_is_the_psnr_of_an_image_that_is_off_by_epsilon_everywhere() -> None:
    image = torch.full((3, 8, 8), 0.5, dtype=torch.float64)
    mse = float(((image + 8 / 255 - image) ** 2).mean())
    assert floor_of(8 / 255) == pytest.approx(10 * math.log10(1 / mse)) == pytest.approx(30.07, abs=0.01)


@pytest.mark.parametrize(
    ("recipe", "params", "message"),
    [
        (AdversarialTraining, {"epsilon": 0.0}, "epsilon: expected a number above 0, at most 1"),
        (AdversarialTraining, {"epsilon": 8.0}, "epsilon: .*8/255 is 0.0314.*got 8.0"),
        (AdversarialTraining, {"step": 0.0}, "step: expected a number above 0"),
        (AdversarialTraining, {"steps": 0}, "steps: expected at least 1, got 0"),
        (AdversarialTraining, {"warmup": 1.0}, "warmup: expected a share from 0 to below 1, got 1.0"),
        (AdversarialTraining, {"calibration": -1.0}, "calibration: expected a number of at least 0"),
        (AdversarialTraining, {"rise": 0.5}, "rise: got 0.5, and neither ard nor prm is on"),
        (AdversarialTraining, {"ard": True, "final_mask": True}, "final_mask: got true, and prm is off"),
        (ARD, {"keep": 1.5}, "keep: expected a share from 0 to 1, got 1.5"),
        (PRM, {"rise": -0.1}, "rise: expected a share from 0 to 1"),
        (TRADES, {"beta": -1.0}, "beta: expected a number of at least 0"),
        (MART, {"beta": math.inf}, "beta: expected a number of at least 0"),
    ],
)
def test_parameters_without_meaning_are_refused(
    recipe: Callable[..., object], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**params)


def test_a_scenario_with_two_recipes_on_one_client_is_refused_and_with_each_on_its_own_is_planned() -> None:
    raw = {
        "data": {"name": "shapes", "samples": 40, "test_samples": 8},
        "model": "vit_nano",
        "federation": {"clients": 2, "rounds": 1},
        "defenses": [{"name": "ard", "clients": [0]}, {"name": "prm", "clients": [1]}],
    }
    assert len(planning.make(parse(raw, "scenario")).defenses) == 2
    raw["defenses"] = ["ard", "prm"]
    with pytest.raises(ScenarioError, match="Give a client one recipe"):
        planning.make(parse(raw, "scenario"))
