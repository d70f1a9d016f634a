"""MIMIR against masked autoencoding written out: its mask, its attack, its target, its penalty, and what it leaves alone."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from fedsim_defenses._dependence import dependence
from fedsim_defenses._masking import Decoder, draw_visible, encode, standardized, visible_count
from fedsim_defenses.adversarial_training import AdversarialTraining
from fedsim_defenses.mimir import MIMIR, measured
from fedsim_defenses.mjp import MJP
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.defense import ClientContext, LocalStep
from fedsim.errors import ScenarioError
from fedsim.federation.training import plain_step
from fedsim.models import PatchGrid, normalization, patch_grid, shared_state
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context, random_images, small_model


def prepared(recipe: MIMIR | None = None) -> nn.Module:
    model = small_model()
    with seeded(0, "defenses"):
        (recipe or MIMIR()).prepare_model(model)
    return model


def batch(model: nn.Module, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    pictures = random_images(torch_generator(seed, "batch"), count)
    return normalization(model).normalize(pictures.images), pictures.labels


def train(
    recipe: MIMIR, model: nn.Module, images: Tensor, labels: Tensor, context: ClientContext | None = None, seed: int = 0
) -> Tensor:
    model.zero_grad(set_to_none=True)
    step = LocalStep(model, images, labels, 0.0)
    return recipe.train_step(step, context or client_context(), torch_generator(seed, "step"), plain_step)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def error(model: Any, inputs: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """The mean over masked patches of the squared error, image by image and patch by patch, as MAE has it."""
    grid, decoder = patch_grid(model), model.mimir
    wanted, losses = grid.cut(target), []
    for image, own, seen in zip(inputs, wanted, visible.tolist(), strict=True):
        tokens = model._pos_embed(model.patch_embed(image[None]))
        tokens = torch.cat([tokens[:, :1], *(tokens[:, 1 + place, None] for place in seen)], 1)
        known = decoder.embed(model.norm(model.blocks(tokens)))
        rows = [decoder.mask_token[0, 0] for _ in range(grid.count)]
        for order, place in enumerate(seen):
            rows[place] = known[0, 1 + order]
        every = torch.stack(rows)[None] + decoder.positions
        predicted = decoder.predict(decoder.norm(decoder.blocks(torch.cat([known[:, :1], every], 1))))[0, 1:]
        masked = [place for place in range(grid.count) if place not in seen]
        for place in masked:
            patch = own[place]
            scaled = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            losses.append(((predicted[place] - scaled) ** 2).mean())
    return torch.stack(losses).mean()


def drawn(grid: PatchGrid, count: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(count, grid.count, generator=generator).argsort(1)
    return order[:, : grid.count // 4].sort(1).values


def test_without_penalty_it_is_adversarial_masked_autoencoding_written_out() -> None:
    model, recipe = prepared(), MIMIR(penalty=0.0)
    images, labels = batch(model)
    loss = train(recipe, model, images, labels)
    found = gradients(model)

    own, grid, generator = normalization(model), patch_grid(model), torch_generator(0, "step")
    pixels, epsilon = own.denormalize(images), 8 / 255
    start = (pixels + epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)).clamp(0, 1).requires_grad_()
    shown = own.normalize(start)
    (gradient,) = torch.autograd.grad(error(model, shown, shown, drawn(grid, 4, generator)), start)
    delta = (start.detach() + 10 / 255 * gradient.sign() - pixels).clamp(-epsilon, epsilon)
    inputs = own.normalize((pixels + delta).clamp(0, 1))
    model.zero_grad(set_to_none=True)
    expected = error(model, inputs, images, drawn(grid, 4, generator))
    expected.backward()

    torch.testing.assert_close(loss, expected.detach())
    written_out = gradients(model)
    assert list(found) == list(written_out)
    for name, tensor in written_out.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_without_epsilon_and_penalty_it_is_a_masked_autoencoder() -> None:
    model = prepared()
    images, labels = batch(model)
    loss = train(MIMIR(epsilon=0.0, penalty=0.0), model, images, labels)
    visible = drawn(patch_grid(model), 4, torch_generator(0, "step"))
    torch.testing.assert_close(loss, error(model, images, images, visible).detach())


def test_the_penalty_adds_its_weight_times_the_gradient_of_the_dependence() -> None:
    model = prepared()
    images, labels = batch(model)
    found = []
    for penalty in (0.0, 0.5):
        train(MIMIR(epsilon=0.0, penalty=penalty), model, images, labels)
        found.append(gradients(model))
    model.zero_grad(set_to_none=True)
    visible = drawn(patch_grid(model), 4, torch_generator(0, "step"))
    tokens = encode(model, images, visible)
    pixels = normalization(model).denormalize(images)
    (0.5 * dependence(tokens.double().flatten(1), pixels.double().flatten(1))).backward()
    own = gradients(model)
    assert not any(name.startswith(("mimir.", "head.")) for name in own)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor + own.get(name, 0.0), rtol=1e-4, atol=1e-6, msg=name)


@given(side=st.integers(2, 8), ratio=st.floats(0.05, 0.95), count=st.integers(1, 4), seed=st.integers(0, 99))
def test_as_many_patches_are_masked_as_asked_each_at_most_once_and_anew_in_each_image(
    side: int, ratio: float, count: int, seed: int
) -> None:
    grid = PatchGrid(2, side, side, 3)
    visible = draw_visible(grid, torch.zeros(count, 3, 2 * side, 2 * side), ratio, torch_generator(seed))
    kept = visible_count(grid, ratio)
    assert visible.shape == (count, kept) and abs(kept - grid.count * (1 - ratio)) < 1
    assert all(len(set(row)) == kept and row == sorted(row) for row in visible.tolist())


def test_each_patch_is_masked_as_often_as_any_other() -> None:
    grid = PatchGrid(4, 4, 4, 3)
    visible = draw_visible(grid, torch.zeros(4000, 3, 16, 16), 0.75, torch_generator(0))
    often = torch.bincount(visible.flatten(), minlength=16) / 4000
    assert (often - 0.25).abs().max() < 0.03
    assert visible_count(PatchGrid(2, 2, 5, 3), 0.9) == 1  # 0.1 of 10 is below 1 in binary fractions


@given(seed=st.integers(0, 20), steps=st.integers(1, 3), step=st.sampled_from([0.01, 10 / 255, 1.0]))
@settings(max_examples=8, deadline=None)
def test_the_input_is_within_epsilon_of_the_image_and_the_target_is_the_image(
    seed: int, steps: int, step: float
) -> None:
    model, recipe = prepared(), MIMIR(steps=steps, step=step)
    images, labels = batch(model, 2, seed)
    seen: list[Tensor] = []
    cut: list[Tensor] = []
    handle = model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    original = PatchGrid.cut
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PatchGrid, "cut", lambda self, target: (cut.append(target.detach()), original(self, target))[1])
        train(recipe, model, images, labels, seed=seed)
    handle.remove()
    own = normalization(model)
    pixels, moved = own.denormalize(images), own.denormalize(seen[-1])
    assert len(seen) == len(cut) == steps + 1
    assert (moved - pixels).abs().max() <= 8 / 255 + 1e-6 and 0 < (moved - pixels).abs().max()
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    assert torch.equal(cut[-1], images) and all(
        torch.equal(one, other) for one, other in zip(cut[:-1], seen[:-1], strict=True)
    )


@pytest.mark.parametrize("case", ["one", "equal", "constant", "usual"])
def test_loss_and_gradient_are_finite_on_degenerate_batches(case: str) -> None:
    model = prepared()
    images, labels = batch(model, 1 if case == "one" else 4)
    if case == "equal":
        images = images[:1].expand(4, -1, -1, -1).clone()
    if case == "constant":
        images = torch.zeros_like(images)
    context = client_context()
    loss = train(MIMIR(penalty=1.0), model, images, labels, context)
    found = gradients(model)
    assert loss.isfinite() and all(tensor.isfinite().all() for tensor in found.values())
    assert sum(tensor.abs().sum() for name, tensor in found.items() if name.startswith("blocks.")) > 0
    assert set(context.logged) == {"reconstruction", "dependence"}
    assert context.logged["reconstruction"].mean == pytest.approx(float(loss))


@given(count=st.integers(1, 8), seed=st.integers(0, 99), sigma=st.floats(0.5, 10))
@settings(deadline=None)
def test_the_logged_dependence_is_that_of_numpy(count: int, seed: int, sigma: float) -> None:
    draws = torch_generator(seed)
    tokens, images = torch.randn(count, 3, 5, generator=draws), torch.rand(count, 1, 4, 4, generator=draws)
    parts = []
    for rows in (tokens.flatten(1).double().numpy(), images.flatten(1).double().numpy()):
        distances = ((rows[:, None] - rows[None]) ** 2).sum(2)
        centered = np.exp(-distances / (2 * sigma**2 * rows.shape[1])) @ (
            np.eye(count) - np.full((count, count), 1 / count)
        )
        parts.append(centered @ np.linalg.inv(centered + 1e-5 * count * np.eye(count)))
    found = measured(tokens, images, sigma)
    assert found is not None
    assert found.value == pytest.approx((parts[0] * parts[1].T).sum(), rel=1e-5, abs=1e-9)
    assert found.gradient.shape == tokens.shape and found.gradient.isfinite().all()


def test_what_is_not_finite_is_left_out_of_the_penalty() -> None:
    assert measured(torch.full((2, 3, 4), torch.nan), torch.rand(2, 3, 4, 4), 5.0) is None
    assert measured(torch.full((2, 3, 4), 1e30), torch.rand(2, 3, 4, 4), 5.0) is not None


def test_labels_and_the_classifier_play_no_part() -> None:
    model = prepared()
    images, labels = batch(model)
    losses = [train(MIMIR(), model, images, own) for own in (labels, (labels + 1) % 10)]
    assert torch.equal(*losses)
    assert model.head.weight.grad is None and model.head.bias.grad is None


def test_an_empty_batch_has_no_gradient() -> None:
    model = prepared()
    images, labels = batch(model)
    assert train(MIMIR(), model, images[:0], labels[:0]) == 0 and not gradients(model)


def test_a_client_without_it_computes_what_the_plain_model_does_bit_for_bit() -> None:
    plain, model = small_model(), prepared()
    images, labels = batch(model)
    steps = [plain_step(LocalStep(one, images, labels, 0.0)) for one in (plain, model)]
    assert torch.equal(*steps)
    own = gradients(model)
    assert list(gradients(plain)) == list(own) and all(torch.equal(t, own[n]) for n, t in gradients(plain).items())
    added = list(shared_state(model))[len(shared_state(plain)) :]
    assert added and all(name.startswith("mimir.") for name in added)
    assert "mimir.positions" not in added  # fixed, so that it need not travel


def test_weights_modes_and_gradients_of_others_are_left_alone() -> None:
    model = prepared().train()
    model.blocks[0].eval()
    images, labels = batch(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(MIMIR(), model, images, labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.blocks[0].training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "variant", [{"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}]
)
def test_it_trains_on_other_vits_of_timm(variant: dict[str, Any]) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10, **variant
    )
    MIMIR().prepare_model(model)
    images, labels = batch(model)
    assert train(MIMIR(), model, images, labels).isfinite() and len(gradients(model)) > 10


def test_a_constant_patch_is_standardized_to_zero_and_any_other_to_unit_variance() -> None:
    patches = torch.cat([torch.full((1, 1, 12), 0.3), torch.rand(1, 1, 12)], 1)
    found = standardized(patches)
    assert found[0, 0].abs().max() < 1e-3 and float(found[0, 1].var()) == pytest.approx(1, abs=1e-3)
    assert standardized(torch.rand(1, 4, 1)).isfinite().all()


def test_the_decoder_is_added_once_and_clients_must_agree_on_it() -> None:
    model = prepared()
    known = model.mimir
    MIMIR(epsilon=0.0).prepare_model(model)
    assert model.mimir is known and isinstance(known, Decoder)
    with pytest.raises(ScenarioError, match="a model has one decoder"):
        MIMIR(width=32).prepare_model(model)
    with pytest.raises(ScenarioError, match="ResNet is none"):
        MIMIR().prepare_model(timm.create_model("resnet18", num_classes=10))


def test_a_useless_mask_and_a_second_recipe_are_refused() -> None:
    model = prepared()
    with pytest.raises(ValueError, match="mask_ratio: expected a share that leaves some of 16 patches"):
        MIMIR(mask_ratio=0.99).check(model, client_context(), [])
    with pytest.raises(ScenarioError, match="Give a client one recipe"):
        MIMIR().check(model, client_context(), [AdversarialTraining()])
    MIMIR().check(model, client_context(), [])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    with pytest.raises(ScenarioError, match="mimir trains everything but the classifier"):
        MIMIR().check(model, client_context(), [])


def test_a_jigsaw_before_it_is_what_it_reconstructs() -> None:
    model = small_model()
    with seeded(0, "defenses"):
        MJP().prepare_model(model)
        MIMIR().prepare_model(model)
    images, labels = batch(model)
    shuffled: list[Tensor] = []

    def proceed(step: LocalStep) -> Tensor:
        shuffled.append(step.images)
        return MIMIR().train_step(step, client_context(), torch_generator(1), plain_step)

    step = LocalStep(model, images, labels, 0.0)
    loss = MJP(gamma=0.5).train_step(step, client_context(), torch_generator(0), proceed)
    assert loss.isfinite() and not torch.equal(shuffled[0], images)
    assert model.mjp.unknown.grad is not None and model.mimir.mask_token.grad is not None


def test_it_says_what_it_does_not_protect_from() -> None:
    text = " ".join(MIMIR().cautions(prepared()))
    assert "no privacy defense" in text and "30.1 dB" in text and "classifier is not trained" in text
    assert "dB" not in " ".join(MIMIR(epsilon=0.0).cautions(prepared()))
    assert "here are 4" in MIMIR().client_cautions(client_context(batch_size=4))[0]
    assert MIMIR().client_cautions(client_context(batch_size=32)) == ()
    assert MIMIR(penalty=0.0).client_cautions(client_context(batch_size=4)) == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"epsilon": -0.1}, "epsilon: expected a number from 0 to 1"),
        ({"step": 0.0}, "step: expected a number above 0"),
        ({"mask_ratio": 1.0}, "mask_ratio: expected a share between 0 and 1"),
        ({"penalty": -1.0}, "penalty: expected a number of at least 0"),
        ({"sigma": 0.0}, "sigma: expected a number above 0"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"width": 30}, "width: expected a multiple of 4"),
        ({"heads": 3}, "width: expected a multiple of 4 and of heads 3"),
    ],
)
def test_parameters_without_meaning_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIMIR(**params)
