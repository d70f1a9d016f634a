import pytest
import torch
from fedsim_attacks.closed_form.row_space import RowSpace, assess
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.patch_embedding import PatchEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import build, decibels, gradient, noisy, observe, photos

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, LabeledImages, Update
from fedsim.seeds import seeded

WIDE = {"patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 4}  # 16 patches of 192 values
POOL = photos()
MODEL = build("vit_mini", **WIDE)


def seen(batch: LabeledImages, model: torch.nn.Module = MODEL, **granted):
    return observe(model, gradient(model, batch), **granted)


def normalized(observation, images):
    return observation.normalization.normalize(images)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_patches_of_a_batch_lie_in_the_space_and_those_of_other_images_do_not(count):
    batch, others = POOL.read(range(7, 7 + 37 * count, 37)), POOL.read([400, 401, 430])
    observation = seen(batch)
    space = RowSpace.of(observation)
    assert space.is_informative and space.rank <= 16 * count
    own, foreign = (space.score(normalized(observation, images)) for images in (batch.images, others.images))
    assert own.shape == (count, 16)
    assert float(own.mean()) < 0.01 and float(own.max()) < 0.1
    assert float(foreign.mean()) > 10 * float(own.mean()) and float(foreign.mean()) > 0.05
    assert float(own.max()) < float(foreign.mean())


def test_too_many_patches_for_the_values_of_one_leave_no_direction_to_judge_by():
    model = build("vit_mini", depth=1)  # 64 patches of 48 values
    space = RowSpace.of(seen(POOL.read([3]), model))
    assert not space.is_informative and space.limit == 48


def test_a_narrow_model_saturates_at_its_width_and_says_so():
    model = build("vit_nano", depth=1)  # width 64
    space = RowSpace.of(seen(POOL.read(range(0, 400, 50)), model))
    assert space.limit == 63 and not space.is_informative


def test_noise_cuts_the_rank_and_a_true_patch_then_sticks_out():
    batch = POOL.read([3])
    clean = gradient(MODEL, batch)
    ranks, scores = [], []
    for multiplier in (1e-7, 1e-5, 1e-3):
        observation = observe(MODEL, noisy(clean, multiplier))
        space = RowSpace.of(observation)
        ranks.append(space.rank)
        scores.append(float(space.score(normalized(observation, batch.images)).mean()))
        assert space.noise > 0
    assert ranks == sorted(ranks, reverse=True) and ranks[-1] < 4
    assert scores == sorted(scores)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000))
def test_mixtures_of_the_patches_lie_in_the_space_and_scores_are_shares(seed):
    batch = POOL.read([7, 44])
    observation = seen(batch)
    space, generator = RowSpace.of(observation), torch.Generator().manual_seed(seed)
    patches = space.grid.cut(normalized(observation, batch.images)).flatten(0, 1)
    mixed = space.grid.join((torch.randn(16, 32, generator=generator) @ patches)[None])
    assert float(space.score(mixed).max()) < 0.01
    random = torch.randn(2, 3, 32, 32, generator=generator)
    scores = space.score(random)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    outside = space.outside(random)
    assert float((outside @ space.directions.float().T).abs().max()) < 1e-4
    assert float(space.penalty(random)) == pytest.approx(float(outside.square().mean()))


def test_the_penalty_pulls_a_image_into_the_space():
    batch = POOL.read([7])
    observation = seen(batch)
    space = RowSpace.of(observation)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(space.penalty(images), images)
    moved = images - slope * images.numel() / 2
    assert float(space.penalty(moved.detach())) < 1e-6 < float(space.penalty(images.detach()))
    assert float(space.penalty(normalized(observation, batch.images))) < 1e-6


def test_flat_patches_score_nothing_where_the_space_holds_their_color_and_no_score_is_nan():
    observation = seen(POOL.read([7]))
    scores = RowSpace.of(observation).score(torch.zeros(1, 3, 32, 32))
    assert torch.equal(scores, torch.zeros(1, 16))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_projection_gradient_of_zeros_or_not_finite_is_refused(value):
    update = gradient(MODEL, POOL.read([3]))
    broken = torch.full_like(update.tensors["patch_embed.proj.weight"], value)
    tensors = {**update.tensors, "patch_embed.proj.weight": broken}
    with pytest.raises(AttackRefusedError, match=r"patch_embed\.proj\.weight"):
        RowSpace.of(observe(MODEL, Update(1, 0, "gradient", tensors, 1)))


