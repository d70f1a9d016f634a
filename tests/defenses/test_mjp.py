import copy
import math
import pickle
from collections.abc import Callable

import pytest
import scipy.linalg
import skimage.data
import timm
import torch
from fedsim_defenses._jigsaw import block_mask, random_mask, shuffle_patches
from fedsim_defenses._position import OccludableViT, localization_loss, occluded
from fedsim_defenses.mjp import MJP
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim.defense import ClientContext, LocalStep
from fedsim.errors import ScenarioError
from fedsim.models import PatchGrid, build, gradient_of, patch_grid, unfused_attention
from fedsim.plugins import configure
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
VARIANTS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "no embedding for the class": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}),
    "registers outside the table": ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}),
    "mean pooling": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "dynamic size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
}


def plain_model(variant: str = "class token", **kwargs: object) -> VisionTransformer:
    name, extra = VARIANTS[variant]
    with seeded(0, "model"):
        return timm.create_model(name, **{**SMALL, **extra, **kwargs}).eval()


def prepared_model(defense: MJP | None = None, variant: str = "class token", **kwargs: object) -> VisionTransformer:
    model = plain_model(variant, **kwargs)
    with seeded(0, "defenses"):
        (defense or MJP()).prepare_model(model)
    return model


def batch(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch_generator(seed, "batch")
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(5, (count,), generator=generator)


def plain_step(step: LocalStep) -> Tensor:
    loss = nn.functional.cross_entropy(step.model(step.images), step.labels)
    loss.backward()
    return loss.detach()


def train(
    defense: MJP,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    progress: float = 0.0,
    proceed: Callable[[LocalStep], Tensor] = plain_step,
    context: ClientContext | None = None,
) -> Tensor:
    step = LocalStep(model, images, labels, progress)
    context = context or client_context(round=1 + round(100 * progress), rounds=100)
    return defense.train_step(step, context, torch_generator(seed, "train_step"), proceed)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def drawn(
    defense: MJP, model: nn.Module, seed: int = 0, progress: float = 0.0, context: ClientContext | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mask and the shuffled image of one step, read off the step that the model is given."""
    grid = patch_grid(model)
    labels = torch.zeros(1, dtype=torch.int64)
    numbered = grid.join(torch.arange(grid.count).float().view(1, -1, 1).expand(1, -1, grid.values))
    seen: list[Tensor | None] = []

    def record(step: LocalStep) -> Tensor:
        seen.extend([step.model.mjp.mask, grid.cut(step.images)[0, :, 0].long()])
        return plain_step(step)

    train(defense, model, numbered, labels, seed, progress, record, context)
    mask, order = seen
    assert order is not None
    return torch.zeros(grid.count, dtype=torch.bool) if mask is None else mask, order


SHARED = prepared_model()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_gamma_zero_is_the_plain_model_bit_for_bit_over_three_steps():
    plain, defended, defense = plain_model(), prepared_model(), MJP(gamma=0.0)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, defended)]
    for index in range(3):
        images, labels = batch(seed=index)
        for optimizer in optimizers:
            optimizer.zero_grad()
        plain_loss = plain_step(LocalStep(plain, images, labels, index / 4))
        assert torch.equal(train(defense, defended, images, labels, index, index / 4), plain_loss)
        assert same(gradients(plain), gradients(defended))
        for optimizer in optimizers:
            optimizer.step()
    weights = {n: p for n, p in defended.named_parameters() if not n.startswith("mjp.")}
    assert same(dict(plain.named_parameters()), weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prepared_model_without_mask_is_the_plain_model_bit_for_bit(variant):
    plain, prepared = plain_model(variant), prepared_model(variant=variant)
    images, labels = batch()
    assert torch.equal(plain(images), prepared(images))
    expected, found = gradient_of(plain, images, labels), gradient_of(prepared, images, labels)
    assert same(expected, {name: found[name] for name in expected})
    assert not any(found[name].any() for name in found.keys() - expected.keys())


@pytest.mark.parametrize("variant", VARIANTS)
def test_preparing_appends_parameters_and_leaves_the_others_alone(variant):
    plain, prepared = plain_model(variant), prepared_model(variant=variant)
    before, after = list(plain.state_dict()), list(prepared.state_dict())
    assert after[: len(before)] == before
    assert all(name.startswith("mjp.") for name in after[len(before) :])
    assert prepared.mjp.unknown.shape == (1, 1, 32)
    assert isinstance(prepared, type(plain))
    assert prepared.no_weight_decay() == {*plain.no_weight_decay(), "mjp.unknown"}


def test_the_unknown_position_starts_on_the_scale_of_the_others():
    model = build(ModelPart(name="vit_mini"), 10, 32, 0)
    MJP().prepare_model(model)
    assert float(model.mjp.unknown.detach().std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("dal", ["none", "linear", "nonlinear", "pca"])
def test_preparing_twice_changes_nothing(dal):
    defense = MJP(dal=dal)
    model = prepared_model(defense)
    before = copy.deepcopy(model.state_dict())
    defense.prepare_model(model)
    assert same(dict(before), dict(model.state_dict()))


def test_entries_with_different_heads_share_one_model():
    model = prepared_model(MJP(dal="linear"))
    before = copy.deepcopy(model.state_dict())
    MJP(dal="nonlinear").prepare_model(model)
    assert set(model.mjp.regressors) == {"linear", "nonlinear"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_equals_the_plain_model_on_an_edited_table_and_an_edited_image(variant):
    defense = MJP(gamma=0.3, dal="none")
    model, edited = prepared_model(defense, variant), plain_model(variant)
    mask, order = drawn(defense, model)
    assert int(mask.sum()) == 19
    model.zero_grad()
    images, labels = batch()
    grid = patch_grid(model)
    shuffled = images.clone()
    for place, source in enumerate(order.tolist()):
        (top, left), (y, x) = (((n // grid.columns) * 4, (n % grid.columns) * 4) for n in (place, source))
        shuffled[:, :, top : top + 4, left : left + 4] = images[:, :, y : y + 4, x : x + 4]
    prefix = edited.pos_embed.shape[1] - grid.count
    with torch.no_grad():
        edited.pos_embed[0, prefix:][mask] = model.mjp.unknown[0, 0]
    loss = train(defense, model, images, labels)
    assert torch.equal(loss, plain_step(LocalStep(edited, shuffled, labels, 0.0)))
    rows, plain_rows = model.pos_embed.grad[0], edited.pos_embed.grad[0]
    assert not rows[prefix:][mask].any()
    assert torch.equal(rows[:prefix], plain_rows[:prefix])
    assert torch.equal(rows[prefix:][~mask], plain_rows[prefix:][~mask])
    torch.testing.assert_close(model.mjp.unknown.grad[0, 0], plain_rows[prefix:][mask].sum(0))
    others = gradients(edited)
    assert all(torch.equal(gradients(model)[name], others[name]) for name in others if name != "pos_embed")


@pytest.mark.parametrize("dal", ["linear", "nonlinear", "pca"])
def test_masked_rows_have_no_gradient_with_localization_either(dal):
    defense = MJP(gamma=0.3, dal=dal, dal_weight=1.0)
    model = prepared_model(defense)
    mask, _ = drawn(defense, model)
    rows = model.pos_embed.grad[0]
    assert not rows[1:][mask].any()
    assert rows[1:][~mask].any(dim=1).all()
    assert rows[0].any()


def test_localization_adds_a_gradient_that_no_image_moves():
    model, seen = prepared_model(), []
    for seed in (0, 1):
        images, labels = batch(seed=seed)
        found = {}
        for dal in ("none", "nonlinear"):
            model.zero_grad()
            train(MJP(gamma=0.3, dal=dal, dal_weight=100.0), model, images, labels, seed=7)
            found[dal] = gradients(model)
        extra = found["nonlinear"]["pos_embed"] - found["none"]["pos_embed"]
        head = {name: gradient for name, gradient in found["nonlinear"].items() if "regressors" in name}
        for name in found["none"].keys() - {"pos_embed"}:
            assert torch.equal(found["none"][name], found["nonlinear"][name])
        seen.append((extra, head))
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-5, rtol=1e-4)
    assert seen[0][0].any() and same(seen[0][1], seen[1][1])


def test_localization_loss_agrees_with_a_loop_over_the_grid():
    model = prepared_model(MJP(dal="linear"))
    kept = random_mask(64, 40, torch_generator(0))
    head, table = model.mjp.regressors["linear"], model.pos_embed[0, 1:]
    errors = []
    for n in kept.nonzero().flatten().tolist():
        row, column = head(table[n]).tolist()
        errors += [abs(row - n // 8), abs(column - n % 8)]
    assert localization_loss(model, "linear", kept).item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_localization_by_pca_has_no_parameters_and_agrees_with_an_eigendecomposition():
    model = prepared_model(MJP(dal="pca"))
    assert not model.mjp.regressors
    kept = random_mask(64, 40, torch_generator(0))
    loss = localization_loss(model, "pca", kept)
    (gradient,) = torch.autograd.grad(loss, model.pos_embed)
    rows = model.pos_embed[0, 1:][kept].detach().double()
    axes = torch.linalg.eigh(torch.cov(rows.T)).eigenvectors[:, [-1, -2]]
    wanted = torch.cartesian_prod(torch.arange(8), torch.arange(8)).double()[kept]
    projected = rows @ axes
    error, slope = 0.0, torch.zeros_like(rows)
    for coordinate in range(2):
        candidates = [(sign * projected[:, coordinate] - wanted[:, coordinate], sign) for sign in (1, -1)]
        difference, sign = min(candidates, key=lambda candidate: float(candidate[0].abs().sum()))
        error += float(difference.abs().sum()) / 80
        slope += torch.outer(difference.sign() * sign, axes[:, coordinate]) / 80
    assert loss.item() == pytest.approx(error, rel=1e-5)
    torch.testing.assert_close(gradient[0, 1:][kept].double(), slope, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("warmup", "progress", "share"),
    [(0.2, 0.0, 0.0), (0.2, 0.1, 0.5), (0.2, 0.2, 1.0), (0.2, 0.6, 0.75), (0.0, 0.0, 1.0), (0.0, 0.5, 0.75)],
)
def test_weight_of_localization_rises_in_the_warm_up_and_halves_as_a_cosine(warmup, progress, share):
    defense, model = MJP(gamma=0.3, warmup=warmup, dal_weight=0.4, dal="linear"), prepared_model(MJP(dal="linear"))
    mask, _ = drawn(defense, model, progress=progress)
    bias = model.mjp.regressors["linear"].bias
    found = torch.zeros(2) if bias.grad is None else bias.grad
    expected = torch.autograd.grad(localization_loss(model, "linear", ~mask), bias)[0]
    torch.testing.assert_close(found, share * 0.4 * expected)


def test_the_returned_loss_is_the_cross_entropy_alone():
    images, labels = batch()
    with_dal = train(MJP(gamma=0.3, dal_weight=10.0), prepared_model(), images, labels)
    assert torch.equal(with_dal, train(MJP(gamma=0.3, dal="none"), prepared_model(), images, labels))


@settings(deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    channels=st.integers(1, 3),
    pictures=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_the_shuffle_is_a_bijection_of_the_masked_patches_alike_in_every_image(
    rows, columns, channels, pictures, share, seed
):
    grid = PatchGrid(2, rows, columns, channels)
    mask = random_mask(grid.count, int(share * grid.count), torch_generator(seed))
    numbers = torch.arange(pictures * grid.count * grid.values).float()
    patches = numbers.reshape(pictures, grid.count, grid.values)
    images = shuffle_patches(grid.join(patches), grid, mask.nonzero().flatten(), torch_generator(seed))
    order = grid.cut(images)[0, :, 0].long() // grid.values
    assert sorted(order.tolist()) == list(range(grid.count))
    assert torch.equal(order[~mask], torch.arange(grid.count)[~mask])
    assert torch.equal(grid.cut(images), patches[:, order])


@settings(deadline=None)
@given(
    rows=st.integers(1, 16),
    columns=st.integers(1, 16),
    gamma=st.floats(0, 1),
    smallest=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_a_block_mask_never_exceeds_its_target(rows, columns, gamma, smallest, seed):
    target = int(rows * columns * gamma)
    mask = block_mask(rows, columns, target, smallest, smallest + 30, torch_generator(seed))
    assert mask.shape == (rows, columns)
    assert int(mask.sum()) <= target


@pytest.mark.parametrize(
    ("side", "smallest", "gamma", "mean", "empty"),
    [
        (14, 8, 0.27, 51.8, 0.0),
        (8, 8, 0.27, 16.8, 0.0),
        (4, 8, 0.1, 0.4, 0.58),
        (4, 8, 0.27, 3.2, 0.16),
        (4, 1, 0.27, 4, 0),
    ],
)
def test_block_masks_have_the_sizes_of_the_published_generator(side, smallest, gamma, mean, empty):
    # Expected values: 2,000 masks of an independent NumPy version of the published generator.
    generator, target = torch_generator(0), int(side * side * gamma)
    counts = torch.tensor([int(block_mask(side, side, target, smallest, 75, generator).sum()) for _ in range(1000)])
    assert float(counts.double().mean()) == pytest.approx(mean, abs=0.15)
    assert float((counts == 0).double().mean()) == pytest.approx(empty, abs=0.05)


@settings(deadline=None)
@given(gamma=st.floats(0.01, 1.0), kind=st.sampled_from(["block", "random"]), seed=st.integers(0, 1000))
def test_masked_places_are_shuffled_and_the_others_stay_for_every_gamma(gamma, kind, seed):
    defense = MJP(gamma=gamma, mask=kind)
    mask, order = drawn(defense, SHARED, seed)
    target = int(64 * gamma)
    assert int(mask.sum()) <= target
    assert int(mask.sum()) != 1
    if kind == "random":
        assert int(mask.sum()) == (target if target >= 2 else 0)
    assert sorted(order.tolist()) == list(range(64))
    assert torch.equal(order[~mask], torch.arange(64)[~mask])


@pytest.mark.parametrize("gamma", [0.02, 0.0312])
def test_fewer_than_two_patches_leave_the_batch_alone(gamma):
    images, labels = batch()
    plain, model = plain_model(), prepared_model()
    train(MJP(gamma=gamma, dal="none"), model, images, labels)
    plain_step(LocalStep(plain, images, labels, 0.0))
    assert same(gradients(plain), gradients(model))


def test_every_patch_may_be_masked():
    mask, _ = drawn(MJP(gamma=1.0, mask="random"), SHARED)
    assert mask.all()


@settings(max_examples=50)
@given(rounds=st.integers(1, 30), steps=st.integers(1, 4), warmup=st.floats(0, 0.9), data=st.data())
def test_the_schedule_is_of_the_round_alone_and_the_same_for_clients_with_other_steps(rounds, steps, warmup, data):
    rise = data.draw(st.sampled_from(["step", "linear"] if warmup else ["step"]))
    defense = MJP(gamma=0.5, warmup=warmup, rise=rise, mask="random", dal="none")
    number = data.draw(st.integers(1, rounds))
    sizes = set()
    for step in range(steps):
        progress = (number - 1 + step / steps) / rounds
        sizes.add(int(drawn(defense, SHARED, step, progress, client_context(round=number, rounds=rounds))[0].sum()))
    done = (number - 1) / rounds
    share = 1.0 if done >= warmup else done / warmup if rise == "linear" else 0.0
    target = int(64 * 0.5 * share)
    assert sizes == {target if target >= 2 else 0}


def test_gamma_rises_linearly_from_round_to_round():
    defense = MJP(gamma=0.5, warmup=0.5, rise="linear", mask="random")
    masked = [int(drawn(defense, SHARED, progress=n / 10)[0].sum()) for n in range(8)]
    assert masked == [0, 6, 12, 19, 25, 32, 32, 32]


def test_no_batch_is_masked_in_the_warm_up_and_the_share_of_p_apply_afterwards():
    defense, model = MJP(gamma=0.3, p_apply=0.5, warmup=0.25, mask="random"), prepared_model()
    assert not any(drawn(defense, model, seed, 0.2)[0].any() for seed in range(20))
    applied = sum(bool(drawn(defense, model, seed, 0.25)[0].any()) for seed in range(100))
    assert 35 <= applied <= 65


def test_the_default_masks_every_batch():
    assert all(drawn(MJP(), SHARED, seed)[0].any() for seed in range(50))


def test_shuffle_only_keeps_positions_and_unknown_only_keeps_patches():
    mask, order = drawn(MJP(gamma=0.5, unknown=False), SHARED)
    assert not mask.any() and not torch.equal(order, torch.arange(64))
    mask, order = drawn(MJP(gamma=0.5, shuffle=False), SHARED)
    assert mask.any() and torch.equal(order, torch.arange(64))


def test_the_same_generator_state_gives_the_same_gradient_and_another_gives_another():
    images, labels = batch()
    found = []
    for seed in (0, 0, 1):
        model = prepared_model()
        train(MJP(gamma=0.3), model, images, labels, seed)
        found.append(gradients(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_inference_is_neither_shuffled_nor_masked_after_a_step():
    model = prepared_model()
    images, labels = batch()
    before = images.clone()
    expected = model(images)
    train(MJP(gamma=0.5), model, images, labels)
    assert torch.equal(model(images), expected)
    assert torch.equal(images, before)


def test_an_error_inside_the_step_leaves_the_model_unmasked():
    def fail(step: LocalStep) -> Tensor:
        step.model(step.images)
        raise RuntimeError("interrupted")

    model = prepared_model()
    with pytest.raises(RuntimeError, match="interrupted"):
        train(MJP(gamma=0.5), model, *batch(), proceed=fail)
    assert model.mjp.mask is None
    assert isinstance(model.pos_embed, nn.Parameter)


def test_two_puzzles_on_one_client_are_refused():
    defense = MJP(gamma=0.5)
    with pytest.raises(ValueError, match="twice"):
        train(defense, prepared_model(), *batch(), proceed=lambda s: train(defense, s.model, s.images, s.labels))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("variant", ["class token", "distilled"])
def test_copies_and_pickles_behave_alike_and_are_masked_on_their_own(variant, duplicate):
    model = prepared_model(variant=variant)
    images, labels = batch()
    twin = duplicate(model)
    assert type(twin) is type(model) and list(twin.state_dict()) == list(model.state_dict())
    plain = model(images)
    assert torch.equal(twin(images), plain)
    with occluded(twin, random_mask(64, 30, torch_generator(0))):
        assert not torch.equal(twin(images), plain)
        assert torch.equal(model(images), plain)
    train(MJP(gamma=0.3), model, images, labels)
    train(MJP(gamma=0.3), twin, images, labels)
    assert same(gradients(model), gradients(twin))
    assert all(p.grad is not None for n, p in twin.named_parameters() if n in ("pos_embed", "mjp.unknown"))


def test_weights_load_from_a_state_dict():
    source, target = prepared_model(), prepared_model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    target.load_state_dict(source.state_dict())
    assert same(dict(source.state_dict()), dict(target.state_dict()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_of_their_own_are_those_of_one_image_at_a_time(variant):
    model = prepared_model(variant=variant)
    images, _ = batch(3)
    masks = torch.stack([random_mask(64, count, torch_generator(count)) for count in (0, 7, 64)])
    with torch.no_grad(), occluded(model, masks):
        together = model(images)
    for number in range(3):
        with torch.no_grad(), occluded(model, masks[number]):
            torch.testing.assert_close(together[number], model(images[number : number + 1])[0], atol=1e-5, rtol=1e-4)


def test_per_sample_gradients_under_a_mask_equal_those_of_one_image_at_a_time():
    model = prepared_model()
    images, labels = batch(3)
    weights = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("mjp.regressors")}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    with unfused_attention(model), occluded(model, random_mask(64, 20, torch_generator(0))):
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
        for index in range(3):
            alone = gradient_of(model, images[index : index + 1], labels[index : index + 1])
            for name, gradient in found.items():
                torch.testing.assert_close(gradient[index], alone[name], atol=1e-6, rtol=1e-4)
    assert all(isinstance(p, nn.Parameter) for p in (model.pos_embed, model.mjp.unknown))


def closed_form_psnr(gamma: float) -> float:
    """Mean PSNR of patch-embedding inversion by an attacker who knows nothing of MJP."""
    defense, model = MJP(gamma=gamma), build(ModelPart(name="vit_mini"), 10, 32, 0)
    with seeded(0, "defenses"):
        defense.prepare_model(model)
    grid, picture = patch_grid(model), torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    scores = []
    for index in range(6):
        image = nn.functional.avg_pool2d(picture[None, :, 64 * index : 64 * index + 128, 128:256], 4)
        model.zero_grad()
        train(defense, model, 2 * image - 1, torch.tensor([index]), seed=index)
        rows = model.pos_embed.grad[0, 1:].double().T.numpy()
        columns = model.patch_embed.proj.weight.grad.flatten(1).double().numpy()
        patches = torch.from_numpy(scipy.linalg.lstsq(rows, columns)[0])
        found = ((grid.join(patches[None]) + 1) / 2).clamp(0, 1)
        scores.append(-10 * math.log10(float((found - image).square().mean())))
    return sum(scores) / len(scores)


def test_closed_form_inversion_is_exact_without_mjp_and_weaker_the_more_is_masked():
    bare, light, middle, heavy = (closed_form_psnr(gamma) for gamma in (0.0, 0.1, 0.27, 0.5))
    assert bare > 70
    assert 20 > light > middle > heavy


@pytest.mark.parametrize(
    ("defense", "preset", "phrase"),
    [
        (MJP(gamma=0.0), "vit_mini", "no batch is masked"),
        (MJP(gamma=0.1), "vit_nano", "no batch is masked"),
        (MJP(gamma=0.27, min_patches=8), "vit_nano", "leave 1"),
        (MJP(p_apply=0.5, warmup=0.1), "vit_mini", "about 55% of the batches unmasked"),
        (MJP(unknown=False), "vit_mini", "exact but shuffled"),
        (MJP(shuffle=False), "vit_mini", "in place"),
        (MJP(), "vit_mini", "Zero rows"),
        (MJP(), "vit_mini", "subtracts"),
        (MJP(warmup=0.5, rise="linear"), "vit_mini", "about 17% of the batches unmasked"),
        (MJP(dal="pca"), "vit_mini", "do not subtract its gradient"),
    ],
)
def test_cautions_name_what_stays_unprotected(defense, preset, phrase):
    model = build(ModelPart(name=preset), 10, 32, 0)
    defense.prepare_model(model)
    found = defense.cautions(model)
    assert any(phrase in caution for caution in found), found
    assert found == defense.cautions(model)


@pytest.mark.parametrize("preset", ["vit_mini", "vit_micro"])
def test_the_default_blocks_fit_the_small_grids(preset):
    model = build(ModelPart(name=preset), 10, 32, 0)
    assert not any("blocks mask" in c for gamma in (0.1, 0.27, 0.5) for c in MJP(gamma=gamma).cautions(model))


def test_rounds_of_the_warm_up_are_named():
    context = client_context(rounds=10)
    assert MJP().client_cautions(context) == MJP(gamma=0.0, warmup=0.5).client_cautions(context) == ()
    assert "in round 1 of 10" in MJP(warmup=0.1).client_cautions(context)[0]
    assert "in rounds 1 to 3 of 10" in MJP(warmup=0.25).client_cautions(context)[0]
    assert "in round 1 of 10" in MJP(warmup=0.25, rise="linear").client_cautions(context)[0]


@pytest.mark.parametrize("params", [{"gamma": 0.0}, {"p_apply": 0.0}, {"shuffle": False}, {}])
def test_effects_claim_an_unseen_shuffle_only_where_there_is_one(params):
    assert MJP(unknown=False).effects.shuffles_unseen
    if "shuffle" not in params:
        assert MJP(unknown=False, **params).effects.shuffles_unseen == (not params)
    assert not MJP(**params).effects.shuffles_unseen


@pytest.mark.parametrize(
    "defense",
    [
        MJP(gamma=0.3),
        MJP(gamma=0.3, unknown=False),
        MJP(gamma=0.3, dal="none"),
        MJP(gamma=0.3, dal="linear", p_apply=0.0),
        MJP(gamma=0.3, dal="pca", dal_weight=0.0),
        MJP(gamma=0.0),
        MJP(gamma=0.3, warmup=0.5),
        MJP(gamma=0.3, warmup=0.5, rise="linear", mask="random"),
    ],
    ids=repr,
)
def test_what_it_says_that_it_trains_is_what_gets_a_gradient(defense):
    model = prepared_model(defense)
    MJP(dal="linear").prepare_model(model)
    added = [name for name, _ in model.named_parameters() if name.startswith("mjp.")]
    for number in range(1, 6):
        model.zero_grad(set_to_none=True)
        context = client_context(round=number, rounds=5)
        train(defense, model, *batch(), context=context)
        reached = {name for name in added if name in gradients(model)}
        assert reached == {name for name in added if defense.trains(name, number, 5)}


def test_a_model_without_position_table_is_refused():
    with pytest.raises(ScenarioError, match="pos_embed") as refused:
        MJP().prepare_model(plain_model(pos_embed="none"))
    assert refused.value.where == "model.kwargs.pos_embed"


def test_a_hybrid_or_foreign_model_is_refused_and_left_alone():
    class ForeignViT(VisionTransformer):
        pass

    foreign = ForeignViT(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ScenarioError, match="ForeignViT"):
        MJP().prepare_model(foreign)
    assert not isinstance(foreign, OccludableViT) and not hasattr(foreign, "mjp")
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, patch_size=1, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ScenarioError, match="hybrid"):
        MJP().prepare_model(hybrid)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": 1.1}, "gamma"),
        ({"p_apply": 2}, "p_apply"),
        ({"warmup": 1.0}, "warmup"),
        ({"dal_weight": -1}, "dal_weight"),
        ({"dal_weight": "inf"}, "dal_weight"),
        ({"min_patches": 0}, "min_patches"),
        ({"max_patches": 0}, "max_patches"),
        ({"min_patches": 5, "max_patches": 4}, "max_patches"),
        ({"mask": "random", "min_patches": 4}, "min_patches"),
        ({"mask": "blocks"}, "mask"),
        ({"dal": "mlp"}, "dal"),
        ({"rise": "linear"}, "rise"),
        ({"rise": "cosine", "warmup": 0.1}, "rise"),
        ({"unknown": False, "shuffle": False}, "shuffle"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(MJP, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
    assert "got" in refused.value.message
