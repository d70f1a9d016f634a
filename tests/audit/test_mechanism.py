"""Empirical bounds on claimed budgets: never above the truth, near it, and above the claims of broken mechanisms."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from fedsim_defenses.dp_noise import DPNoise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from fedsim.audit import mechanism
from fedsim.audit.mechanism import check_mechanism, lower_bound, neighbors
from fedsim.defense import ClientContext, Defense, PrivacyBudget
from fedsim.exchange import Update
from fedsim.gaussian_dp import gaussian_epsilon
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

DELTA = 1e-5
RELATIONS = ["add_remove", "replace"]
LENGTHS = {"a": 0.8, "b": 0.6}


def update_of(scale=0.01):
    generator = torch_generator(0, "update")
    tensors = {
        name: scale * torch.randn(shape, generator=generator) for name, shape in {"a": (3, 4), "b": (5,)}.items()
    }
    return Update(1, 0, "gradient", tensors, 1)


def check(defense, draws=1000, update=None, seed=0):
    return check_mechanism(defense, update or update_of(), client_context, seed, draws)


# The bound on samples of known distributions


def gaussian(seed, draws, mu):
    """Return projections of a Gaussian mechanism on two tensors, of the second neighbor and of the first."""
    generator = np.random.default_rng(seed)
    without, with_it = generator.normal(size=(2, draws, 2))
    return without, with_it + mu * np.array(list(LENGTHS.values()))


def test_the_bound_at_a_multiplier_of_one_is_near_the_exact_epsilon_and_never_above_it():
    found = [lower_bound(*gaussian(seed, 5000, 1.0), LENGTHS, DELTA, 0.95, True).epsilon for seed in range(20)]
    assert 3.4 <= min(found) and max(found) <= gaussian_epsilon(1.0, DELTA) == pytest.approx(4.377, abs=1e-3)


@pytest.mark.parametrize("mu", [0.0, 0.25, 2.0])
def test_bounds_of_few_draws_hold_with_their_confidence(mu):
    found = [lower_bound(*gaussian(seed, 200, mu), LENGTHS, DELTA, 0.95, True).epsilon for seed in range(60)]
    exact = gaussian_epsilon(mu, DELTA)
    assert sum(value > exact for value in found) <= 3  # 5 % of 60


def test_without_the_curve_of_mu_the_bound_of_a_pure_mechanism_is_near_its_epsilon():
    # Randomized response: true with probability e^epsilon / (1 + e^epsilon).
    epsilon, generator = 1.0, np.random.default_rng(0)
    keeps = math.exp(epsilon) / (1 + math.exp(epsilon))
    without = (generator.random((5000, 1)) > keeps).astype(float)
    with_it = (generator.random((5000, 1)) < keeps).astype(float)
    assert 0.8 < lower_bound(without, with_it, {"a": 1.0}, 0.0, 0.95, False).epsilon < epsilon


def test_equal_distributions_of_equal_values_show_nothing():
    constant = np.zeros((400, 1))
    assert lower_bound(constant, constant, {"a": 1.0}, DELTA, 0.95, True).epsilon == 0


def test_constant_outputs_that_differ_show_as_much_as_the_draws_can():
    # No error in 200 draws of each: both rates are below 1 - 0.025^(1/200).
    rate = 1 - 0.025 ** (1 / 200)
    found = lower_bound(np.zeros((400, 1)), np.ones((400, 1)), {"a": 1.0}, DELTA, 0.95, False)
    assert found.epsilon == pytest.approx(math.log((1 - DELTA - rate) / rate), rel=1e-6)
    by_mu = lower_bound(np.zeros((400, 1)), np.ones((400, 1)), {"a": 1.0}, DELTA, 0.95, True)
    assert by_mu.epsilon == pytest.approx(gaussian_epsilon(2 * norm.isf(rate), DELTA), rel=1e-6)


@settings(deadline=None)
@given(count=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.9999))
def test_rates_are_the_limits_of_clopper_and_pearson(count, share, confidence):
    events = round(share * count)
    found = float(mechanism._highest_rates(np.array([events]), count, confidence)[0])
    expected = 1.0 if events == count else beta.ppf(1 - (1 - confidence) / 2, events + 1, count - events)
    assert found == pytest.approx(expected, rel=1e-6)


# The pair


@pytest.mark.parametrize("scale", [1e-4, 100.0])
def test_neighbors_are_at_the_clipping_norm_once_clipped(scale):
    update = update_of(scale)
    for relation, distance in (("replace", 2.0), ("add_remove", 1.0)):
        sent = [
            DPNoise(clip_norm=0.5).protect_update(given, client_context(), torch_generator(0, "noise"))
            for given in neighbors(update, relation, 0.5)
        ]
        apart = math.sqrt(sum(float(((sent[0].tensors[n] - sent[1].tensors[n]) ** 2).sum()) for n in update.tensors))
        assert apart == pytest.approx(0.5 * distance, rel=1e-5)


# Mechanisms


@pytest.mark.parametrize(("relation", "least"), [("add_remove", 3.4), ("replace", 8.4)])
def test_an_honest_mechanism_is_not_refuted_and_the_bound_is_near_its_claim(relation, least):
    found = check(DPNoise(clip_norm=1.0, noise_multiplier=1.0, neighbors=relation), 5000)
    assert found.status == "not refuted" and found.draws == 5000 and found.confidence == 0.95
    assert least <= found.lower_bound <= found.claimed.epsilon


def test_the_same_seed_gives_the_same_bound_and_the_update_stays():
    update, defense = update_of(), DPNoise(clip_norm=1.0, noise_multiplier=1.0)
    before = {name: tensor.clone() for name, tensor in update.tensors.items()}
    first, again, other = (check(defense, 200, update, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert all(torch.equal(update.tensors[name], tensor) for name, tensor in before.items())


def noised(update, sigma, generator, but=()):
    def noise(tensor):
        return sigma * torch.randn(tensor.shape, generator=generator)

    tensors = {name: tensor if name in but else tensor + noise(tensor) for name, tensor in update.tensors.items()}
    return dataclasses.replace(update, tensors=tensors)


def clipped(update, norm):
    factor = min(1.0, norm / update.norm()) if update.norm() else 1.0
    return dataclasses.replace(update, tensors={name: factor * tensor for name, tensor in update.tensors.items()})


class NoiseOnOneTensor(DPNoise):
    def protect_update(self, update, context, generator):
        return noised(clipped(update, 1.0), self.noise_multiplier, generator, but=("b",))


class NoiseForHalfTheSensitivity(DPNoise):
    def protect_update(self, update, context, generator):
        return noised(clipped(update, 1.0), self.noise_multiplier / 2, generator)


class NoClipping(DPNoise):
    def protect_update(self, update, context, generator):
        return noised(update, self.noise_multiplier, generator)


class ClippingByTensor(DPNoise):
    def protect_update(self, update, context, generator):
        each = {name: tensor / max(1.0, float(tensor.norm())) for name, tensor in update.tensors.items()}
        return noised(dataclasses.replace(update, tensors=each), self.noise_multiplier, generator)


class TheSameNoiseEachTime(DPNoise):
    def protect_update(self, update, context, generator):
        return noised(clipped(update, 1.0), self.noise_multiplier, torch.Generator().manual_seed(7))


class NoiseByTheNormOfTheUpdate(DPNoise):
    def protect_update(self, update, context, generator):
        sent = clipped(update, 1.0)
        return noised(sent, self.noise_multiplier * sent.norm(), generator)


BROKEN = [NoiseOnOneTensor, NoiseForHalfTheSensitivity, NoClipping, ClippingByTensor, TheSameNoiseEachTime]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_mechanism_is_refuted(broken, relation):
    found = check(broken(clip_norm=1.0, noise_multiplier=1.0, neighbors=relation))
    assert found.status == "refuted" and found.lower_bound > found.claimed.epsilon


def test_noise_in_proportion_to_the_update_is_refuted_against_no_update():
    found = check(NoiseByTheNormOfTheUpdate(clip_norm=1.0, noise_multiplier=4.0, neighbors="add_remove"))
    assert found.status == "refuted"


def test_noise_that_is_missing_on_one_tensor_is_told_by_its_name():
    assert check(NoiseOnOneTensor(clip_norm=1.0, noise_multiplier=1.0)).statistic == "b"


# What is not checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(Defense):
    epsilon: float = 1.0
    relation: str = "replace"

    def budget(self, context: ClientContext) -> PrivacyBudget:
        return PrivacyBudget(self.epsilon, DELTA, self.relation)


class ClaimsOfUpdates(Claims):
    def protect_update(self, update, context, generator):
        return noised(update, 1.0, generator)


class ClaimsOfSteps(ClaimsOfUpdates):
    def train_step(self, step, context, generator, proceed):
        return proceed(step)


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (Claims(), "does nothing in protect_update"),
        (ClaimsOfSteps(), "takes part in the training"),
        (ClaimsOfUpdates(relation="zero_out"), "neighbors are 'zero_out'"),
        (ClaimsOfUpdates(epsilon=math.inf), "no finite epsilon"),
    ],
)
def test_what_cannot_be_checked_says_why(defense, says):
    found = check(defense)
    assert found.status == "not checked" and says in found.reason and found.lower_bound is None


def test_a_zero_update_is_not_checked_and_without_a_claim_there_is_nothing_to_check():
    zero = dataclasses.replace(update_of(), tensors={"a": torch.zeros(3)})
    assert check(DPNoise(clip_norm=1.0, noise_multiplier=1.0), update=zero).reason == "the update is zero"
    assert check(DPNoise(clip_norm=1.0)) is None


def test_noise_that_is_not_stated_to_be_gaussian_is_not_held_to_the_curve_of_mu():
    found = check(ClaimsOfUpdates(epsilon=100.0), update=update_of(1.0))
    # Far apart, and 500 draws that measure show no more than this without an assumption.
    assert 4 < found.lower_bound < math.log(500 / 3)


def test_few_draws_and_outputs_that_are_not_finite_are_refused():
    class Overflows(DPNoise):
        def protect_update(self, update, context, generator):
            return dataclasses.replace(update, tensors={n: t * math.inf for n, t in update.tensors.items()})

    with pytest.raises(ValueError, match="draws: expected at least 100"):
        check(DPNoise(clip_norm=1.0, noise_multiplier=1.0), 99)
    with pytest.raises(ValueError, match="not finite"):
        check(Overflows(clip_norm=1.0, noise_multiplier=1.0), 100)
