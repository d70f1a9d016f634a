import math

import mpmath
import numpy as np
import pytest
import torch
from fedsim_defenses._accounting import gaussian_epsilon
from fedsim_defenses.dp_noise import DPNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.gdp import eps_from_mu
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.stats import kstest, norm
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

MODEL = nn.Linear(2, 2)


def update_of(*shapes: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> Update:
    generator = torch_generator(seed, "update")
    tensors = {f"t{i}": scale * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    return Update(3, 1, "gradient", tensors, 4)


def protect(defense: DPNoise, update: Update, seed: int = 0) -> Update:
    return defense.protect_update(update, client_context(), torch_generator(seed, "noise"))


def loop_norm(update: Update) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for t in update.tensors.values() for v in t.flatten()))


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    log_scale=st.floats(-6, 6),
    clip_norm=st.floats(1e-3, 1e3),
)
def test_clipping_agrees_with_a_loop_over_the_entries(shapes, log_scale, clip_norm):
    update = update_of(*shapes, scale=10**log_scale)
    clipped = protect(DPNoise(clip_norm=clip_norm), update)
    factor = min(1.0, clip_norm / loop_norm(update))
    for name, tensor in update.tensors.items():
        expected = torch.tensor([factor * float(v) for v in tensor.flatten()]).reshape(tensor.shape)
        torch.testing.assert_close(clipped.tensors[name], expected, rtol=1e-6, atol=0)
    assert clipped.norm() <= clip_norm * (1 + 1e-6)


def test_an_update_within_the_bound_passes_bit_for_bit():
    update = update_of((3, 5), (7,))
    clipped = protect(DPNoise(clip_norm=100.0), update)
    assert all(torch.equal(clipped.tensors[name], tensor) for name, tensor in update.tensors.items())


def test_defaults_leave_the_update_alone_and_say_so():
    update = update_of((3, 5))
    assert protect(DPNoise(), update) is update
    assert DPNoise().cautions(MODEL) == ("clip_norm is not set: updates are sent as they are.",)


def test_names_order_shapes_types_and_header_stay_and_the_input_is_not_changed():
    update = update_of((3, 5), (7,), (), (2, 2, 2))
    before = {name: tensor.clone() for name, tensor in update.tensors.items()}
    sent = protect(DPNoise(clip_norm=0.5, noise_multiplier=1.0), update)
    assert list(sent.tensors) == list(update.tensors)
    assert all(sent.tensors[n].shape == t.shape and sent.tensors[n].dtype == t.dtype for n, t in before.items())
    assert (sent.round, sent.client, sent.kind, sent.num_examples) == (3, 1, "gradient", 4)
    assert all(torch.equal(update.tensors[name], tensor) for name, tensor in before.items())


def test_a_zero_update_does_not_divide_by_zero():
    zero = Update(1, 0, "delta", {"w": torch.zeros(4, 4)}, 1)
    assert not protect(DPNoise(clip_norm=1.0), zero).tensors["w"].any()
    assert protect(DPNoise(clip_norm=1.0, noise_multiplier=1.0), zero).is_finite()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_update_that_is_not_finite_is_refused_not_hidden(value):
    update = Update(1, 0, "delta", {"w": torch.tensor([1.0, value])}, 1)
    with pytest.raises(ValueError, match="not finite"):
        protect(DPNoise(clip_norm=1.0), update)


@pytest.mark.parametrize(("multiplier", "clip_norm"), [(0.5, 2.0), (3.0, 0.1)])
def test_noise_is_gaussian_with_standard_deviation_of_multiplier_times_clip_norm(multiplier, clip_norm):
    update = update_of((300, 300), (5,), (20_000,))
    defense = DPNoise(clip_norm=clip_norm, noise_multiplier=multiplier)
    clipped = protect(DPNoise(clip_norm=clip_norm), update)
    sent = protect(defense, update)
    noise = torch.cat([(sent.tensors[n].double() - clipped.tensors[n].double()).flatten() for n in sent.tensors])
    sigma = multiplier * clip_norm
    # 110,005 draws: the standard error of the estimate is sigma / 469.
    assert float(noise.std()) == pytest.approx(sigma, rel=0.015)
    assert abs(float(noise.mean())) < 6 * sigma / math.sqrt(len(noise))
    assert kstest(noise.numpy() / sigma, norm.cdf).pvalue > 1e-3


def test_noise_of_different_tensors_differs():
    zero = Update(1, 0, "delta", {"a": torch.zeros(64), "b": torch.zeros(64)}, 1)
    sent = protect(DPNoise(clip_norm=1.0, noise_multiplier=1.0), zero).tensors
    assert abs(float(torch.corrcoef(torch.stack([sent["a"], sent["b"]]))[0, 1])) < 0.5


