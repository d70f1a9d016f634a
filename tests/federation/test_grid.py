import logging
import threading

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedMedian
from hypothesis import given
from hypothesis import strategies as st

from fedsim import wire
from fedsim.errors import FedsimError
from fedsim.federation.engine_inline import InlineGrid
from fedsim.federation.grid import (
    AppliedGradientsGrid,
    CheckingGrid,
    CompletingGrid,
    EndableGrid,
    GridProxy,
    ObservingGrid,
    OrderedGrid,
    PollingGrid,
    ReplayingGrid,
    partitions,
)


def adding_app(log=None, fails=()):
    """A ClientApp that adds its partition number to what it gets, and notes whom it asked in `log`."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        if log is not None:
            log.append(f"train {partition}")
        if partition in fails:
            raise RuntimeError("out of battery")
        arrays = {name: Array(a.numpy() + partition) for name, a in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.query("identify")
    def identify(message, context):
        if context.node_config["partition-id"] in fails:
            raise RuntimeError("out of battery")
        answer = ConfigRecord({"partition-id": context.node_config["partition-id"]})
        return Message(RecordDict({"node": answer}), reply_to=message)

    return app


def requests(grid, round=1, arrays=None):
    """Train messages as Flower's strategies make them: one shared record for all nodes."""
    shared = RecordDict(
        {
            "arrays": arrays or ArrayRecord({"w": Array(np.arange(3, dtype=np.float32))}),
            "config": ConfigRecord({"server-round": round}),
        }
    )
    return [Message(shared, node, "train") for node in grid.get_node_ids()]


class BackwardsGrid(GridProxy):
    """Everything in the opposite order, as a slow network may do."""

    def get_node_ids(self):
        return list(self._inner.get_node_ids())[::-1]

    def pull_messages(self, message_ids):
        return [reply for id in list(message_ids)[::-1] for reply in self._inner.pull_messages([id])]

    def send_and_receive(self, messages, *, timeout=None):
        return list(self._inner.send_and_receive(messages, timeout=timeout))[::-1]


class DeafGrid(GridProxy):
    """Nobody ever answers."""

    def pull_messages(self, message_ids):
        return []


