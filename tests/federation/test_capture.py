import threading

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsim import wire
from fedsim.errors import RunFolderError
from fedsim.federation._flwr_private import identify_process
from fedsim.federation.capture import Recorder, Replayer, round_of
from fedsim.federation.grid import Exchange
from fedsim.recording.run_folder import RunFolder

WEIGHTS = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
SENT = wire.to_arrays(WEIGHTS)


@pytest.fixture(autouse=True)
def identity():
    identify_process(1)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", None)


def client_of(node):
    return node - 1000


def request(client=0, round=1, sent=SENT, message_type="train", **config):
    stated = {} if round is None else {"server-round": round}
    content = RecordDict({"arrays": sent, "config": ConfigRecord({**stated, **config})})
    message = Message(content, 1000 + client, message_type)
    message.metadata.__dict__["_message_id"] = "1"
    return message


def exchange(client=0, factor=2.0, kind=None, metrics=None, more=(), **asked):
    asking = request(client, **asked)
    content = RecordDict(
        {
            "arrays": wire.to_arrays({name: factor * tensor for name, tensor in WEIGHTS.items()}),
            "metrics": MetricRecord(metrics or {"num-examples": 4, "train_loss": 0.5}),
            **dict(more),
        }
    )
    if kind:
        content["update"] = ConfigRecord({"kind": kind})
    return Exchange(asking, Message(content, reply_to=asking))


def failure(client=0, reason="ClientAppException occurred. Message: out of battery", **asked):
    asking = request(client, **asked)
    return Exchange(asking, Message(Error(2, reason), reply_to=asking))


def recorded(folder, *exchanges):
    recorder = Recorder(folder, client_of)
    for one in exchanges:
        recorder(one)
    assert recorder.flush() == []
    return RunFolder(folder.path)


# Recorder


def test_replies_become_captures(folder):
    found = recorded(folder, exchange(0, kind="gradient"), exchange(2, factor=3.0, round=2))
    gradient, delta = found.read_capture(1, 0), found.read_capture(2, 2)
    assert (gradient.kind, delta.kind) == ("gradient", "delta")
    assert gradient.metrics == {"num-examples": 4, "train_loss": 0.5}
    assert list(gradient.arrays) == ["b", "a"]
    for name, tensor in WEIGHTS.items():
        assert torch.equal(gradient.arrays[name], 2 * tensor)
        assert torch.equal(found.read_update(2, 2).tensors[name], 3 * tensor - tensor)


def test_failures_are_recorded_by_what_the_client_said(folder):
    assert recorded(folder, exchange(0), failure(1)).failures(1) == {1: "out of battery"}


def test_other_messages_are_not_the_observers_business(folder):
    found = recorded(folder, exchange(0, message_type="evaluate"), exchange(1, message_type="query.identify"))
    assert found.captured_rounds() == () and not found.has_global(1)


def test_messages_without_one_array_record_each_way_are_left_alone(folder):
    two = {"more": wire.to_arrays(WEIGHTS)}
    found = recorded(folder, exchange(0, more=two.items()), exchange(1, kind="gradient"))
    assert found.captured(1) == (1,)


def test_the_rounds_weights_are_stored_once(folder):
    found = recorded(folder, exchange(0), exchange(1), exchange(2, sent=wire.to_arrays(WEIGHTS)))
    assert [path.name for path in sorted((found.path / "captures" / "round-0001").iterdir())] == [
        "client-000.safetensors",
        "client-001.safetensors",
        "client-002.safetensors",
        "global.safetensors",
    ]
    assert all(torch.equal(found.read_global(1, 2)[name], tensor) for name, tensor in WEIGHTS.items())


def test_weights_that_one_client_alone_was_sent_are_stored_beside_the_rounds(folder):
    tampered = wire.to_arrays({name: -tensor for name, tensor in WEIGHTS.items()})
    found = recorded(folder, exchange(0), exchange(1, sent=tampered), exchange(2))
    assert torch.equal(found.read_global(1, 1)["b"], -WEIGHTS["b"])
    assert torch.equal(found.read_global(1, 0)["b"], WEIGHTS["b"])
    assert torch.equal(found.read_update(1, 1).tensors["b"], 3 * WEIGHTS["b"])
    assert torch.equal(found.read_update(1, 2).tensors["b"], WEIGHTS["b"])


def test_only_the_privacy_statement_is_kept_beside_the_update(folder):
    more = {"privacy": ConfigRecord({"epsilon": 1.5}), "truth": ConfigRecord({"labels": [1, 2]})}
    listed = {"num-examples": 4, "curve": [1.0, 2.0]}
    capture = recorded(folder, exchange(0, more=more.items(), metrics=listed)).read_capture(1, 0)
    assert capture.side == {"privacy": {"epsilon": 1.5}} and capture.metrics == {"num-examples": 4}


def test_what_happens_to_a_reply_afterwards_leaves_no_mark(folder):
    one = exchange(0)
    recorder = Recorder(folder, client_of)
    recorder(one)
    for array in one.reply.content["arrays"].values():
        array.data = b""
    one.reply.content["arrays"].clear()
    assert recorder.flush() == []
    assert torch.equal(RunFolder(folder.path).read_capture(1, 0).arrays["a"], 2 * WEIGHTS["a"])