def test_the_same_generator_state_gives_the_same_noise_and_another_gives_other_noise():
    defense, update = DPNoise(clip_norm=1.0, noise_multiplier=1.0), update_of((8, 8))
    first, again, other = (protect(defense, update, seed).tensors["t0"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("multiplier", "rounds", "epsilon"), [(1, 1, 4.38), (1, 2, 6.57), (1, 20, 28.4), (4, 20, 4.98), (10, 20, 1.76)]
)
def test_epsilon_has_the_known_value_for_sensitivity_equal_to_the_clip_norm(multiplier, rounds, epsilon):
    budget = DPNoise(clip_norm=0.3, noise_multiplier=float(multiplier), neighbors="add_remove").budget(
        client_context(participation=rounds)
    )
    assert budget is not None
    assert float(f"{budget.epsilon:.3g}") == epsilon
    assert (budget.delta, budget.neighbors) == (1e-5, "add_remove")


# dp-accounting 0.6.0, get_epsilon_gaussian(noise_multiplier / rounds**0.5, delta), printed to 12 digits: a root search in
# epsilon, on logarithms of normal distribution functions.
DP_ACCOUNTING = [
    (1.0, 1, 1e-5, 4.37717809568),
    (1.0, 2, 1e-5, 6.57297006703),
    (1.0, 20, 1e-5, 28.3734738033),
    (4.0, 20, 1e-5, 4.98330640597),
    (10.0, 20, 1e-5, 1.76005714951),
    (0.5, 7, 1e-5, 35.8365820427),
    (0.01, 1, 1e-5, 5425.50984615),
    (40.0, 100, 1e-5, 0.926341503998),
    (2.0, 3, 1e-6, 4.15181672776),
    (2.0, 3, 0.1, 0.893324410336),
    (1000.0, 1, 1e-5, 0.00193872496996),
    (1000.0, 10**6, 1e-12, 7.23849442018),
    (0.05, 200, 1e-9, 41695.4464641),
    (300.0, 1000, 0.001, 0.210552928761),
    (1.0, 1, 1e-300, 37.4488479121),
]


@pytest.mark.parametrize(("ratio", "rounds", "delta", "epsilon"), DP_ACCOUNTING)
def test_epsilon_agrees_with_dp_accounting(ratio, rounds, delta, epsilon):
    assert gaussian_epsilon(ratio, rounds, delta) == pytest.approx(epsilon, rel=1e-9)


# Without subsampling (a rate of 1), where all of them are about the same mechanism. Opacus' GaussianAccountant is left out: its
# mu is a limit for many steps at a small rate, and 41 % too large at a multiplier of 1. Its curve of mu is exact.
RATE = 1.0
OPACUS_GRID = [
    (1.0, 1, 1e-5),
    (1.0, 20, 1e-5),
    (4.0, 20, 1e-5),
    (10.0, 20, 1e-5),
    (40.0, 100, 1e-5),
    (2.0, 3, 1e-6),
    (2.0, 3, 0.01),
]


@pytest.mark.parametrize(("ratio", "rounds", "delta"), OPACUS_GRID)
def test_epsilon_agrees_with_the_gaussian_curve_of_opacus(ratio, rounds, delta):
    expected = eps_from_mu(mu=math.sqrt(rounds) / ratio, delta=delta)
    assert gaussian_epsilon(ratio, rounds, delta) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # at a rate of 1 it takes the logarithm of zero
@pytest.mark.filterwarnings("ignore:Optimal order:UserWarning")  # of the Renyi bound from which it takes its range
@pytest.mark.parametrize(("ratio", "rounds", "delta"), OPACUS_GRID)
def test_epsilon_is_within_the_stated_error_of_the_numerical_composition_of_opacus(ratio, rounds, delta):
    accountant = PRVAccountant()
    accountant.history = [(ratio, RATE, rounds)]
    upper = float(accountant.get_epsilon(delta=delta, eps_error=0.01))  # an upper bound, off by 0.01 below and above
    assert upper - 0.02 <= gaussian_epsilon(ratio, rounds, delta) <= upper


@pytest.mark.parametrize("rounds", [1, 7, 100])
@pytest.mark.parametrize("ratio", [0.05, 0.7, 3.0, 40.0])
def test_epsilon_is_below_the_bound_by_renyi_orders_of_opacus_and_near_it(ratio, rounds):
    orders = 1 + np.geomspace(1e-4, 1e4, 4001)
    rdp = compute_rdp(q=RATE, noise_multiplier=ratio, steps=rounds, orders=orders)
    bound, _ = get_privacy_spent(orders=orders, rdp=rdp, delta=1e-5)
    assert 0.85 * bound <= gaussian_epsilon(ratio, rounds, 1e-5) <= bound


@settings(deadline=None)
@given(
    log_ratio=st.floats(-6, 6),
    rounds=st.integers(1, 10**6),
    delta=st.floats(-300, -0.0005).map(lambda exponent: 10.0**exponent) | st.floats(1e-9, 0.999),
)
def test_epsilon_is_never_below_the_exact_one_of_the_gaussian_mechanism(log_ratio, rounds, delta):
    # Balle and Wang 2018, theorem 8; T Gaussian releases are one with sensitivity sqrt(T).
    ratio = 10**log_ratio
    epsilon = gaussian_epsilon(ratio, rounds, delta)
    with mpmath.workdps(80):
        mu = mpmath.sqrt(rounds) / mpmath.mpf(ratio)
        tail = mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)
        assert mpmath.ncdf(mu / 2 - epsilon / mu) - tail <= delta


