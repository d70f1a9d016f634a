import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.gdp import eps_from_mu

from fedsim import gaussian_dp
from fedsim.scenario import load
from fedsim.strategies.building import STRATEGIES
from fedsim.strategies.central_privacy import DELTA, caution, global_models_budget, is_central, unaccounted

FIXED = [name for name in STRATEGIES if name.startswith("Diff") and "Fixed" in name]
ADAPTIVE = [name for name in STRATEGIES if name.startswith("Diff") and "Adaptive" in name]


def test_the_wrappers_of_flower_are_told_from_its_other_strategies():
    assert [name for name in STRATEGIES if is_central(name)] == sorted(FIXED + ADAPTIVE)


@pytest.mark.parametrize("name", FIXED + ADAPTIVE)
def test_every_wrapper_is_said_to_protect_nothing_from_the_server(name):
    assert "no protection from the server itself, and gives no epsilon against it" in caution(name)
    assert ("clipped and without that noise" in caution(name)) == ("ClientSide" in name)
    assert "it sees their sum without that noise" in caution(name, True)


@pytest.mark.parametrize("name", FIXED)
def test_an_epsilon_is_stated_for_noisy_averages_alone(name):
    assert unaccounted(name, {"noise_multiplier": 1.0}) is None
    assert unaccounted(name, {"noise_multiplier": 1.0, "strategy": {"name": "FedProx"}}) is None
    assert "is 0" in unaccounted(name, {"noise_multiplier": 0.0})
    assert "FedAdam is none" in unaccounted(name, {"noise_multiplier": 1.0, "strategy": "FedAdam"})
    for adaptive in ADAPTIVE:
        assert "norm of the next round" in unaccounted(adaptive, {"noise_multiplier": 1.0})


@settings(deadline=None, max_examples=30)
@given(clients=st.integers(1, 30), rounds=st.integers(1, 20), multiplier=st.floats(0.5, 50))
def test_equal_weights_are_gaussian_privacy_of_twice_the_rounds_root_over_the_multiplier(clients, rounds, multiplier):
    budget = global_models_budget(multiplier, clients, [dict.fromkeys(range(clients), 4)] * rounds)
    mu = 2 * math.sqrt(rounds) / multiplier
    assert budget.epsilon == pytest.approx(gaussian_dp.gaussian_epsilon(mu, DELTA), rel=1e-9)
    if 0.1 < mu < 8:
        assert budget.epsilon == pytest.approx(eps_from_mu(mu=mu, delta=DELTA), rel=1e-3)


def test_the_client_with_the_largest_weights_counts_over_its_rounds():
    rounds = [{0: 6, 1: 2}, {1: 2, 2: 2}, {0: 1, 1: 3}, {}]
    largest = 4 * math.sqrt(max(0.75**2 + 0.25**2, 0.25**2 + 0.5**2 + 0.75**2))
    expected = gaussian_dp.gaussian_epsilon(largest, DELTA)
    assert global_models_budget(1.0, 2, rounds).epsilon == pytest.approx(expected)
    assert global_models_budget(1.0, 2, [{}]).epsilon == 0


def test_a_replaced_update_moves_flowers_average_by_no_more_than_is_accounted():
    # Two extreme updates of norm C, weights as reported: the distance over the noise is the mu of one round.
    counts, norm, multiplier = {0: 6, 1: 1, 2: 1}, 0.7, 1.3
    updates = {client: np.array([norm, 0.0]) for client in counts}
    average = np.average([*updates.values()], axis=0, weights=[*counts.values()])
    other = np.average([-updates[0], updates[1], updates[2]], axis=0, weights=[*counts.values()])
    mu = np.linalg.norm(average - other) / (multiplier * norm / 3)
    found = global_models_budget(multiplier, 3, [counts]).epsilon
    assert found == pytest.approx(gaussian_dp.gaussian_epsilon(float(mu), DELTA))


def test_the_epsilons_in_the_gallery_are_those_of_its_scenario():
    root = Path(__file__).parents[2]
    scenario = load(root / "scenarios" / "flower_privacy.yaml")[0]
    rounds, clients = scenario.federation.rounds, scenario.federation.clients
    multiplier = scenario.federation.strategy_params["noise_multiplier"]
    counts = dict.fromkeys(range(clients), 1)
    expected = [global_models_budget(multiplier, clients, [counts] * rounds).epsilon]
    for part in scenario.defenses:
        given = part.params
        sigma = given["sensitivity"] * math.sqrt(2 * math.log(1.25 / given["delta"])) / given["epsilon"]
        mu = math.sqrt(rounds) * 2 * given["clipping_norm"] / sigma
        expected.append(gaussian_dp.gaussian_epsilon(mu, given["delta"]))
    table = (root / "scenarios" / "README.md").read_text().split("<!-- table: flower_privacy -->")[1]
    headings = [line.split("|")[1] for line in table.split("<!-- end -->")[0].splitlines() if "epsilon" in line]
    assert [float(heading.split()[-1]) for heading in headings] == pytest.approx(expected, rel=3e-2)
