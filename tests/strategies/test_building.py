import pytest
from flwr.serverapp import strategy as flower

from fedsim.errors import ScenarioError
from fedsim.planning import preparation as planning
from fedsim.scenario import FederationPart
from fedsim.strategies.building import STRATEGIES, build_strategy, participants, strategy_parameters
from fedsim.strategies.listing import OWN

FIXED = {"noise_multiplier": 0.3, "clipping_norm": 0.7}
ADAPTIVE = {
    "noise_multiplier": 0.01,
    "initial_clipping_norm": 0.2,
    "target_clipped_quantile": 0.4,
    "clip_norm_lr": 0.3,
    "clipped_count_stddev": 0.5,
}
PARAMS = {
    "Bulyan": {"num_malicious_nodes": 1},
    "DifferentialPrivacyClientSideAdaptiveClipping": ADAPTIVE,
    "DifferentialPrivacyClientSideFixedClipping": FIXED,
    "DifferentialPrivacyServerSideAdaptiveClipping": ADAPTIVE,
    "DifferentialPrivacyServerSideFixedClipping": FIXED,
    "FedAdagrad": {"eta": 0.2, "eta_l": 0.3, "tau": 0.01},
    "FedAdam": {"eta": 0.2, "eta_l": 0.3, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.01},
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.8},
    "FedMedian": {},
    "FedProx": {"proximal_mu": 0.2},
    "FedTrimmedAvg": {"beta": 0.1},
    "FedWAvg": {"sharpness": 2.0, "layer": "fc", "count_examples": False},
    "FedYogi": {"eta": 0.2, "eta_l": 0.3, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.01},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 0.2, "q": 0.3},
    "SFAT": {"alpha": 0.2, "upweighted": 2},
}


def part(**values):
    return FederationPart(**{"clients": 8, **values})


def test_every_strategy_of_flower_that_aggregates_tensors_and_each_of_fedsim_is_known():
    assert set(PARAMS) == set(STRATEGIES)
    assert not any(hasattr(flower, name) for name in OWN)
    assert {f"FedXgb{kind}" for kind in ("Bagging", "Cyclic")}.isdisjoint(STRATEGIES)


@pytest.mark.parametrize("name", PARAMS)
def test_every_strategy_builds_with_all_its_parameters(name):
    params = PARAMS[name]
    assert set(strategy_parameters(name)) == {*params, *(("strategy", "num_sampled_clients") if "Diff" in name else ())}
    built = build_strategy(part(strategy=name, strategy_params=params))
    assert type(built) is (OWN[name] if name in OWN else getattr(flower, name))
    held = vars(built)
    for key, value in params.items():
        # Flower's adaptive wrappers store the first under another name, and the second corrected for the noisy count.
        stored = {"initial_clipping_norm": "clipping_norm"}.get(key, key)
        assert held[stored] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3)), key


def test_numbers_may_be_written_as_text_as_yaml_does():
    assert build_strategy(part(strategy="FedAdam", strategy_params={"tau": "1e-4"})).tau == 1e-4


def test_the_own_keys_of_the_scenario_set_the_fractions():
    built = build_strategy(part(clients=9, fraction=0.5))
    assert (built.fraction_train, built.fraction_evaluate) == (0.5, 0.0)
    assert (built.min_train_nodes, built.min_evaluate_nodes, built.min_available_nodes) == (4, 0, 9)


@pytest.mark.parametrize(
    ("clients", "fraction", "expected"), [(4, 1.0, 4), (9, 0.5, 4), (10, 0.3, 3), (3, 0.1, 1), (100, 0.29, 29)]
)
def test_the_fraction_is_rounded_down_to_at_least_one(clients, fraction, expected):
    assert participants(part(clients=clients, fraction=fraction)) == expected


def test_a_wrapper_takes_fedavg_or_any_other_strategy_inside():
    name = "DifferentialPrivacyServerSideFixedClipping"
    plain = build_strategy(part(strategy=name, strategy_params=FIXED, fraction=0.5))
    assert type(plain.strategy) is flower.FedAvg and plain.num_sampled_clients == 4
    named = build_strategy(part(strategy=name, strategy_params={**FIXED, "strategy": "FedMedian"}))
    assert type(named.strategy) is flower.FedMedian and named.strategy.min_available_nodes == 8
    inner = {"name": "FedTrimmedAvg", "params": {"beta": 0.1}}
    configured = build_strategy(part(strategy=name, strategy_params={**FIXED, "strategy": inner}))
    assert configured.strategy.beta == 0.1


DP = "DifferentialPrivacyServerSideFixedClipping"


@pytest.mark.parametrize(
    ("strategy", "params", "where", "text"),
    [
        ("FedAvgg", {}, "federation.strategy", "no strategy 'FedAvgg'. Did you mean 'FedAvg'?"),
        ("FedXgbBagging", {}, "federation.strategy", "no strategy"),
        ("Strategy", {}, "federation.strategy", "no strategy"),
        ("FedAdam", {"etta": 1}, "federation.strategy_params.etta", "Did you mean 'eta'? Allowed: eta, eta_l"),
        ("FedAvg", {"fraction_train": 1}, "federation.strategy_params.fraction_train", "Allowed: none"),
        ("Bulyan", {"selection_rule": "x"}, "federation.strategy_params.selection_rule", "unknown parameter"),
        ("FedAdam", {"eta": "much"}, "federation.strategy_params.eta", "expected a number, got 'much'"),
        ("FedAdam", {"eta": True}, "federation.strategy_params.eta", "expected a number, got true"),
        ("Krum", {"num_malicious_nodes": 1.5}, "federation.strategy_params.num_malicious_nodes", "a whole number"),
        ("QFedAvg", {}, "federation.strategy_params.client_learning_rate", "missing"),
        (DP, {"noise_multiplier": 1}, "federation.strategy_params.clipping_norm", "missing"),
        (DP, {**FIXED, "noise_multiplier": -1}, "federation.strategy_params.noise_multiplier", "at least 0, got -1"),
        (
            "DifferentialPrivacyServerSideAdaptiveClipping",
            {"noise_multiplier": 1, "clipped_count_stddev": 0.5},
            "federation.strategy_params",
            "refuses",
        ),
        (DP, {**FIXED, "strategy": "FedAvgg"}, "federation.strategy_params.strategy.name", "Did you mean"),
        (DP, {**FIXED, "strategy": 3}, "federation.strategy_params.strategy", "got 3"),
        (DP, {**FIXED, "strategy": {"params": {}}}, "federation.strategy_params.strategy", "expected"),
        (DP, {**FIXED, "strategy": {"name": "FedAvg", "eta": 1}}, "federation.strategy_params.strategy", "expected"),
        (DP, {**FIXED, "strategy": DP}, "federation.strategy_params.strategy.name", "wrapper itself"),
        (
            DP,
            {**FIXED, "strategy": {"name": "FedAdam", "params": {"etta": 1}}},
            "federation.strategy_params.strategy.params.etta",
            "Did you mean 'eta'?",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_yaml_path(strategy, params, where, text):
    with pytest.raises(ScenarioError) as caught:
        build_strategy(part(strategy=strategy, strategy_params=params))
    assert caught.value.where == where
    assert text in caught.value.message


def test_clipping_on_the_client_is_refused_for_shared_gradients(tiny_scenario):
    federation = {"strategy": "DifferentialPrivacyClientSideFixedClipping", "strategy_params": FIXED}
    with pytest.raises(ScenarioError, match=r"^training\.shares: .* Use shares: delta"):
        planning.make(tiny_scenario(federation=federation))
    planning.make(tiny_scenario(federation=federation, training={"shares": "delta"}))