def test_found_images_get_a_residual_and_a_caution_where_they_are_not_the_clients():
    batch, other = POOL.read([7]), POOL.read([400])
    observation = seen(batch)
    own, foreign = (assess(Finding(images=images), observation) for images in (batch.images, other.images))
    assert own.trace["row_space_residual"] < 0.01 and own.trace["row_space_rank"] == 16 and not own.cautions
    assert foreign.trace["row_space_residual"] > 0.3 and any("outside the span" in c for c in foreign.cautions)
    unreadable = observe(MODEL, Update(1, 0, "gradient", {}, 1))
    assert assess(Finding(images=batch.images), unreadable).trace["row_space_residual"] is None
    assert assess(Finding(), observation).trace["row_space_residual"] is None


def test_patch_embedding_states_the_residual_of_what_it_found():
    finding = PatchEmbedding().run(seen(POOL.read([7])), torch.Generator())
    assert finding.trace["row_space_residual"] < 0.01 and finding.cautions == ()


def product() -> torch.Tensor:
    """Return an image on white: flat patches, of which every span holds the color, and a few that vary."""
    images = torch.ones(1, 3, 32, 32)
    images[:, :, 8:20, 12:26] = POOL.read([7]).images[:, :, 8:20, 12:26]
    return images


def digit() -> torch.Tensor:
    images = torch.ones(1, 3, 32, 32)
    images[:, :, 6:26, 14:18] = 0.0
    return images


@pytest.mark.parametrize("images", [product(), digit(), torch.ones(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.7)])
def test_flat_patches_cause_no_caution(images):
    observation = seen(LabeledImages(images, torch.tensor([3])))
    finding = PatchEmbedding().run(observation, torch.Generator())
    assert decibels(finding.images, LabeledImages(images, torch.tensor([3]))) > 80
    assert finding.cautions == ()
    residual = finding.trace["row_space_residual"]
    assert residual is None if float(images.std()) < 1e-3 else residual < 0.01
    # Another client's image sticks out as before.
    (caution,) = assess(Finding(images=POOL.read([400]).images), observation).cautions
    assert "outside the span" in caution and "not the client's" not in caution


def test_dropped_patches_are_not_judged_by_what_was_filled_in():
    model = build("vit_mini", **WIDE, patch_drop_rate=0.5).train()
    batch = POOL.read([7])
    with seeded(0):
        update = gradient(model, batch)
    observation = observe(model.eval(), update)
    finding = PatchEmbedding().run(observation, torch.Generator())
    assert finding.trace["row_space_residual"] < 0.01
    assert [caution for caution in finding.cautions if "span" in caution] == []
    assert any("8 of 16 patches have no gradient" in caution for caution in finding.cautions)
    assert any("outside the span" in c for c in assess(Finding(images=POOL.read([400]).images), observation).cautions)


def test_the_residual_leaves_out_patches_that_are_said_to_be_filled_in():
    batch, observation = POOL.read([7]), seen(POOL.read([7]))
    spoiled = batch.images.clone()
    spoiled[:, :, :8, :8] = POOL.read([400]).images[:, :, :8, :8]
    completed = torch.zeros(16, dtype=torch.bool)
    completed[0] = True
    assert assess(Finding(images=spoiled), observation).trace["row_space_residual"] > 0.05
    assert assess(Finding(images=spoiled), observation, completed).trace["row_space_residual"] < 0.01


def test_the_weight_keeps_the_images_of_a_descent_near_the_space():
    batch = POOL.read([7, 300])
    observation = seen(batch, batch_size=2, labels=torch.sort(batch.labels).values)
    free, bound = (
        GradientMatching(steps=8, priors={"total_variation": 0.1, "row_space": weight}).run(
            observation, torch.Generator().manual_seed(0)
        )
        for weight in (0.0, 10.0)
    )
    assert bound.trace["row_space_residual"] < free.trace["row_space_residual"] - 0.1
    assert any("outside the span" in caution for caution in free.cautions)


def test_the_weight_is_refused_where_the_space_says_nothing_and_below_zero():
    model = build("vit_nano", depth=1, patch_size=4)
    with pytest.raises(AttackRefusedError, match="row_space"):
        GradientMatching(steps=1, priors={"row_space": 1.0}).run(
            seen(POOL.read([3]), model, batch_size=1), torch.Generator()
        )
    with pytest.raises(ValueError, match="row_space"):
        GradientMatching(priors={"row_space": -1.0})
