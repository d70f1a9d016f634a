"""The average of fedsim's own strategies is Flower's where the weights are the numbers of examples."""

import math

import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from rounds import Answer, aggregated

from fedsim.seeds import torch_generator
from fedsim.strategies.fedwavg import FedWAvg
from fedsim.strategies.weighted import reported_loss, weighted_mean


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), st.integers(0, 99))
def test_the_mean_is_the_weighted_sum_over_the_sum_of_weights(weights, seed):
    draws = torch_generator(seed)
    models = [{"a": torch.randn(3, 2, generator=draws), "b": torch.randn(2, generator=draws)} for _ in weights]
    found = weighted_mean(models, weights)
    for name in ("a", "b"):
        expected = sum(weight * model[name].double() for weight, model in zip(weights, models, strict=True))
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), expected / sum(weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), [("FedWAvg", {"sharpness": 0.0}), ("SFAT", {"alpha": 0.0})])
def test_with_neutral_parameters_it_is_flower_s_fedavg(name, params):
    sent = {"body": torch.zeros(2, 2), "head.weight": torch.ones(3)}
    draws = torch_generator(0)
    answers = [
        Answer({key: torch.randn(tensor.shape, generator=draws) for key, tensor in sent.items()}, count, 1.0 / count)
        for count in (1, 4, 7)
    ]
    found, theirs = aggregated(name, params, sent, answers), aggregated("FedAvg", {}, sent, answers)
    assert list(found) == list(theirs)
    for key, tensor in theirs.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)


def test_no_reply_gives_no_model():
    assert FedWAvg(fraction_evaluate=0.5).aggregate_train(1, []) == (None, None)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_the_largest(loss):
    assert reported_loss(RecordDict({"metrics": MetricRecord({"train_loss": loss})})) == math.inf


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(-1000, 1000))
def test_the_mean_of_equal_whole_numbers_is_that_number(weights, value):
    models = [{"count": torch.tensor([value])} for _ in weights]
    assert weighted_mean(models, weights)["count"].tolist() == [value]


def test_where_no_client_weighs_anything_the_numbers_of_examples_count(monkeypatch):
    monkeypatch.setattr(FedWAvg, "weights", lambda self, server_round, replies: [0.0] * len(replies))
    sent = {"head.weight": torch.zeros(2)}
    answers = [Answer({"head.weight": torch.full((2,), value)}, count) for value, count in ((1.0, 1), (4.0, 2))]
    assert aggregated("FedWAvg", {}, sent, answers)["head.weight"].tolist() == [3.0, 3.0]
