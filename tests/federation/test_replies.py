import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors import safe_open

from fedsim import wire
from fedsim.errors import RunFolderError
from fedsim.federation import engine_inline
from fedsim.federation.client_app import Client, client_app
from fedsim.federation.engine_inline import InlineGrid
from fedsim.federation.grid import CheckingGrid, Exchange, GridProxy
from fedsim.federation.replies import ReplyCheck
from fedsim.federation.server_app import server_app
from fedsim.recording.captures import Capture
from fedsim.recording.run_folder import RunFolder

NAME = "cls_token"


def without(content, name):
    del content["arrays"][name]


def put(content, value, name=NAME):
    content["arrays"][name] = Array(value)


def states(content, **metrics):
    content["metrics"] = MetricRecord({**content["metrics"], **metrics})


# What a client may do to its reply, and what is said of it.
TAMPERED = {
    "a missing tensor": (lambda c: without(c, NAME), "cls_token is missing"),
    "another name": (lambda c: put(c, np.zeros(1, np.float32), "extra"), "'extra' is not of the model"),
    "no tensors": (lambda c: c.__setitem__("arrays", ArrayRecord()), "more are missing"),
    "another shape": (lambda c: put(c, np.zeros(64, np.float32)), "cls_token has shape (64,), not (1, 1, 64)"),
    "another format": (lambda c: put(c, np.zeros((1, 1, 64))), "cls_token holds float64, not float32"),
    "not finite": (lambda c: put(c, np.full((1, 1, 64), np.nan, np.float32)), "cls_token is not finite in 64 of 64"),
    "text": (lambda c: put(c, np.zeros(2, "U3")), "its arrays cannot be read: TypeError"),
    "no array": (lambda c: setattr(c["arrays"][NAME], "data", b"\x93NUMPY"), "its arrays cannot be read"),
    "an overflow": (lambda c: put(c, np.full((1, 1, 64), 3e38, np.float32)), "overflows in a step on its gradient"),
    "no examples": (
        lambda c: states(c, **{"num-examples": 0}),
        "num-examples is 0, expected a whole number from 1 to 48",
    ),
    "half an example": (lambda c: states(c, **{"num-examples": 1.5}), "num-examples is 1.5"),
    "absurd examples": (lambda c: states(c, **{"num-examples": 2**40}), "num-examples is 1099511627776"),
    "a loss that is no number": (lambda c: states(c, train_loss=float("nan")), "the metric train_loss is nan"),
    "a list": (lambda c: states(c, train_loss=[1.0, 2.0]), "the metric train_loss is [1.0, 2.0]"),
    "another metric": (lambda c: states(c, secret=1), "expected the metrics num-examples, train_loss, got"),
    "no metrics": (lambda c: c.pop("metrics"), "expected metrics as its only record of that type, got []"),
    "two sets of arrays": (lambda c: c.__setitem__("more", c["arrays"]), "got ['arrays', 'more']"),
    "another kind": (lambda c: c.__setitem__("update", ConfigRecord({"kind": "delta"})), "states to hold 'delta'"),
    "no kind": (lambda c: c.pop("update"), "states to hold nothing, expected a gradient"),
    "an odd log": (lambda c: c.__setitem__("fedsim-logged", ConfigRecord({"a": float("inf")})), "it logs inf as 'a'"),
    "an odd budget": (lambda c: c.__setitem__("privacy", ConfigRecord({"epsilon": -1.0})), "states the privacy budget"),
}


def tampering(plan, tamper, client=1, round=1):
    """A ClientApp like the plan's own, of which one client changes what it sends in one round."""
    app, own = ClientApp(), Client(plan.scenario)

    @app.train()
    def train(message, context):
        reply = own.train(message, context)
        stated = message.content["config"]["server-round"]
        if (context.node_config["partition-id"], stated) == (client, round):
            tamper(reply.content)
        return reply

    app.query("identify")(Client.identify)
    return app


def run(plan, folder, app=None):
    found = {}
    engine_inline.run(server_app(plan, folder, None, found.update), app or client_app(plan.scenario), 3)
    return found


@pytest.fixture
def exchange(tiny_plan):
    """Return the plan of a run with shared gradients, and a function: tamper -> an exchange with client 1."""
    plan = tiny_plan(training={"learning_rate": 100.0})

    def make(tamper=lambda content: None):
        content = RecordDict(
            {"arrays": wire.to_arrays(plan.initial_weights()), "config": ConfigRecord({"server-round": 1})}
        )
        request = Message(content, 1001, "train")
        (reply,) = InlineGrid(tampering(plan, tamper), 3).send_and_receive([request])
        return Exchange(request, reply)

    InlineGrid(client_app(plan.scenario), 3)  # gives this process the identity that messages need
    return plan, make


