import math

import numpy as np
import pytest
import torch
from fedsim_defenses._accounting import gaussian_epsilon
from fedsim_defenses.dp_noise import DPNoise
from hypothesis import given, settings
from hypothesis import strategies as st
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
    ("multiplier", "rounds", "epsilon"), [(1, 1, 4.73), (1, 2, 7.08), (1, 20, 30.1), (4, 20, 5.38), (10, 20, 1.91)]
)
def test_epsilon_has_the_known_value_for_sensitivity_equal_to_the_clip_norm(multiplier, rounds, epsilon):
    budget = DPNoise(clip_norm=0.3, noise_multiplier=float(multiplier), neighbors="add_remove").budget(
        client_context(participation=rounds)
    )
    assert budget is not None
    assert float(f"{budget.epsilon:.3g}") == epsilon
    assert (budget.delta, budget.neighbors) == (1e-5, "add_remove")


@pytest.mark.parametrize("rounds", [1, 7, 100])
@pytest.mark.parametrize("ratio", [0.05, 0.7, 3.0, 40.0])
def test_epsilon_agrees_with_opacus_on_a_fine_grid_of_orders(ratio, rounds):
    orders = 1 + np.geomspace(1e-4, 1e4, 4001)
    rdp = compute_rdp(q=1.0, noise_multiplier=ratio, steps=rounds, orders=orders)
    expected, _ = get_privacy_spent(orders=orders, rdp=rdp, delta=1e-5)
    assert gaussian_epsilon(ratio, rounds, 1e-5) == pytest.approx(float(expected), rel=1e-4)


@settings(deadline=None)
@given(ratio=st.floats(0.05, 50), rounds=st.integers(1, 50), log_delta=st.floats(-9, -2))
def test_epsilon_is_never_below_the_exact_one_of_the_gaussian_mechanism(ratio, rounds, log_delta):
    # Balle and Wang 2018, theorem 8; T Gaussian releases are one with sensitivity sqrt(T).
    epsilon, mu = gaussian_epsilon(ratio, rounds, 10**log_delta), math.sqrt(rounds) / ratio
    exact_delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
    assert exact_delta <= 10**log_delta


@settings(deadline=None)
@given(multiplier=st.floats(0.01, 100), rounds=st.integers(1, 200))
def test_epsilon_grows_with_rounds_and_shrinks_with_noise(multiplier, rounds):
    def epsilon(z: float, participations: int) -> float:
        budget = DPNoise(clip_norm=1.0, noise_multiplier=z).budget(client_context(participation=participations))
        assert budget is not None
        return budget.epsilon

    assert epsilon(multiplier, rounds) < epsilon(multiplier, rounds + 1)
    assert epsilon(2 * multiplier, rounds) < epsilon(multiplier, rounds)


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
