import pickle

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsim import wire
from fedsim.federation.client_app import Client, client_app
from fedsim.federation.engine_inline import InlineGrid
from fedsim.federation.training import local_update, privacy_budget

DELTA = {"shares": "delta", "batch_size": 2, "local_steps": 2}
NOISE = {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 1.0}, "clients": [1]}


class Server:
    """Asks an inline client as a strategy would."""

    def __init__(self, plan):
        self.plan, self.grid = plan, InlineGrid(client_app(plan.scenario), plan.scenario.federation.clients)

    def ask(self, client, round=1, **config):
        content = RecordDict(
            {
                "arrays": wire.to_arrays(self.plan.initial_weights()),
                "config": ConfigRecord({"server-round": round, **config}),
            }
        )
        (reply,) = self.grid.send_and_receive([Message(content, 1000 + client, "train")])
        return reply


def test_a_reply_holds_what_strategies_expect(tiny_plan):
    plan = tiny_plan(training={"batch_size": 2})
    content = Server(plan).ask(1).content
    assert list(content.array_records) == ["arrays"] and list(content.metric_records) == ["metrics"]
    assert list(content["arrays"]) == list(plan.initial_weights())
    assert content["metrics"]["num-examples"] == 2
    assert isinstance(content["metrics"]["train_loss"], float)


def test_a_gradient_crosses_the_wire_bit_for_bit(tiny_plan):
    plan = tiny_plan(training={"batch_size": 2})
    content = Server(plan).ask(1, round=2).content
    expected = local_update(plan, 1, 2, plan.initial_weights()).update.tensors
    found = wire.to_tensors(content["arrays"])
    assert content["update"]["kind"] == "gradient"
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_delta_crosses_the_wire_as_new_weights(tiny_plan):
    plan = tiny_plan(training=DELTA)
    content, weights = Server(plan).ask(2).content, plan.initial_weights()
    expected = local_update(plan, 2, 1, weights).update.tensors
    found = wire.to_tensors(content["arrays"])
    assert content["update"]["kind"] == "delta"
    for name, delta in expected.items():
        assert torch.equal(found[name], weights[name] + delta)


def test_the_server_sets_the_proximal_coefficient(tiny_plan):
    plan = tiny_plan(training={**DELTA, "learning_rate": 0.1})
    server, weights = Server(plan), plan.initial_weights()
    found = wire.to_tensors(server.ask(0, **{"proximal-mu": 3.0}).content["arrays"])
    expected = local_update(plan, 0, 1, weights, proximal_mu=3.0).update.tensors
    assert all(torch.equal(found[name], weights[name] + expected[name]) for name in expected)
    plain = wire.to_tensors(server.ask(0).content["arrays"])
    assert not torch.equal(plain["head.weight"], found["head.weight"])


def test_every_node_says_which_partition_it_holds(tiny_plan):
    grid = Server(tiny_plan()).grid
    asks = [Message(RecordDict(), node, "query.identify") for node in grid.get_node_ids()]
    answers = [reply.content["node"]["partition-id"] for reply in grid.send_and_receive(asks)]
    assert answers == [0, 1, 2]


def epsilon_after(plan, participations):
    return privacy_budget(
        (planned, plan.context_of(1, participation=participations)) for planned in plan.defenses_of(1)
    ).epsilon


def test_epsilon_composes_over_the_participations_of_a_client(tiny_plan):
    plan = tiny_plan(defenses=[NOISE])
    server = Server(plan)
    expected = [epsilon_after(plan, n) for n in (1, 2, 3)]
    assert [server.ask(1, round=r).content["privacy"]["epsilon"] for r in (1, 4, 5)] == expected
    stated = server.ask(1).content["privacy"]
    assert stated["delta"] == 1e-5 and stated["neighbors"] == "replace"
    assert "privacy" not in server.ask(0).content


def test_after_a_restart_the_server_states_the_participations_on_record(tiny_plan):
    plan = tiny_plan(defenses=[NOISE])
    server = Server(plan)
    expected = [epsilon_after(plan, n) for n in (5, 6, 7)]
    found = [server.ask(1, round=5, participations=4), server.ask(1, round=6), server.ask(1, round=7, participations=4)]
    assert [reply.content["privacy"]["epsilon"] for reply in found] == expected


def test_a_client_that_fails_spends_no_budget(tiny_plan):
    plan = tiny_plan(defenses=[{"name": "stubs:FailsIn", "params": {"round": 2}}, {**NOISE, "clients": "all"}])
    server = Server(plan)
    assert server.ask(1, round=2).has_error()
    epsilon = server.ask(1, round=3).content["privacy"]["epsilon"]
    assert epsilon == epsilon_after(plan, 1)


def test_a_client_that_raises_sends_its_message(tiny_plan):
    reply = Server(tiny_plan(defenses=[{"name": "stubs:FailsIn", "clients": [1]}])).ask(1)
    assert reply.has_error()
    assert wire.failure_text(reply.error.reason) == "out of battery"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DifferentialPrivacyClientSideFixedClipping", {"clipping_norm": 0.01, "noise_multiplier": 0.1}),
        ("DifferentialPrivacyClientSideAdaptiveClipping", {"initial_clipping_norm": 0.01, "noise_multiplier": 0.1}),
    ],
)
def test_flowers_client_side_wrappers_find_their_clipping(tiny_plan, name, config):
    params = {**config, "clipped_count_stddev": 0.5} if "Adaptive" in name else config
    plan = tiny_plan(training=DELTA, federation={"strategy": name, "strategy_params": params})
    weights = plan.initial_weights()
    assert local_update(plan, 1, 1, weights).update.norm() > 0.011
    reply = Server(plan).ask(1, clipping_norm=0.01)
    sent = wire.to_tensors(reply.content["arrays"])
    norm = sum(float((sent[name] - weights[name]).double().square().sum()) for name in weights) ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-2)
    assert ("norm_bit" in reply.content["metrics"]) == ("Adaptive" in name)


def test_a_client_travels_to_workers_as_its_scenario_alone(tiny_plan):
    plan = tiny_plan()
    sent = pickle.dumps(Client(plan.scenario))
    assert len(sent) < 10_000
    content = RecordDict(
        {"arrays": wire.to_arrays(plan.initial_weights()), "config": ConfigRecord({"server-round": 1})}
    )
    InlineGrid(client_app(plan.scenario), 3)  # gives this process the identity that messages need
    message = Message(content, 1001, "train")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(1, 1001, {"partition-id": 1}, RecordDict(), {})
    reply = pickle.loads(sent).train(message, context)
    expected = local_update(plan, 1, 1, plan.initial_weights()).update.tensors
    assert torch.equal(wire.to_tensors(reply.content["arrays"])["head.weight"], expected["head.weight"])