def test_a_reply_of_the_model_has_no_fault(exchange):
    plan, make = exchange
    assert ReplyCheck(plan).fault(make()) is None


@pytest.mark.parametrize("what", TAMPERED)
def test_a_reply_that_is_none_of_the_model_is_told_by_its_first_fault(exchange, what):
    tamper, text = TAMPERED[what]
    plan, make = exchange
    fault = ReplyCheck(plan).fault(make(tamper))
    assert fault is not None and text in fault and "\n" not in fault


def test_the_server_steps_with_the_learning_rate_of_the_round(tiny_plan, run_folder):
    plan = tiny_plan(training={"learning_rate": 0.4, "schedule": {"name": "linear", "final": 0.5}})
    folder = run_folder(plan)
    final = run(plan, folder)
    for round, after, rate in ((1, folder.read_global(2, -1), 0.4), (2, final, 0.3)):
        before = folder.read_global(round, -1)
        sent = [folder.read_update(round, client) for client in range(3)]
        total = sum(update.num_examples for update in sent)
        for name, weight in before.items():
            mean = sum(update.num_examples / total * update.tensors[name] for update in sent)
            torch.testing.assert_close(after[name], weight - rate * mean, rtol=1e-5, atol=1e-6)


def test_a_step_that_overflows_is_refused_at_the_learning_rate_of_its_round(tiny_plan):
    schedule = {"name": "step", "every": 1, "factor": 1e-6}
    plan = tiny_plan(training={"learning_rate": 1.0, "schedule": schedule})
    faults = []
    for round in (1, 2):
        config = ConfigRecord({"server-round": round})
        request = Message(
            RecordDict({"arrays": wire.to_arrays(plan.initial_weights()), "config": config}), 1001, "train"
        )
        app = tampering(plan, lambda content: put(content, np.full((1, 1, 64), 1e38, np.float32)), round=round)
        (reply,) = InlineGrid(app, 3).send_and_receive([request])
        weights = {name: w - 3e38 * (name == NAME) for name, w in plan.initial_weights().items()}
        request.content["arrays"] = wire.to_arrays(weights)
        faults.append(ReplyCheck(plan).fault(Exchange(request, reply)))
    assert faults[0] is not None and "overflows" in faults[0] and faults[1] is None


def test_an_update_of_nothing_is_refused_where_the_server_would_divide_by_its_norm(tiny_plan):
    def nothing(content):
        for name, array in content["arrays"].items():
            content["arrays"][name] = Array(np.zeros_like(array.numpy()))

    params = {"noise_multiplier": 0.0, "clipping_norm": 1.0}
    clipping = {"strategy": "DifferentialPrivacyServerSideFixedClipping", "strategy_params": params}
    for federation, is_refused in (({}, False), (clipping, True)):
        plan = tiny_plan(federation=federation)
        content = RecordDict(
            {"arrays": wire.to_arrays(plan.initial_weights()), "config": ConfigRecord({"server-round": 1})}
        )
        grid = InlineGrid(tampering(plan, nothing), 3)
        request = Message(content, 1001, "train")
        fault = ReplyCheck(plan).fault(Exchange(request, *grid.send_and_receive([request])))
        assert (fault is not None and "leaves the model as it is" in fault) == is_refused


def test_a_client_whose_reply_is_refused_has_failed_and_the_others_go_on(tiny_plan, run_folder):
    plan = tiny_plan()
    folder = run_folder(plan)
    final = run(plan, folder, tampering(plan, lambda content: put(content, np.zeros(64, np.float32))))
    first, second = folder.rounds.read()[1:]
    text = "its reply was refused: cls_token has shape (64,), not (1, 1, 64)"
    assert (first["participants"], first["failed"]) == ([0, 2], {"1": text})
    assert (second["participants"], second["failed"]) == ([0, 1, 2], {})
    # The model is what the other two make of it.
    expected = plan.initial_weights()
    for clients, round in (((0, 2), 1), ((0, 1, 2), 2)):
        for name, weight in expected.items():
            mean = torch.stack([folder.read_update(round, client).tensors[name] for client in clients]).mean(0)
            expected[name] = weight - plan.scenario.training.learning_rate * mean
    for name, weight in expected.items():
        torch.testing.assert_close(final[name], weight, rtol=1e-4, atol=1e-6)


