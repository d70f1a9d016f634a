import pytest
import torch
from descent_cases import objective, one_gradient, pictures, tiny
from fedsim_attacks.matching.objective import (
    Candidate,
    GradientTerm,
    ImageTerm,
    Objective,
    annealed,
    constant,
    switched,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import models


@settings(max_examples=30)
@given(weight=st.floats(0, 100), progress=st.floats(0, 1))
def test_a_constant_weight_never_changes(weight: float, progress: float) -> None:
    assert constant(weight)(progress) == weight
    assert annealed(weight, weight, 0.3)(progress) == pytest.approx(weight)
    assert switched(weight, weight, 0.5)(progress) == weight


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.3), (0.2, 0.3), (0.6, 0.03), (0.4, 0.3 * 0.01**0.25), (1.0, 0.003)]
)
def test_an_annealed_weight_waits_and_then_falls_geometrically(progress: float, expected: float) -> None:
    assert annealed(0.3, 0.003, 0.2)(progress) == pytest.approx(expected)


@settings(max_examples=30)
@given(progress=st.floats(0, 1))
def test_a_weight_that_waits_to_the_end_or_is_zero_does_not_fall(progress: float) -> None:
    assert annealed(0.3, 0.003, 1.0)(progress) == 0.3
    assert annealed(0.0, 0.0, 0.3)(progress) == 0


@pytest.mark.parametrize(
    ("at", "progress", "expected"), [(0.5, 0.49, 1.0), (0.5, 0.5, 2.0), (0.0, 0.0, 2.0), (1.0, 0.99, 1.0)]
)
def test_a_switched_weight_changes_once(at: float, progress: float, expected: float) -> None:
    assert switched(1.0, 2.0, at)(progress) == expected


def of(terms: list[GradientTerm], priors: list[ImageTerm]) -> Objective:
    model = tiny()
    response, _ = one_gradient(model, pictures(0))
    return Objective(response, lambda v: 2 * v["images"], models.normalization(model), terms, priors)


def test_terms_are_summed_with_the_weights_of_the_moment() -> None:
    goal = of(
        [
            GradientTerm(constant(2.0), lambda found: found[0].sum()),
            GradientTerm(switched(1.0, 10.0, 0.5), lambda found: found[1].sum()),
        ],
        [
            ImageTerm(constant(3.0), lambda candidate: candidate.images.mean()),
            ImageTerm(annealed(1.0, 0.01, 0.0), lambda candidate: candidate.pixels.mean()),
        ],
    )
    gradients = [torch.ones(2), torch.ones(3)]
    assert float(goal.matching(gradients, 0.0)) == pytest.approx(2 * 2 + 3)
    assert float(goal.matching(gradients, 0.5)) == pytest.approx(2 * 2 + 30)
    variables = {"images": torch.full((1, 3, 8, 8), 0.25)}
    pixel = 0.5 * 0.5 + 0.5  # the image is twice the variable, and timm's mean and deviation are a half
    assert float(goal.prior(variables, None, 0.0)) == pytest.approx(3 * 0.5 + pixel)
    assert float(goal.prior(variables, None, 0.5)) == pytest.approx(3 * 0.5 + 0.1 * pixel)


def test_a_term_without_weight_is_not_evaluated() -> None:
    def fail(_: object) -> torch.Tensor:
        raise AssertionError("evaluated")

    late = switched(0.0, 1.0, 0.5)
    goal = of([GradientTerm(late, fail)], [ImageTerm(late, fail)])
    variables = {"images": torch.zeros(1, 3, 8, 8)}
    assert float(goal.matching([torch.ones(2)], 0.4)) == float(goal.prior(variables, None, 0.4)) == 0
    with pytest.raises(AssertionError, match="evaluated"):
        goal.prior(variables, None, 0.5)


def test_no_term_has_a_slope_of_zero() -> None:
    goal = of([], [])
    gradient, picture = torch.ones(2, requires_grad=True), torch.ones(1, 3, 8, 8, requires_grad=True)
    assert not torch.autograd.grad(goal.matching([gradient], 0.0), gradient)[0].any()
    assert not torch.autograd.grad(goal.prior({"images": picture}, None, 0.0), picture)[0].any()


def test_terms_see_normalized_images_pixels_and_what_the_restarts_agree_on() -> None:
    seen: list[Candidate] = []

    def look(candidate: Candidate) -> torch.Tensor:
        seen.append(candidate)
        return candidate.images.mean()

    batch = pictures(0)
    goal = objective(*one_gradient(tiny(), batch), priors=[look])
    normalized = goal.normalization.normalize(batch.images)
    goal.prior({"images": normalized}, normalized + 1, 0.0)
    assert torch.equal(seen[0].images, normalized)
    torch.testing.assert_close(seen[0].pixels, batch.images)
    assert seen[0].consensus is not None and torch.equal(seen[0].consensus, normalized + 1)
