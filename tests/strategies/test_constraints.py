import math

import pytest

from fedsim.errors import ScenarioError
from fedsim.scenario import FederationPart
from fedsim.strategies.building import STRATEGIES, build_strategy, strategy_parameters
from fedsim.strategies.constraints import RANGES, clients_fault

FIXED = {"noise_multiplier": 0.3, "clipping_norm": 0.7}
SERVER_SIDE = "DifferentialPrivacyServerSideFixedClipping"
ADAPTIVE = "DifferentialPrivacyServerSideAdaptiveClipping"


def refused(strategy, params, **part):
    with pytest.raises(ScenarioError) as caught:
        build_strategy(FederationPart(**{"clients": 8, **part}, strategy=strategy, strategy_params=params))
    return caught.value.where.removeprefix("federation.strategy_params."), caught.value.message


def test_the_table_knows_every_parameter_of_the_installed_flower():
    assert set(RANGES) == set(STRATEGIES)
    for name, ranges in RANGES.items():
        assert set(ranges) == set(strategy_parameters(name)), name


def test_flowers_own_defaults_lie_inside_their_ranges():
    for name, ranges in RANGES.items():
        for key, parameter in strategy_parameters(name).items():
            if ranges[key] is not None and isinstance(parameter.default, int | float):
                assert ranges[key].holds(parameter.default), (name, key)


@pytest.mark.parametrize(
    ("strategy", "params", "parameter"),
    [
        ("FedAdam", {"beta_2": 2}, "beta_2"),
        ("FedAdam", {"beta_1": 1}, "beta_1"),
        ("FedAdam", {"tau": 0}, "tau"),
        ("FedYogi", {"beta_2": -0.1}, "beta_2"),
        ("FedAdagrad", {"eta": 0}, "eta"),
        ("FedAvgM", {"server_learning_rate": 0}, "server_learning_rate"),
        ("FedAvgM", {"server_momentum": 1}, "server_momentum"),
        ("FedProx", {"proximal_mu": -1}, "proximal_mu"),
        ("FedTrimmedAvg", {"beta": 0.5}, "beta"),
        ("FedTrimmedAvg", {"beta": -0.1}, "beta"),
        ("QFedAvg", {"client_learning_rate": 0}, "client_learning_rate"),
        ("QFedAvg", {"client_learning_rate": 0.1, "q": -1}, "q"),
        ("Krum", {"num_malicious_nodes": -1}, "num_malicious_nodes"),
        ("SFAT", {"alpha": 1}, "alpha"),
        ("SFAT", {"upweighted": 0}, "upweighted"),
        ("FedWAvg", {"sharpness": -1}, "sharpness"),
        ("MultiKrum", {"num_nodes_to_select": 0}, "num_nodes_to_select"),
        (SERVER_SIDE, {**FIXED, "clipping_norm": 0}, "clipping_norm"),
        (ADAPTIVE, {"noise_multiplier": 0.01, "target_clipped_quantile": 1.1}, "target_clipped_quantile"),
        (ADAPTIVE, {"noise_multiplier": 0.01, "initial_clipping_norm": -1}, "initial_clipping_norm"),
        (SERVER_SIDE, {**FIXED, "strategy": {"name": "FedAdam", "params": {"tau": -1}}}, "strategy.params.tau"),
    ],
)
def test_a_value_outside_its_range_is_refused_with_its_path(strategy, params, parameter):
    where, message = refused(strategy, params)
    assert where == parameter and message.startswith("expected a number ")


def test_a_range_is_told_as_it_is_checked():
    assert str(RANGES["FedAdam"]["beta_2"]) == "at least 0 and below 1"
    assert str(RANGES["FedAdam"]["eta"]) == "above 0"
    assert str(RANGES[ADAPTIVE]["target_clipped_quantile"]) == "at least 0 and at most 1"


@pytest.mark.parametrize(
    ("strategy", "params", "clients", "is_refused"),
    [
        # n >= 4f + 3
        ("Bulyan", {"num_malicious_nodes": 1}, 7, False),
        ("Bulyan", {"num_malicious_nodes": 1}, 6, True),
        ("Bulyan", {}, 2, True),
        # n >= 2f + 3
        ("Krum", {"num_malicious_nodes": 2}, 7, False),
        ("Krum", {"num_malicious_nodes": 2}, 6, True),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 4}, 5, False),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 5}, 5, True),
        ("MultiKrum", {"num_malicious_nodes": 1}, 4, True),
        # one that is not preferred
        ("SFAT", {}, 2, False),
        ("SFAT", {}, 1, True),
        ("SFAT", {"upweighted": 4}, 4, True),
        (SERVER_SIDE, {**FIXED, "num_sampled_clients": 4}, 4, False),
        (SERVER_SIDE, {**FIXED, "num_sampled_clients": 1000}, 4, True),
        (SERVER_SIDE, {**FIXED, "num_sampled_clients": 1}, 4, True),
    ],
)
def test_what_does_not_fit_the_clients_of_a_round_is_refused(strategy, params, clients, is_refused):
    if is_refused:
        where, message = refused(strategy, params, clients=clients)
        assert (
            where in ("num_malicious_nodes", "num_nodes_to_select", "num_sampled_clients", "upweighted")
            and str(clients) in message
        )
    else:
        build_strategy(FederationPart(clients=clients, strategy=strategy, strategy_params=params))


def test_it_is_the_clients_of_a_round_that_count_and_not_all():
    where, message = refused("Bulyan", {"num_malicious_nodes": 1}, clients=12, fraction=0.5)
    assert where == "num_malicious_nodes"
    assert message == (
        "Bulyan needs at least 4 * 1 + 3 = 7 clients a round to withstand 1 malicious, and has 6. Use at most 0, or more "
        "clients."
    )


def test_the_bound_of_bulyan_is_flowers_own():
    # Flower skips the aggregation below it, without an error.
    from flwr.serverapp.strategy import bulyan

    source = bulyan.Bulyan.aggregate_train.__code__
    assert 4 in source.co_consts and 3 in source.co_consts
    assert clients_fault("FedAvg", {}, 1) is None and math.isinf(RANGES["FedAdam"]["eta"].high)