def test_the_round_comes_from_the_config_or_from_the_group_or_is_counted(folder):
    assert round_of(request(round=7)) == 7
    legacy = request(round=None)
    legacy.metadata.group_id = "3"
    assert round_of(legacy) == 3
    assert round_of(request(round=None)) is None
    silent = [exchange(c, factor=f, round=None) for f in (2.0, 3.0) for c in (0, 1)]
    found = recorded(folder, *silent, failure(1, round=None))
    assert found.captured(1) == found.captured(2) == (0, 1)
    assert torch.equal(found.read_capture(2, 0).arrays["a"], 3 * WEIGHTS["a"])
    assert found.failures(3) == {1: "out of battery"}


def test_several_threads_may_show_exchanges_at_once(folder):
    recorder = Recorder(folder, client_of)
    exchanges = [exchange(client, factor=float(client), round=None) for client in range(16)]
    for one in exchanges:
        one.request.metadata.group_id = "1"
    threads = [threading.Thread(target=recorder, args=(one,)) for one in exchanges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.flush() == []
    found = RunFolder(folder.path)
    assert found.captured(1) == tuple(range(16))
    assert all(torch.equal(found.read_capture(1, c).arrays["a"], c * WEIGHTS["a"]) for c in range(16))


def test_what_cannot_be_written_is_returned_by_flush_and_the_rest_is_stored(folder):
    (folder.path / "captures").mkdir()
    (folder.path / "captures" / "round-0001").write_text("in the way")
    recorder, errors = Recorder(folder, client_of), []
    for one in (exchange(0), *(exchange(client, round=2) for client in range(4)), failure(1, round=3)):
        try:
            recorder(one)
        except RunFolderError as error:
            errors.append(error)
    errors += recorder.flush()
    assert len(errors) == 2  # the weights and the reply
    assert all("exists and is a file, where a folder is needed" in str(error) for error in errors)
    found = RunFolder(folder.path)
    assert found.captured_rounds() == (2,) and found.failures(3) == {1: "out of battery"}
    assert found.captured(2) == (0, 1, 2, 3)


def test_kinds_of_arrays_that_torch_lacks_are_an_error_of_this_exchange_alone(folder):
    odd = exchange(0)
    odd.reply.content["arrays"]["a"] = Array(np.zeros(2, dtype="U3"))
    recorder = Recorder(folder, client_of)
    with pytest.raises(TypeError):
        recorder(odd)
    recorder(exchange(1))
    assert recorder.flush() == []
    assert RunFolder(folder.path).captured(1) == (1,)


# Replayer


def test_recorded_replies_are_replayed_bit_for_bit(folder):
    more = {"privacy": ConfigRecord({"epsilon": 1.5})}
    shown = exchange(
        1, kind="gradient", metrics={"num-examples": 4, "train_loss": 0.1, "norm_bit": 1}, more=more.items()
    )
    replayer = Replayer(recorded(folder, shown), client_of)
    replayed = replayer.replay(request(1))
    assert replayed is not None and replayed.metadata.src_node_id == 1001
    # Flower's arrays compare by their bytes.
    assert replayed.content["arrays"] == shown.reply.content["arrays"]
    assert list(replayed.content["arrays"]) == ["b", "a"]
    assert dict(replayed.content["metrics"]) == {"num-examples": 4, "train_loss": 0.1, "norm_bit": 1}
    assert replayed.content["update"]["kind"] == "gradient"


def test_recorded_failures_are_replayed_as_failures(folder):
    replayed = Replayer(recorded(folder, failure(1)), client_of).replay(request(1))
    assert replayed is not None and replayed.has_error()
    assert wire.failure_text(replayed.error.reason) == "out of battery"


@pytest.mark.parametrize(
    "asked",
    [{"client": 0}, {"client": 1, "round": 2}, {"client": 1, "message_type": "evaluate"}, {"client": 1, "round": None}],
)
def test_whatever_is_not_on_record_has_to_be_asked(folder, asked):
    assert Replayer(recorded(folder, exchange(1)), client_of).replay(request(**asked)) is None


def test_a_client_is_told_how_often_it_took_part_before_the_restart(folder):
    replayer = Replayer(recorded(folder, exchange(1), exchange(1, round=2), failure(1, round=3)), client_of)
    for round in (1, 2, 3):
        replayer.replay(request(1, round=round))
    asking, other = request(1, round=4, lr=0.5), request(0, round=4)
    shared = asking.content["config"]
    for message in (asking, other):
        replayer.prepare(message)
    assert dict(asking.content["config"]) == {"server-round": 4, "lr": 0.5, "participations": 2}
    assert dict(shared) == {"server-round": 4, "lr": 0.5}
    assert asking.content["arrays"] is SENT
    assert dict(other.content["config"]) == {"server-round": 4}


# Words


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("ClientAppException occurred. Message: out of battery", "out of battery"),
        ("RayTaskError: ClientAppException occurred. Message: out of battery'>", "out of battery"),
        ("ClientAppException occurred. Message: first line\nsecond line", "first line"),
        ("<class 'RuntimeError'>:<'out of battery'>", "out of battery"),
        ("<class 'fedsim.errors.FedsimError'>:<'first line\nsecond line'>", "first line"),
        ("something else", "something else"),
        ("ClientAppException occurred. Message: \x1b[31mred", "\\x1b[31mred"),
        ("ClientAppException occurred. Message: " + "x" * 5_000_000, "x" * 500 + "... (5000000 characters)"),
        ("", "failed without a message"),
        ("ClientAppException occurred. Message: ", "failed without a message"),
    ],
)
def test_a_failure_is_told_in_the_clients_own_words(reason, expected):
    assert wire.failure_text(reason) == expected