def test_a_refused_reply_is_kept_as_evidence_and_shown_to_nobody(tiny_plan, run_folder):
    plan = tiny_plan(federation={"rounds": 1})
    folder = run_folder(plan)
    flat = np.arange(64, dtype=np.float32)
    run(plan, folder, tampering(plan, lambda content: put(content, flat)))
    file = folder.path / "captures" / "round-0001" / "rejected-client-001.safetensors"
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["fedsim"])
        place = next(i for i, array in enumerate(header["arrays"]) if array["name"] == NAME)
        kept = opened.get_tensor(str(place)).numpy().tobytes()
    assert (header["round"], header["client"]) == (1, 1) and "has shape (64,)" in header["fault"]
    assert header["arrays"][place] == {"record": "arrays", "name": NAME, "dtype": "float32", "shape": [64]}
    assert np.array_equal(Array(dtype="float32", shape=(64,), stype="numpy.ndarray", data=kept).numpy(), flat)
    again = RunFolder(folder.path)
    assert again.captured(1) == (0, 2) and not again.has_capture(1, 1)


def test_a_resumed_run_replays_the_failure_and_not_the_reply(tiny_plan, run_folder):
    plan = tiny_plan()
    whole, resumed = run_folder(plan, "whole"), run_folder(plan, "resumed")
    app = tampering(plan, lambda content: without(content, NAME))
    final = run(plan, whole, app)
    run(plan, resumed, app)
    lines = resumed.rounds.read()
    resumed.rounds.rewrite(lines[:2])
    (resumed.path / "model.safetensors").unlink()
    # This time every client is honest, but nobody asks for round 1 again.
    found = run(plan, RunFolder(resumed.path))
    assert RunFolder(resumed.path).failures(1) == {1: "its reply was refused: cls_token is missing"}
    assert all(torch.equal(found[name], tensor) for name, tensor in final.items())


def test_a_stored_reply_that_would_be_refused_today_is_named(tiny_plan, run_folder):
    plan = tiny_plan(federation={"rounds": 1})
    folder = run_folder(plan)
    arrays = {name: weight for name, weight in plan.initial_weights().items() if name != NAME}
    folder.write_capture(Capture(1, 1, "gradient", arrays, {"num-examples": 1, "train_loss": 0.5}, {}))
    with pytest.raises(RunFolderError, match=r"round 1, client 1 is refused: cls_token is missing\. Delete its line"):
        run(plan, folder)


class Deaf(GridProxy):
    """Client 1 never answers."""

    def pull_messages(self, message_ids):
        return [r for r in self._inner.pull_messages(message_ids) if r.metadata.src_node_id != 1001]


def test_a_client_that_never_answers_fails_when_patience_ends(exchange):
    plan, _ = exchange
    grid = CheckingGrid(
        Deaf(InlineGrid(client_app(plan.scenario), 3)), lambda e: None, lambda e, f: None, lambda n: 0.0
    )
    content = RecordDict(
        {"arrays": wire.to_arrays(plan.initial_weights()), "config": ConfigRecord({"server-round": 1})}
    )
    (reply,) = grid.send_and_receive([Message(content, 1001, "train")], timeout=60.0)
    assert reply.has_error() and reply.error.reason == "did not answer within 0 s"


def test_a_client_that_ends_python_or_never_ends_has_failed(tiny_plan):
    for how, text in (
        ("exits", "tried to end its process: SystemExit: 0"),
        ("waits", "took longer than federation.client"),
    ):
        defense = {"name": "stubs:EndsClient", "clients": [1], "params": {"how": how}}
        plan = tiny_plan(defenses=[defense], federation={"client_timeout": 1.0})
        content = RecordDict(
            {"arrays": wire.to_arrays(plan.initial_weights()), "config": ConfigRecord({"server-round": 1})}
        )
        grid = InlineGrid(client_app(plan.scenario), 3)
        (reply,) = grid.send_and_receive([Message(content, 1001, "train")])
        assert reply.has_error() and text in wire.failure_text(reply.error.reason)


def test_an_exception_that_cannot_be_told_and_an_exit_of_a_foreign_client_are_failures():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("mute")

    for error, text in ((Mute(), "Mute"), (SystemExit(3), "3"), (GeneratorExit(), "GeneratorExit")):
        app = ClientApp()

        @app.train()
        def train(message, context, error=error):
            raise error

        (reply,) = InlineGrid(app, 1).send_and_receive([Message(RecordDict(), 1000, "train")])
        assert reply.has_error() and wire.failure_text(reply.error.reason) == text


def test_an_interruption_from_the_keyboard_ends_the_inline_engine_at_once():
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InlineGrid(app, 1).send_and_receive([Message(RecordDict(), 1000, "train")])


def test_warnings_of_the_strategy_stand_on_the_line_of_their_round(tiny_plan, run_folder):
    plan = tiny_plan(federation={"strategy": "FedProx", "rounds": 1})
    folder = run_folder(plan)
    run(plan, folder)
    before, after = folder.rounds.read()
    assert "equivalent to FedAvg" in before["warnings"][0] and "warnings" not in after