@settings(deadline=None)
@given(log_multiplier=st.floats(-6, 4), rounds=st.integers(1, 10**6))
def test_epsilon_grows_with_rounds_and_shrinks_with_noise(log_multiplier, rounds):
    multiplier = 10**log_multiplier

    def epsilon(z: float, participations: int) -> float:
        budget = DPNoise(clip_norm=1.0, noise_multiplier=z).budget(client_context(participation=participations))
        assert budget is not None
        return budget.epsilon

    assert epsilon(multiplier, rounds) <= epsilon(multiplier, rounds + 1)
    assert epsilon(multiplier, rounds) < epsilon(multiplier, 2 * rounds) or epsilon(multiplier, 2 * rounds) == 0
    assert epsilon(2 * multiplier, rounds) < epsilon(multiplier, rounds) or epsilon(multiplier, rounds) == 0


def test_replacing_a_client_costs_as_much_as_half_the_noise():
    replace = DPNoise(clip_norm=1.0, noise_multiplier=2.0, neighbors="replace").budget(client_context(participation=5))
    add_remove = DPNoise(clip_norm=1.0, noise_multiplier=1.0, neighbors="add_remove").budget(
        client_context(participation=5)
    )
    assert replace is not None and add_remove is not None
    assert replace.epsilon == add_remove.epsilon


def test_no_participation_costs_nothing_and_hardly_any_noise_costs_infinity():
    assert gaussian_epsilon(1.0, 0, 1e-5) == 0
    assert gaussian_epsilon(1e-300, 1, 1e-5) == math.inf
    assert gaussian_epsilon(1e9, 1, 1e-5) == 0


@pytest.mark.parametrize(("ratio", "releases", "delta"), [(0.0, 1, 0.1), (1.0, -1, 0.1), (1.0, 1, 0.0), (1.0, 1, 1.0)])
def test_accounting_refuses_what_has_no_meaning(ratio, releases, delta):
    with pytest.raises(ValueError, match="expected"):
        gaussian_epsilon(ratio, releases, delta)


def test_clipping_alone_claims_no_budget_and_warns():
    assert DPNoise(clip_norm=1.0).budget(client_context(participation=3)) is None
    assert DPNoise().budget(client_context(participation=3)) is None
    assert "hides nothing" in DPNoise(clip_norm=1.0).cautions(MODEL)[0]


def test_a_large_epsilon_is_called_meaningless_and_a_small_one_is_not():
    weak = DPNoise(clip_norm=1.0, noise_multiplier=0.1).cautions(MODEL)
    strong = DPNoise(clip_norm=1.0, noise_multiplier=4.0).cautions(MODEL)
    assert any("no meaningful guarantee" in caution for caution in weak)
    assert len(strong) == 1 and "seed" in strong[0]


@pytest.mark.parametrize(("delta", "is_told"), [(1e-5, False), (1e-3, False), (0.01, True), (0.999999, True)])
def test_a_delta_that_no_epsilon_makes_up_for_is_told(delta, is_told):
    stated = DPNoise(clip_norm=1.0, noise_multiplier=10.0, delta=delta).cautions(MODEL)
    assert any(caution.startswith(f"Delta is {delta:g}: ") for caution in stated) == is_told


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"noise_multiplier": 1.0}, "clip_norm"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"clip_norm": 1.0, "noise_multiplier": -0.1}, "noise_multiplier"),
        ({"clip_norm": 1.0, "noise_multiplier": math.nan}, "noise_multiplier"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"neighbors": "add"}, "neighbors"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(DPNoise, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
    assert "expected" in refused.value.message and "got" in refused.value.message
