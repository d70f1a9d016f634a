import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from fedsim import wire
from fedsim.errors import ScenarioError
from fedsim.federation.aggregation import CheckedStrategy, ClientsFailedError, Warnings
from fedsim.federation.engine_inline import InlineGrid
from fedsim.scenario import FederationPart
from fedsim.strategies.building import STRATEGIES

START = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
WRAPPER = "DifferentialPrivacyServerSideFixedClipping"
FIXED = {"noise_multiplier": 0.0, "clipping_norm": 1.0}


class Round:
    """Lets a strategy begin a round, answers for some of its clients, and lets it aggregate."""

    def __init__(self, strategy="FedAvg", params=None, clients=4, rounds=2):
        self._grid = InlineGrid(ClientApp(), clients)
        self._nodes = {node: client for client, node in enumerate(self._grid.get_node_ids())}
        part = FederationPart(clients=clients, rounds=rounds, strategy=strategy, strategy_params=params or {})
        self.strategy = CheckedStrategy(part, self._nodes)

    def aggregate(self, round=1, failed=(), said="out of battery"):
        asks = list(self.strategy.configure_train(round, wire.to_arrays(START), ConfigRecord(), self._grid))
        return self.strategy.aggregate_train(round, [self._answer(ask, failed, said) for ask in asks])[0]

    def _answer(self, ask, failed, said):
        client = self._nodes[ask.metadata.dst_node_id]
        if client in failed:
            return wire.failure(ask, said)
        arrays = wire.to_arrays({name: tensor + client + 1 for name, tensor in START.items()})
        metrics = MetricRecord({"num-examples": 1, "train_loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=ask)


class Returns(Strategy):
    """A strategy that gives back what it was made with, or raises it."""

    def __init__(self, given):
        self._given = given

    def configure_train(self, server_round, arrays, config, grid):
        return [Message(RecordDict({"arrays": arrays}), node, "train") for node in grid.get_node_ids()]

    def aggregate_train(self, server_round, replies):
        if isinstance(self._given, Exception):
            raise self._given
        return self._given, None

    def configure_evaluate(self, server_round, arrays, config, grid):
        return []

    def aggregate_evaluate(self, server_round, replies):
        return None

    def summary(self):
        pass


def returning(monkeypatch, given):
    monkeypatch.setattr("fedsim.federation.aggregation.build_strategy", lambda part, heard: Returns(given))
    return Round("FedMedian")


def arrays_of(**tensors):
    return ArrayRecord({name: Array(np.asarray(value, dtype=np.float32)) for name, value in tensors.items()})


@pytest.mark.parametrize("strategy", ["FedAvg", "FedMedian", "FedAdam", "QFedAvg"])
def test_what_a_strategy_makes_of_finite_replies_passes(strategy):
    round = Round(strategy, {"client_learning_rate": 0.1} if strategy == "QFedAvg" else {})
    found = wire.to_tensors(round.aggregate())
    assert list(found) == ["b", "a"] and round.strategy.warnings.take() == []
    if strategy == "FedAvg":
        assert torch.equal(found["b"], START["b"] + 2.5)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "returned no model in round 1 from 4 replies"),
        (ArrayRecord(), "returned no model in round 1 from 4 replies"),
        (arrays_of(b=[0, 1, 2], a=[[0, 0], [0, np.nan]]), "a is not finite in 1 of 4 entries"),
        (arrays_of(b=[0, 1, 2]), "a is missing"),
        (arrays_of(b=[0, 1, 2], a=[0, 0, 0, 0]), r"a has shape \(4,\), not \(2, 2\)"),
        (KeyError("cls_token"), "could not aggregate round 1: KeyError: 'cls_token'"),
    ],
)
def test_what_is_no_finite_model_stops_the_run_and_names_the_strategy(monkeypatch, given, text):
    with pytest.raises(ScenarioError, match=rf"^federation\.strategy: FedMedian .*{text}") as caught:
        returning(monkeypatch, given).aggregate()
    assert "learning_rate" not in str(caught.value) and "federation.strategy_params" in str(caught.value)


def test_a_strategy_that_needs_every_client_leaves_the_model_for_a_round_and_says_so():
    round = Round(WRAPPER, FIXED)
    assert round.aggregate(1, failed=(2,)) is None
    (warning,) = round.strategy.warnings.take()
    assert warning.startswith(
        f"federation.strategy: {WRAPPER} returned no model in round 1 from 3 replies while 1 failed"
    )
    assert round.aggregate(2) is not None


def test_a_model_that_never_moves_stops_the_run_in_the_last_round():
    round = Round("Bulyan", {"num_malicious_nodes": 1}, clients=7)
    assert round.aggregate(1, failed=(2,)) is None
    assert "Insufficient replies, skipping Bulyan aggregation" in " ".join(round.strategy.warnings.take())
    with pytest.raises(ScenarioError, match=r"^federation\.strategy: Bulyan returned no model in any round"):
        round.aggregate(2, failed=(2,))


def test_a_guarantee_that_failed_clients_have_broken_is_warned_of():
    round = Round("Krum", {"num_malicious_nodes": 1}, clients=5)
    assert round.aggregate(1, failed=(4,)) is not None
    assert "Krum needs at least 2 * 1 + 3 = 5 clients a round" in round.strategy.warnings.take()[0]


def test_a_round_without_any_update_stops_the_run_with_what_a_client_said():
    with pytest.raises(ClientsFailedError, match=r"in round 2; client 0 said: out of battery\.$"):
        Round().aggregate(2, failed=(0, 1, 2, 3))
    overflow = "the update is not finite; lower training.learning_rate"
    with pytest.raises(ScenarioError, match=r"^training\.learning_rate: no client"):
        Round().aggregate(1, failed=(0, 1, 2, 3), said=overflow)


def test_flowers_warnings_are_kept_once_and_logged(caplog):
    with caplog.at_level(logging.WARNING, "fedsim"):
        round = Round("FedProx")
    assert round.strategy.warnings.take() == [
        "FedProx initialized with `proximal_mu=0.0`. This makes the strategy equivalent to FedAvg."
    ]
    assert "equivalent to FedAvg" in caplog.text
    assert round.strategy.warnings.take() == []


def test_warnings_that_differ_in_numbers_alone_are_one_and_a_flood_ends():
    warnings = Warnings()
    for count in range(5):
        warnings.add(f"{count} replies\nof 4 \x1b[31m")
    assert warnings.take() == ["0 replies of 4 \\x1b[31m"]
    for word in range(100):
        warnings.add("x" * (word + 1))
    assert len(warnings.take()) == 19


def test_no_strategy_of_flower_has_a_loop_of_its_own():
    # `CheckedStrategy` runs the loop of the base class.
    assert all(strategy.start is Strategy.start for strategy in STRATEGIES.values())
