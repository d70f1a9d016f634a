import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from fedsim_attacks.matching.input_gradients import Evaluation
from fedsim_attacks.matching.optimizers import LBFGS, Adam, Optimizer, rate
from hypothesis import given, settings
from hypothesis import strategies as st

PULL = torch.tensor([1.0, 10.0, 0.1])
CENTER = torch.tensor([[1.0, -2.0, 3.0]])


def bowl(at: Mapping[str, torch.Tensor]) -> Evaluation:
    away = at["images"].detach() - CENTER
    return Evaluation((PULL * away.square()).sum(-1) / 2, {"images": PULL * away})


def leaf(restarts: int = 1) -> dict[str, torch.Tensor]:
    return {"images": torch.nn.Parameter(torch.zeros(restarts, 3))}


def adam(is_signed: bool = False, noise: float = 0.0, seed: int = 0) -> Adam:
    return Adam({"images": 0.1}, is_signed, "images", noise, torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(progress=st.floats(0, 1))
def test_a_constant_rate_stays_and_every_rate_is_a_share(progress: float) -> None:
    assert rate("constant", 0.0, progress) == 1
    for schedule in ("constant", "cosine", "step"):
        assert 0 <= rate(schedule, 0.1, progress) <= rate(schedule, 0.0, progress) <= 1


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.25, math.cos(math.pi / 8) ** 2), (0.5, 0.5), (1.0, 0.0)]
)
def test_a_cosine_falls_from_one_to_zero(progress: float, expected: float) -> None:
    assert rate("cosine", 0.0, progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 1.0), (0.374, 1.0), (0.375, 0.1), (0.624, 0.1), (0.625, 0.01), (0.875, 1e-3), (1.0, 1e-3)],
)
def test_steps_take_a_tenth_after_three_five_and_seven_eighths(progress: float, expected: float) -> None:
    assert rate("step", 0.0, progress) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)])
def test_the_rate_rises_from_zero_while_it_warms_up(progress: float, expected: float) -> None:
    assert rate("constant", 0.2, progress) == pytest.approx(expected)


def test_adam_moves_as_torch_s_does() -> None:
    variables, ours = leaf(2), adam()
    other = torch.nn.Parameter(torch.zeros(2, 3))
    theirs = torch.optim.Adam([other], lr=0.1)
    for step in range(20):
        factor = rate("cosine", 0.1, step / 20)
        ours.step(variables, bowl, factor)
        other.grad = bowl({"images": other}).gradients["images"]
        theirs.param_groups[0]["lr"] = 0.1 * factor
        theirs.step()
    assert torch.equal(variables["images"], other)
    assert not torch.equal(other, torch.zeros(2, 3))


def test_value_and_gradient_are_those_of_the_place_before_the_move() -> None:
    optimizers: list[Optimizer] = [adam(), LBFGS(1.0)]
    for optimizer in optimizers:
        variables = leaf()
        found = optimizer.step(variables, bowl, 1.0)
        assert torch.equal(found.values, bowl(leaf()).values)
        assert torch.equal(found.gradients["images"], bowl(leaf()).gradients["images"])
        assert float(bowl(variables).values) < float(found.values)


@settings(max_examples=30)
@given(scale=st.floats(1e-3, 1e3))
def test_signed_adam_sees_the_sign_of_the_gradient_alone(scale: float) -> None:
    def scaled(at: Mapping[str, torch.Tensor]) -> Evaluation:
        found = bowl(at)
        return found._replace(gradients={"images": scale * found.gradients["images"]})

    one, other = leaf(), leaf()
    optimizers = adam(is_signed=True), adam(is_signed=True)
    for _ in range(3):
        optimizers[0].step(one, bowl, 1.0)
        optimizers[1].step(other, scaled, 1.0)
    assert torch.equal(one["images"], other["images"])
    # Adam's epsilon aside, the first steps are of the learning rate, whatever the slope.
    torch.testing.assert_close(one["images"].data, 0.3 * CENTER.sign(), rtol=1e-4, atol=0)


def test_variables_beside_the_images_are_not_signed_and_have_a_rate_of_their_own() -> None:
    variables = {"images": torch.nn.Parameter(torch.zeros(1, 3)), "labels": torch.nn.Parameter(torch.zeros(1, 2))}
    slopes = {"images": torch.tensor([[5.0, -5.0, 0.0]]), "labels": torch.tensor([[5.0, 1e-9]])}
    optimizer = Adam({"images": 0.1, "labels": 0.02}, True, "images", 0.0, torch.Generator())
    optimizer.step(variables, lambda at: Evaluation(torch.zeros(1), slopes), 0.5)
    torch.testing.assert_close(variables["images"].data, torch.tensor([[-0.05, 0.05, 0.0]]))
    assert float(variables["labels"][0, 0].detach()) == pytest.approx(-0.01, rel=1e-4)
    assert abs(float(variables["labels"][0, 1].detach())) < 0.002  # below Adam's epsilon: as unsigned Adam moves


def test_noise_comes_from_the_generator_in_units_of_the_rate() -> None:
    def flat(at: Mapping[str, torch.Tensor]) -> Evaluation:
        return Evaluation(torch.zeros(len(at["images"])), {"images": torch.zeros_like(at["images"])})

    moved = []
    for seed in (0, 0, 1):
        variables = {"images": torch.nn.Parameter(torch.zeros(2, 5000))}
        adam(noise=0.2, seed=seed).step(variables, flat, 0.5)
        moved.append(variables["images"].detach())
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    assert float(moved[0].std()) == pytest.approx(0.2 * 0.1 * 0.5, rel=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_slope_that_is_no_number_moves_nothing(value: float) -> None:
    variables, slope = leaf(), torch.tensor([[value, 1.0, 1.0]])
    adam().step(variables, lambda at: Evaluation(torch.zeros(1), {"images": slope}), 1.0)
    assert bool(torch.isfinite(variables["images"]).all())
    assert float(variables["images"][0, 0].detach()) == 0


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_lbfgs_reaches_the_bottom_of_a_bowl(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    curvature, center = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)

    def tilted(at: Mapping[str, torch.Tensor]) -> Evaluation:
        away = at["images"].detach() - center
        return Evaluation((away @ curvature * away).sum(-1) / 2, {"images": away @ curvature})

    variables = {"images": torch.nn.Parameter(torch.zeros(1, 6, dtype=torch.float64))}
    optimizer = LBFGS(1.0)
    values = [float(optimizer.step(variables, tilted, 1.0).values) for _ in range(40)]
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    torch.testing.assert_close(variables["images"].data[0], center, atol=1e-5, rtol=1e-5)
