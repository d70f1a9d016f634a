import pytest
import torch
from fedsim_attacks._descent import Candidate, Target
from fedsim_attacks.april_optimization import AprilOptimization
from fedsim_attacks.gradient_matching import GradientMatching
from hypothesis import given
from hypothesis import strategies as st
from vit_cases import best_control, decibels

from fedsim import models
from fedsim.data.photos import Photos
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update
from fedsim.scenario import ModelPart
from fedsim.threat import ModelFactory

SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 96, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def pictures() -> list[LabeledImages]:
    pool = Photos(image_size=8).load(0).train
    return [pool.read([0]), pool.read([50])]


def observation(batch: LabeledImages, without: str = "", **grants: object) -> Observation:
    model = models.build(ModelPart(name="vit_tiny_patch16_224", kwargs=dict(SIZES)), 7, 8, seed=0)
    normalization = models.normalization(model)
    gradient = models.gradient_of(model, normalization.normalize(batch.images), batch.labels)
    gradient.pop(without, None)
    return Observation(
        Update(1, 0, "gradient", gradient, len(batch)),
        ModelFactory(model),
        (3, 8, 8),
        7,
        batch_size=len(batch),
        normalization=normalization,
        **grants,  # type: ignore[arg-type]
    )


def run(attack: GradientMatching | AprilOptimization, seen: Observation) -> torch.Tensor | None:
    return attack.run(seen, torch.Generator().manual_seed(1)).images


def test_positions_lead_to_the_picture_where_plain_matching_and_another_update_do_not(
    pictures: list[LabeledImages],
) -> None:
    (own, other), attack = pictures, AprilOptimization(steps=100, total_variation=0.01)
    plain = GradientMatching(steps=100, total_variation=0.01)
    led = decibels(run(attack, observation(own)), own)
    assert led >= best_control(own) + 5
    assert led >= decibels(run(plain, observation(own)), own) + 5
    assert decibels(run(attack, observation(other)), own) <= best_control(own) + 1


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_two_hundred_steps_reach_a_picture_of_four_patches(place: int, pictures: list[LabeledImages]) -> None:
    own, attack = pictures[place], AprilOptimization(steps=200, total_variation=0.01)
    assert decibels(run(attack, observation(own)), own) >= 27


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_a_true_picture_is_at_the_minimum(per_token: bool, distance: str, pictures: list[LabeledImages]) -> None:
    seen = observation(pictures[0])
    model, names = seen.model(), list(seen.update.tensors)
    gradients = list(seen.update.tensors.values())
    attack = AprilOptimization(per_token=per_token, distance=distance)  # type: ignore[arg-type]
    terms = attack.terms(Target(names, gradients, True, model))
    candidate = Candidate(pictures[0].images, pictures[0].images, gradients)
    assert [term.weight for term in terms] == [1, attack.alpha]
    assert all(abs(float(term.value(candidate))) < 1e-5 for term in terms)


@given(scale=st.floats(0.01, 100), flipped=st.integers(0, 5), seed=st.integers(0, 1000))
def test_each_token_that_points_elsewhere_counts_the_same(scale: float, flipped: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    observed = torch.randn(1, 5, 8, generator=generator)
    lengths = torch.logspace(-3, 0, 5)[:, None]
    found = scale * lengths * observed
    found[:, :flipped] *= -1
    target = Target(["pos_embed"], [observed], True, torch.nn.Identity())
    images = torch.zeros(1, 3, 8, 8)
    each, whole = (
        float(AprilOptimization(per_token=t).terms(target)[1].value(Candidate(images, images, [found])))
        for t in (True, False)
    )
    assert each == pytest.approx(2 * flipped / 5, abs=1e-4)
    assert 0 <= whole <= 2


def test_a_token_without_a_gradient_has_a_finite_slope() -> None:
    observed, found = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    observed[:, 0] = found[:, 1] = 0
    found.requires_grad_()
    target, images = Target(["pos_embed"], [observed], True, torch.nn.Identity()), torch.zeros(1, 3, 8, 8)
    value = AprilOptimization().terms(target)[1].value(Candidate(images, images, [found]))
    (slope,) = torch.autograd.grad(value, found)
    assert float(value.detach()) == pytest.approx(2 / 3)
    assert torch.isfinite(slope).all()


def test_several_pictures_and_their_labels_are_found_together(pictures: list[LabeledImages]) -> None:
    both = LabeledImages(torch.cat([p.images for p in pictures]), torch.cat([p.labels for p in pictures]))
    finding = AprilOptimization(steps=2).run(observation(both), torch.Generator().manual_seed(0))
    assert finding.images is not None and finding.images.shape == (2, 3, 8, 8)
    assert finding.labels is not None and sorted(finding.labels.tolist()) == sorted(both.labels.tolist())


def test_no_step_returns_the_start(pictures: list[LabeledImages]) -> None:
    finding = AprilOptimization(steps=0).run(observation(pictures[0]), torch.Generator().manual_seed(0))
    assert finding.images is not None and finding.trace["step"] == 0


def test_positions_that_are_not_shared_or_frozen_are_refused(pictures: list[LabeledImages]) -> None:
    attack = AprilOptimization(steps=1)
    with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
        run(attack, observation(pictures[0], without="pos_embed"))
    seen = observation(pictures[0])
    frozen = {**seen.update.tensors, "pos_embed": torch.zeros_like(seen.update.tensors["pos_embed"])}
    with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
        run(
            attack,
            Observation(Update(1, 0, "gradient", frozen, 1), seen.model, (3, 8, 8), 7, 1, None, seen.normalization),
        )
    nothing = {name: torch.zeros_like(tensor) for name, tensor in frozen.items()}
    labels = pictures[0].labels
    with pytest.raises(AttackRefusedError, match="holds no gradient"):
        run(
            attack,
            Observation(Update(1, 0, "gradient", nothing, 1), seen.model, (3, 8, 8), 7, 1, labels, seen.normalization),
        )


def test_l2_is_refused_where_the_scale_of_the_gradient_is_unknown(pictures: list[LabeledImages]) -> None:
    seen = observation(pictures[0])
    update = Update(1, 0, "delta", {n: -0.01 * t for n, t in seen.update.tensors.items()}, 1)
    given = (update, seen.model, (3, 8, 8), 7, 1, pictures[0].labels, seen.normalization)
    with pytest.raises(AttackRefusedError, match="scale"):
        run(AprilOptimization(steps=1), Observation(*given))
    assert run(AprilOptimization(steps=1, distance="cosine"), Observation(*given)) is not None
    told = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    assert run(AprilOptimization(steps=1), Observation(*given, training=told)) is not None


@pytest.mark.parametrize("params", [{"alpha": 0.0}, {"alpha": float("inf")}, {"steps": -1}, {"total_variation": -1.0}])
def test_values_out_of_range_are_refused_by_name(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        AprilOptimization(**params)  # type: ignore[arg-type]