def senders(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_a_proxy_hands_everything_on():
    inner = InlineGrid(adding_app(), 2)
    inner.close = lambda: "closed"
    grid = GridProxy(inner)
    run = object()
    grid.set_run(run)
    assert inner.run is run and grid.run is run
    assert list(grid.get_node_ids()) == [1000, 1001]
    assert grid.close() == "closed"
    message = grid.create_message(RecordDict(), "train", 1001, "group")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (1001, "group")
    ids = list(grid.push_messages(requests(grid)))
    assert senders(reply for id in ids for reply in grid.pull_messages([id])) == [1000, 1001]
    assert senders(grid.send_and_receive(iter(requests(grid)))) == [1000, 1001]


class LosingGrid(GridProxy):
    """A SuperLink that forgets a node: it is listed no more, and a message for it gets an empty id, as Flower's does."""

    lost = 1001

    def get_node_ids(self):
        return [node for node in self._inner.get_node_ids() if node != self.lost]

    def push_messages(self, messages):
        given = list(messages)
        ids = list(self._inner.push_messages(given))
        return ["" if message.metadata.dst_node_id == self.lost else id for id, message in zip(ids, given, strict=True)]

    def pull_messages(self, message_ids):
        replies = self._inner.pull_messages(message_ids)
        return [reply for reply in replies if reply.metadata.src_node_id != self.lost]


def test_a_node_that_is_lost_stays_in_the_list_and_its_client_fails_at_once():
    inner = LosingGrid(InlineGrid(adding_app(), 3))
    refused = []
    checking = CheckingGrid(inner, lambda exchange: None, lambda *given: refused.append(given), lambda count: 3600.0)
    grid = OrderedGrid(checking, {1000: 0, 1001: 1, 1002: 2})
    assert grid.get_node_ids() == [1000, 1001, 1002], "a strategy would wait for a node that it misses"
    first, lost, last = grid.send_and_receive(requests(grid))
    assert not first.has_error() and not last.has_error() and refused == []
    assert lost.metadata.src_node_id == 1001 and "its node has left" in wire.failure_text(lost.error.reason)


def test_nodes_and_replies_come_in_partition_order():
    inner = InlineGrid(adding_app(), 4)
    partition = {1000: 2, 1001: 0, 1002: 3, 1003: 1}
    grid = OrderedGrid(BackwardsGrid(inner), partition)
    ordered = [1001, 1003, 1000, 1002]
    assert grid.get_node_ids() == ordered
    assert senders(grid.send_and_receive(requests(inner))) == ordered
    ids = grid.push_messages(requests(inner))
    assert senders(grid.pull_messages(ids)) == ordered


def test_every_node_is_asked_which_client_it_is():
    grid = InlineGrid(adding_app(), 3)
    assert partitions(grid, grid.get_node_ids(), 60.0) == {1000: 0, 1001: 1, 1002: 2}


def test_a_node_that_does_not_say_which_client_it_is_is_named_with_its_reason():
    grid = InlineGrid(adding_app(fails=(1,)), 3)
    with pytest.raises(FedsimError, match="node 1001 could not say which client it is; it said: out of battery"):
        partitions(grid, grid.get_node_ids(), 60.0)
    with pytest.raises(FedsimError, match="node 1000 did not say within 0 s"):
        partitions(PollingGrid(DeafGrid(grid)), grid.get_node_ids(), 0.0)
    app = ClientApp()
    app.query("identify")(lambda message, context: Message(RecordDict(), reply_to=message))
    with pytest.raises(FedsimError, match=r"node 1000 did not say .* does not run fedsim's ClientApp"):
        partitions(InlineGrid(app, 1), [1000], 60.0)


def test_a_strategy_may_change_replies_without_changing_what_was_observed():
    seen = {}

    def copy(exchange):
        sent, got = (wire.to_tensors(m.content["arrays"]) for m in (exchange.request, exchange.reply))
        seen[exchange.reply.metadata.src_node_id] = (sent["w"], got["w"])

    grid = ObservingGrid(InlineGrid(adding_app(), 3), copy)
    replies = list(grid.send_and_receive(requests(grid)))
    # FedMedian pops every array out of the replies.
    FedMedian().aggregate_train(1, replies)
    assert all(not reply.content["arrays"] for reply in replies)
    start = torch.arange(3.0)
    assert seen.keys() == {1000, 1001, 1002}
    for node, (sent, got) in seen.items():
        assert torch.equal(sent, start) and torch.equal(got, start + (node - 1000))


def test_an_exception_in_the_callback_is_kept_and_does_not_disturb(caplog):
    def burn(exchange):
        raise OSError("disk full")

    plain = InlineGrid(adding_app(), 3).send_and_receive
    grid = ObservingGrid(InlineGrid(adding_app(), 3), burn)
    with caplog.at_level(logging.ERROR, "fedsim"):
        replies = list(grid.send_and_receive(requests(grid)))
    expected = plain(requests(grid))
    assert [r.content["arrays"] for r in replies] == [r.content["arrays"] for r in expected]
    assert [str(error) for error in grid.errors] == ["disk full"] * 3
    assert "could not record" in caplog.text and "disk full" in caplog.text


def test_every_reply_is_shown_before_the_next_client_is_asked():
    log = []
    grid = ObservingGrid(
        InlineGrid(adding_app(log), 3), lambda e: log.append(f"seen {e.reply.metadata.src_node_id - 1000}")
    )
    list(grid.send_and_receive(requests(grid)))
    assert log == ["train 0", "seen 0", "train 1", "seen 1", "train 2", "seen 2"]


def test_pushed_and_pulled_exchanges_are_shown_once_and_paired():
    seen = []
    grid = ObservingGrid(InlineGrid(adding_app(), 2), seen.append)
    messages = requests(grid)
    ids = list(grid.push_messages(messages))
    replies = [*grid.pull_messages(ids), *grid.pull_messages(ids), *grid.pull_messages(ids)]
    assert senders(replies) == [1000, 1001]
    assert [exchange.request for exchange in seen] == messages
    assert [exchange.reply for exchange in seen] == replies


def test_errors_of_clients_are_shown_too():
    seen = []
    grid = ObservingGrid(InlineGrid(adding_app(fails=(1,)), 2), seen.append)
    replies = list(grid.send_and_receive(requests(grid)))
    assert [reply.has_error() for reply in replies] == [False, True]
    assert wire.failure_text(seen[1].reply.error.reason) == "out of battery"


def test_waiting_ends_with_the_timeout_and_gives_what_has_come():
    grid = ObservingGrid(DeafGrid(InlineGrid(adding_app(), 2)), lambda exchange: None)
    assert grid.send_and_receive(requests(grid), timeout=0.0) == []
    assert grid.send_and_receive([]) == []


def test_requests_that_nobody_answers_are_not_kept():
    grid = ObservingGrid(DeafGrid(InlineGrid(adding_app(), 2)), lambda exchange: None)
    grid.send_and_receive(requests(grid), timeout=0.0)
    assert not grid._sent


def test_waiting_ends_when_the_runtime_has_ended():
    ended = threading.Event()
    grid = EndableGrid(InlineGrid(adding_app(), 2), ended)
    assert senders(grid.send_and_receive(requests(grid))) == [1000, 1001] and grid.get_node_ids() == [1000, 1001]
    messages = requests(grid)
    ended.set()
    for wait in (lambda: grid.send_and_receive(messages), grid.get_node_ids):
        with pytest.raises(RuntimeError, match="the simulation runtime has ended"):
            wait()


def test_recorded_replies_are_given_back_and_only_the_others_are_asked():
    log, prepared = [], []
    inner = InlineGrid(adding_app(log), 3)
    messages = requests(inner)

    def replay(message):
        known = message.metadata.dst_node_id == 1001
        return Message(RecordDict({"from": ConfigRecord({"record": True})}), reply_to=message) if known else None

    grid = ReplayingGrid(inner, replay, prepared.append)
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    assert log == ["train 0", "train 2"] and prepared == [messages[0], messages[2]]
    assert replies.keys() == {1000, 1001, 1002} and "from" in replies[1001].content
    assert len(ReplayingGrid(DeafGrid(inner), lambda m: replies[1001], prepared.append).send_and_receive(messages)) == 3


def gradient_app(gradient, kind="gradient", fails=()):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] in fails:
            raise RuntimeError("out of battery")
        content = RecordDict(
            {
                "arrays": wire.to_arrays(gradient),
                "metrics": MetricRecord({"num-examples": 1}),
                "update": ConfigRecord({"kind": kind}),
            }
        )
        return Message(content, reply_to=message)

    return app


