import pytest
import torch
from descent_cases import FOUR_PATCHES, attacked, observed, pictures, tiny
from fedsim_attacks.april_optimization import AprilOptimization
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.objective import GradientTerm
from fedsim_attacks.matching.terms import Parts
from fedsim_attacks.update.target import Target, read_target
from hypothesis import given
from hypothesis import strategies as st
from vit_cases import best_control, decibels

from fedsim import models
from fedsim.attack import Attack
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(FOUR_PATCHES)


def seen(model: torch.nn.Module, batch: LabeledImages, update: Update | None = None) -> Observation:
    return observed(model, batch, update, labels=None)


OBSERVATION = seen(tiny(), pictures(0))


def run(attack: Attack, observation: Observation) -> torch.Tensor | None:
    return attacked(attack, observation).images


def without_positions(observation: Observation, zero: bool) -> Update:
    tensors = dict(observation.update.tensors)
    found = tensors.pop("pos_embed")
    return Update(1, 0, "gradient", {**tensors, "pos_embed": torch.zeros_like(found)} if zero else tensors, 1)


def terms(attack: AprilOptimization, observation: Observation, target: Target) -> list[GradientTerm]:
    normalization = models.normalization(tiny())
    known = Knowledge(observation, target, torch.tensor([0]), normalization, torch.Generator())
    return Parts(attack, known).gradient_terms()


def test_positions_lead_to_the_image_where_plain_matching_and_another_update_do_not(model: torch.nn.Module) -> None:
    own, other, attack = pictures(0), pictures(50), AprilOptimization(steps=100, priors={"total_variation": 0.01})
    plain = GradientMatching(steps=100, priors={"total_variation": 0.01})
    led = decibels(run(attack, seen(model, own)), own)
    assert led >= best_control(own) + 5
    assert led >= decibels(run(plain, seen(model, own)), own) + 5
    assert decibels(run(attack, seen(model, other)), own) <= best_control(own) + 1


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 50])
def test_two_hundred_steps_reach_a_image_of_four_patches(row: int) -> None:
    own, attack = pictures(row), AprilOptimization(steps=200, priors={"total_variation": 0.01})
    assert decibels(run(attack, seen(tiny(FOUR_PATCHES, depth=2), own)), own) >= 27


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_a_true_image_is_at_the_minimum(per_token: bool, distance: str, model: torch.nn.Module) -> None:
    observation = seen(model, pictures(0))
    attack = AprilOptimization(per_token=per_token, distance=distance)  # type: ignore[arg-type]
    target = read_target(observation, (), torch.device("cpu"))
    found = terms(attack, observation, target)
    assert [term.weight(0.5) for term in found] == [1, attack.positions]
    assert all(abs(float(term.value(target.gradients))) < 1e-5 for term in found)


@given(scale=st.floats(0.01, 100), flipped=st.integers(0, 5), seed=st.integers(0, 1000))
def test_each_token_that_points_elsewhere_counts_the_same(scale: float, flipped: int, seed: int) -> None:
    observed_rows = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
    found = scale * torch.logspace(-3, 0, 5)[:, None] * observed_rows
    found[:, :flipped] *= -1
    target = Target(["pos_embed"], [observed_rows], True, torch.nn.Identity())
    each, whole = (
        float(terms(AprilOptimization(per_token=t), OBSERVATION, target)[1].value([found])) for t in (True, False)
    )
    assert each == pytest.approx(2 * flipped / 5, abs=1e-4)
    assert 0 <= whole <= 2


def test_a_token_without_a_gradient_has_no_say_and_a_finite_slope() -> None:
    observed_rows, found = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    observed_rows[:, 0] = found[:, 1] = 0
    found.requires_grad_()
    target = Target(["pos_embed"], [observed_rows], True, torch.nn.Identity())
    value = terms(AprilOptimization(), OBSERVATION, target)[1].value([found])
    (slope,) = torch.autograd.grad(value, found)
    assert float(value.detach()) == pytest.approx(1 / 2)
    assert bool(torch.isfinite(slope).all()) and not slope[:, 0].any()


def test_several_images_and_their_labels_are_found_together(model: torch.nn.Module) -> None:
    both = pictures(0, 50)
    finding = attacked(AprilOptimization(steps=2), seen(model, both))
    assert finding.images is not None and finding.images.shape == (2, 3, 8, 8)
    assert finding.labels is not None and sorted(finding.labels.tolist()) == sorted(both.labels.tolist())


def test_positions_that_are_not_shared_or_frozen_are_refused(model: torch.nn.Module) -> None:
    own, attack = pictures(0), AprilOptimization(steps=1)
    for zero in (False, True):
        with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
            run(attack, seen(model, own, without_positions(seen(model, own), zero)))


def test_l2_is_refused_where_the_scale_of_the_gradient_is_unknown(model: torch.nn.Module) -> None:
    own = pictures(0)
    tensors = {name: -0.01 * tensor for name, tensor in seen(model, own).update.tensors.items()}
    update = Update(1, 0, "delta", tensors, 1)
    with pytest.raises(AttackRefusedError, match="scale"):
        run(AprilOptimization(steps=1), observed(model, own, update))
    assert run(AprilOptimization(steps=1, distance="cosine"), observed(model, own, update)) is not None
    told = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    assert run(AprilOptimization(steps=1), observed(model, own, update, training=told)) is not None


@pytest.mark.parametrize(
    "params", [{"positions": 0.0}, {"positions": float("inf")}, {"steps": -1}, {"priors": {"total_variation": -1.0}}]
)
def test_values_out_of_range_are_refused_by_name(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        AprilOptimization(**params)  # type: ignore[arg-type]
