"""leak_guard on the client of an app of somebody else, and the server's own audit of what the client sent."""

import json
import logging

import pytest
import timm
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import nn

import fedsim as package
from fedsim.errors import FedsimError
from fedsim.federation import engine_inline
from fedsim.guarding import leak_guard
from fedsim.guarding.measuring import Measured
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import seeded

MODEL = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 1, "num_heads": 2},
}
TRAINING = {"shares": "delta", "batch_size": 1, "local_steps": 1, "learning_rate": 0.1}
INLINE = ("--set", "audit.processes=0")
NOISE = {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 0.05}}


def vit():
    with seeded(0):
        return timm.create_model(MODEL["name"], num_classes=10, **MODEL["kwargs"])


def own_data(message, context):
    own = context.node_config["partition-id"]
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(own)), torch.tensor([3 + own])


def app(guards, replies):
    """An app whose clients take one step of SGD on their one image, each behind its guard."""
    client, server = ClientApp(), ServerApp()

    def step(message, context):
        model = vit()
        sent = message.content["arrays"]
        model.load_state_dict({name: torch.from_numpy(array.numpy().copy()) for name, array in sent.items()})
        images, labels = own_data(message, context)
        nn.functional.cross_entropy(model(images * 2 - 1), labels).backward()
        new = {name: Array((p - 0.1 * p.grad).detach().numpy()) for name, p in model.named_parameters()}
        content = {"arrays": ArrayRecord(new), "metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}
        return Message(RecordDict(content), reply_to=message)

    @client.train()
    def train(message, context):
        guard = guards.get(context.node_config["partition-id"])
        return step(message, context) if guard is None else guard(message, context, step)

    @server.main()
    def main(grid, context):
        arrays = ArrayRecord({name: Array(t.numpy()) for name, t in vit().state_dict().items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
        replies.extend(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))

    return server, client


def guard(**changes):
    return leak_guard(**{"model": MODEL, "data": own_data, "training": TRAINING, **changes})


def run(folder, *guards):
    replies = []
    server, client = app(dict(enumerate(guards)), replies)
    observed = package.observe(server, folder=folder, model=MODEL, training=TRAINING)
    engine_inline.run(observed, client, len(guards))
    return replies


def everything(reply):
    """All that a reply holds besides its arrays, as text."""
    return str([dict(one) for one in (*reply.content.metric_records.values(), *reply.content.config_records.values())])


def test_an_unprotected_client_is_warned_and_the_log_stays_with_it(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fedsim.guarding"):
        guarded, plain = run(tmp_path / "run", guard(log=tmp_path / "log.jsonl"), None)
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["round"] == 1 and line["action"] == "sent as it is"
    assert "label_count: Label recall 1.00 against a blind guess of 0.10 (leaks)" in line["found"]
    leaked = float(line["found"].partition("patch_embedding: PSNR ")[2].partition(" dB")[0])
    assert leaked > 60 and "patch_embedding" in caplog.text
    assert list(guarded.content) == list(plain.content) == ["arrays", "metrics"]
    assert everything(guarded) == everything(plain)


def test_added_noise_brings_the_servers_own_attack_down_to_its_controls(fedsim, without_report, tmp_path, monkeypatch):
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\ndef batches(round, node):\n    import own_nodes\n    own = own_nodes.NODES.index(node)\n"
        "    generator = torch.Generator().manual_seed(own)\n"
        "    return torch.rand(1, 3, 32, 32, generator=generator), torch.tensor([3 + own])\n"
    )
    log = tmp_path / "log.jsonl"
    run(tmp_path / "run", guard(policy="add", defense=NOISE, log=log), None)
    folder = RunFolder.open(tmp_path / "run")
    nodes = [folder.read_side(1, client)["node"]["node-id"] for client in range(2)]
    (tmp_path / "own_nodes.py").write_text(f"NODES = {nodes}\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = fedsim("audit", tmp_path / "run", "--truth", "own:batches", "--attack", "patch_embedding", *INLINE)
    assert outcome.code == 0, outcome.output
    scores = {
        (r["client"], r["attack"]["name"]): (r["scores"]["psnr"]["value"], r["controls"])
        for r in folder.records.read()
        if "psnr" in r["scores"]
    }
    protected, controls = scores[0, "patch_embedding"]
    assert protected < max(controls[name]["psnr"] for name in ("grey", "own_mean"))
    assert scores[1, "patch_embedding"][0] > 60
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert "(leaks)" in line["found"].partition("patch_embedding")[2] and "(none)" in line["after"]


def test_a_leaking_update_is_withheld_and_the_round_goes_on(tmp_path):
    withheld, other = run(tmp_path / "run", guard(policy="withhold"), None)
    assert withheld.has_error() and withheld.error.reason == "withheld by the client"
    assert not other.has_error() and RunFolder(tmp_path / "run").captured(1) == (1,)


@pytest.mark.parametrize(("policy", "is_sent"), [("warn", True), ("withhold", False)])
def test_what_cannot_be_measured_is_said_and_sent_only_where_it_is_warned_of(policy, is_sent, tmp_path):
    def broken(message, context):
        raise OSError("no disk")

    log = tmp_path / "log.jsonl"
    (reply,) = run(tmp_path / "run", guard(policy=policy, data=broken, log=log))
    assert reply.has_error() != is_sent
    assert "no disk" in json.loads(log.read_text())["unmeasured"]
    assert is_sent or "no disk" not in reply.error.reason


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path, caplog):
    (reply,) = run(tmp_path / "run", guard(log=tmp_path))
    assert not reply.has_error() and f"cannot write {tmp_path}" in caplog.text


def test_nothing_measured_is_no_safety(tmp_path):
    log = tmp_path / "log.jsonl"
    (reply,) = run(tmp_path / "run", guard(policy="withhold", seconds=1e-9, log=log))
    assert (
        reply.has_error() and "not measured, the 1e-09 s of the round were over" in json.loads(log.read_text())["found"]
    )
    assert Measured(()).level == "unrated" and "nothing was measured" in str(Measured(()))


def test_other_messages_and_failed_trainings_pass(tmp_path):
    message = Message(RecordDict(), 1, "evaluate")
    passed = Message(RecordDict({"metrics": MetricRecord({"accuracy": 1.0})}), reply_to=message)
    assert guard(policy="withhold")(message, Context(1, 1, {}, RecordDict(), {}), lambda *given: passed) is passed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": "block"}, "policy: expected one of warn, add, withhold, got 'block'"),
        ({"policy": "add"}, "policy add needs one"),
        ({"defense": NOISE}, "and no other takes one"),
        ({"policy": "add", "defense": {"name": "mjp"}}, "mjp acts in training"),
        ({"policy": "add", "defense": {"name": "dp_nois"}}, "Did you mean 'dp_noise'"),
        ({"training": {"batchsize": 1}}, "unknown key"),
        ({"seconds": 0.0}, "seconds: expected a number above 0, got 0"),
    ],
)
def test_what_a_guard_cannot_do_is_refused_when_it_is_made(changes, says):
    with pytest.raises(FedsimError, match=says):
        guard(**changes)
