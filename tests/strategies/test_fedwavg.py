"""FedWAvg against its weights written out."""

import math

import audits
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Answer, aggregated

from fedsim.errors import ScenarioError
from fedsim.seeds import torch_generator
from fedsim.simulation import Progress
from fedsim.strategies.fedwavg import similarity


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=4),
    st.sampled_from([0.0, 1.0, 10.0, 300.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_clients_weigh_by_the_cosine_of_their_last_layer_with_the_one_that_was_sent(counts, sharpness, examples, seed):
    draws = torch_generator(seed)
    sent = {
        "body": torch.randn(4, generator=draws),
        "head.weight": torch.randn(2, 3, generator=draws),
        "head.bias": torch.zeros(2),
    }
    answers = [
        Answer({key: tensor + torch.randn(tensor.shape, generator=draws) for key, tensor in sent.items()}, count)
        for count in counts
    ]

    def last(arrays):
        return np.concatenate([arrays["head.weight"].numpy().ravel(), arrays["head.bias"].numpy()]).astype(float)

    reference, weights = last(sent), []
    for answer in answers:
        own = last(answer.arrays)
        cosine = (own @ reference) / math.sqrt((own @ own) * (reference @ reference))
        weights.append((answer.examples if examples else 1) * math.exp(sharpness * (cosine - 1)))
    found = aggregated("FedWAvg", {"sharpness": sharpness, "count_examples": examples}, sent, answers)
    for key in sent:
        mean = sum(w * a.arrays[key].double() for w, a in zip(weights, answers, strict=True)) / sum(weights)
        torch.testing.assert_close(found[key].double(), mean, rtol=1e-4, atol=1e-5)


def test_layers_of_zeros_are_alike_and_one_is_like_no_other():
    zero, one = torch.zeros(3), torch.ones(3)
    assert (similarity(zero, zero), similarity(zero, one), similarity(one, zero)) == (1, 0, 0)
    assert similarity(one, 2 * one) == pytest.approx(1) and similarity(one, -one) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"federation": {"strategy_params": {"layer": "fc"}}}, "such as head, got 'fc'"),
        ({"training": {"trainable": ["*", "!head.*"]}}, "got 'head'"),
        ({"model": {"name": "resnet18", "kwargs": {}}}, "got 'head'"),
    ],
)
def test_a_layer_that_clients_do_not_send_is_refused(tiny_plan, parts, said):
    federation = {"clients": 3, "rounds": 1, "strategy": "FedWAvg", **parts.get("federation", {})}
    with pytest.raises(
        ScenarioError, match=r"federation\.strategy_params\.layer: expected a layer of which clients send"
    ) as no:
        tiny_plan(**{**parts, "federation": federation, "attacks": []})
    assert said in str(no.value)


def test_a_resumed_run_ends_with_the_same_model(tiny_plan, run_folder):
    federation = {"clients": 2, "rounds": 2, "strategy": "FedWAvg"}
    plan = tiny_plan(federation=federation, training={"batch_size": 2, "shares": "delta"}, attacks=[])
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    first = folder.read_model()
    audits.simulate(plan, folder, Progress())
    assert all(torch.equal(tensor, first[name]) for name, tensor in folder.read_model().items())