def test_an_applied_gradient_is_one_step_of_sgd_with_the_learning_rate_of_the_round():
    generator = torch.Generator().manual_seed(0)
    weights, gradient = (
        {n: torch.randn(s, generator=generator) for n, s in (("a", (3, 2)), ("b", (4,)))} for _ in "wg"
    )
    parameters = {n: torch.nn.Parameter(w.clone()) for n, w in weights.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradient[name]
    torch.optim.SGD(parameters.values(), lr=0.3).step()
    grid = AppliedGradientsGrid(InlineGrid(gradient_app(gradient), 2), learning_rate=[0.0, 0.0, 0.3].__getitem__)
    for reply in grid.send_and_receive(requests(grid, round=2, arrays=wire.to_arrays(weights))):
        stepped = wire.to_tensors(reply.content["arrays"])
        assert list(stepped) == ["a", "b"]
        for name, parameter in parameters.items():
            torch.testing.assert_close(stepped[name], parameter.detach())


def drawing_app(counts, fails=()):
    """A ClientApp that sends arrays of its own, weighted by `counts`."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        if client in fails:
            raise RuntimeError("out of battery")
        draws = torch.Generator().manual_seed(int(client))
        arrays = {name: torch.randn(3, generator=draws) for name in message.content["arrays"]}
        metrics = MetricRecord({"num-examples": counts[client]})
        content = RecordDict({"arrays": wire.to_arrays(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@given(
    counts=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    left=st.lists(st.sets(st.sampled_from(["a", "b", "c"])), min_size=5, max_size=5),
    failed=st.sets(st.integers(0, 4), max_size=2),
)
def test_a_parameter_is_averaged_over_the_clients_that_train_it(counts, left, failed):
    inner = InlineGrid(drawing_app(counts, failed), len(counts))
    number = {node: index for index, node in enumerate(inner.get_node_ids())}
    sent = {name: torch.full((3,), 7.0) for name in ("a", "b", "c")}
    asked = []

    def untrained(node, round):
        asked.append(round)
        return tuple(left[number[node]])

    asks = requests(inner, round=4, arrays=wire.to_arrays(sent))
    replies = [reply for reply in inner.send_and_receive(asks) if not reply.has_error()]
    raw = {number[reply.metadata.src_node_id]: wire.to_tensors(reply.content["arrays"]) for reply in replies}
    completed = list(CompletingGrid(inner, untrained).send_and_receive(asks))
    assert [reply.has_error() for reply in completed] == [client in failed for client in range(len(counts))]
    found = {
        number[reply.metadata.src_node_id]: wire.to_tensors(reply.content["arrays"])
        for reply in completed
        if not reply.has_error()
    }
    assert found.keys() == raw.keys() and set(asked) <= {4}
    total = sum(counts[client] for client in found)
    for name in sent:
        who = [client for client in raw if name not in left[client]]
        own = sum(counts[client] for client in who)
        expected = sum(counts[client] / own * raw[client][name] for client in who) if who else sent[name]
        if found:
            mean = sum(counts[client] / total * found[client][name] for client in found)
            torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(found[client][name], raw[client][name]) for client in who)
        assert all(list(arrays) == list(sent) for arrays in found.values())


def test_messages_of_other_kinds_are_not_completed():
    grid = CompletingGrid(InlineGrid(adding_app(), 2), lambda node, round: pytest.fail("asked"))
    assert partitions(grid, grid.get_node_ids(), 60.0) == {1000: 0, 1001: 1}
    assert list(grid.send_and_receive([])) == []


@pytest.mark.parametrize("kind", ["delta", "unheard of"])
def test_replies_that_are_no_gradients_pass_unchanged(kind):
    given = {"w": torch.ones(3)}
    grid = AppliedGradientsGrid(InlineGrid(gradient_app(given, kind, fails=(1,)), 2), learning_rate=lambda round: 0.3)
    first, second = grid.send_and_receive(requests(grid))
    assert torch.equal(wire.to_tensors(first.content["arrays"])["w"], given["w"])
    assert second.has_error()
