"""Somebody else's Flower app, from the observer to the report: what it sends, by whatever names, is all that is known."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import nn

import fedsim as package
from fedsim.federation import engine_inline
from fedsim.recording import observed
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader
from fedsim.seeds import seeded

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
DATA = "data: {name: shapes, samples: 20, test_samples: 4, auxiliary_samples: 4}"
PLAIN = """
model: {name: vit_tiny_patch16_224, kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 1, num_heads: 2}}
training: {batch_size: 1}
attacks: [patch_embedding, label_count]
audit: {processes: 0}
"""
SCENARIO = PLAIN + DATA
README = Path(__file__).parents[2] / "README.md"


def vit(classes, name="vit_tiny_patch16_224", **sizes):
    with seeded(0):
        return timm.create_model(name, num_classes=classes, **(sizes or SIZES))


def sent(tensors, form):
    """The arrays of a message: a bare list, or names behind a prefix."""
    if form == "list":
        return ArrayRecord([tensor.numpy() for tensor in tensors.values()])
    return ArrayRecord({form + name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def image_of(client):
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(client))


def app(make, form="", labels=(0, 1), rounds=1, kind="train"):
    """A Flower app whose client number i takes one step of SGD on its one image, of class labels[i]."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    @client.query()
    def step(message, context):
        own, model = context.node_config["partition-id"], make()
        state = zip(model.state_dict(), message.content["arrays"].values(), strict=True)
        model.load_state_dict({name: torch.from_numpy(array.numpy().copy()) for name, array in state})
        nn.functional.cross_entropy(model(image_of(own) * 2 - 1), torch.tensor([labels[own]])).backward()
        new = {name: (p - 0.1 * p.grad).detach() for name, p in model.named_parameters()}
        content = {"arrays": sent(new, form), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid, context):
        for _ in range(rounds):
            content = RecordDict({"arrays": sent(make().state_dict(), form)})
            list(grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()]))

    return server, client, len(labels)


def observe(folder, server, client, clients, scenario=None):
    engine_inline.run(package.observe(server, folder=folder, scenario=scenario), client, clients)


@pytest.fixture
def audit_yaml(tmp_path):
    def write(text=SCENARIO):
        (tmp_path / "audit.yaml").write_text(text)
        return tmp_path / "audit.yaml"

    return write


@pytest.mark.parametrize(
    ("form", "says"),
    [("list", "by order and shapes"), ("net.", "by the prefix 'net.'"), ("_orig_mod.", "by the prefix '_orig_mod.'")],
)
def test_an_app_is_audited_whatever_its_arrays_are_called(form, says, fedsim, audit_yaml, tmp_path):
    labels = (22, 3, 3, 17, 0, 9)
    observe(tmp_path / "run", *app(lambda: vit(23), form, labels), audit_yaml())
    code, _, text = fedsim("audit", tmp_path / "run")
    assert code == 0, text
    records = RunFolder.open(tmp_path / "run").records.read()
    assert {record["status"] for record in records} == {"found"}
    found = {r["client"]: r["found"]["labels"] for r in records if r["attack"]["name"] == "label_count"}
    assert found == {client: {str(label): 1} for client, label in enumerate(labels)}
    assert all(
        f"the app's arrays were matched to the parameters of vit_tiny_patch16_224 {says}" in r["cautions"]
        for r in records
    )
    report = (tmp_path / "run" / "report.md").read_text()
    assert says.split("'")[0] in report and "| 1 | 0 | label_count |  | class 22: 1 |" in report
    assert "- Clients seen: 6 (0 to 5)" in report and "- Rounds captured: 1" in report
    assert "- Examples reported: 1\n" in report and "- Kind of update: delta" in report
    for default in ("vit_mini", "FedAvg", "of 3", "What it cost", "no defense", "fedsim run"):
        assert default not in report, default
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('alt="patch_embedding, client') == 6 and "<figcaption>Original" not in page


def test_a_image_of_an_observed_client_is_found_and_shown(fedsim, audit_yaml, tmp_path):
    from safetensors.torch import load_file

    observe(tmp_path / "run", *app(lambda: vit(10), "net."), audit_yaml())
    assert fedsim("audit", tmp_path / "run").code == 0
    for client in range(2):
        folder = tmp_path / "run" / "artifacts" / "round-0001" / f"client-{client:03d}"
        found = load_file(folder / "00-patch_embedding.safetensors")["images"]
        assert torch.allclose(found, image_of(client), atol=1e-3)
        assert (folder / "00-patch_embedding.png").is_file() and not (folder / "originals.png").exists()


def test_the_example_of_the_readme_audits_an_app_of_that_model(fedsim, audit_yaml, tmp_path):
    (example,) = re.findall(r"```yaml\n(# audit\.yaml.*?)```", README.read_text(), re.DOTALL)
    model = yaml_loader.parse(example, "README")["model"]
    observe(
        tmp_path / "run",
        *app(lambda: vit(10, model["name"], **model["kwargs"]), "module."),
        audit_yaml(f"{example}audit: {{processes: 0}}"),
    )
    code, _, text = fedsim("audit", tmp_path / "run")
    assert code == 0, text
    assert {record["status"] for record in RunFolder.open(tmp_path / "run").records.read()} == {"found"}


def test_an_app_observed_without_a_scenario_gets_one_when_it_is_audited(fedsim, audit_yaml, tmp_path):
    folder = tmp_path / "run"
    observe(folder, *app(lambda: vit(10), rounds=2))
    code, message, _ = fedsim("audit", folder)
    assert code == 2 and "was observed without a scenario" in message and f"fedsim audit {folder} --scenario" in message
    code, _, text = fedsim("report", folder)
    report = (folder / "report.md").read_text()
    assert code == 0 and "- Rounds captured: 1 to 2" in report and "fedsim audit . --scenario FILE" in report, text
    assert "Model" not in report.partition("## Threat")[0]

    code, message, _ = fedsim("audit", folder, "--scenario", audit_yaml(PLAIN.replace("64", "32")))
    assert (
        code == 2 and "cls_token is of shape (1, 1, 32) in the model and of shape (1, 1, 64) in the capture" in message
    )
    assert not (folder / "scenario.yaml").exists()
    code, _, text = fedsim("audit", folder, "--scenario", audit_yaml(PLAIN))
    assert code == 0 and len(RunFolder.open(folder).records.read()) == 8, text
    assert "photos" not in (folder / "report.md").read_text()
    assert set(yaml_loader.read(folder / "scenario.yaml")) == {
        "name",
        "model",
        "training",
        "threat",
        "attacks",
        "audit",
    }
    before = (folder / "scenario.yaml").read_text()
    code, message, _ = fedsim("audit", folder, "--scenario", audit_yaml("model: vit_nano"))
    assert code == 2 and "--scenario" in message and "findings that were made under it" in message
    assert (folder / "scenario.yaml").read_text() == before and fedsim("audit", folder).code == 0


def test_a_simulated_run_takes_no_other_scenario(fedsim, audit_yaml, tiny_plan, run_folder):
    from fedsim.recording import environment

    folder = run_folder(tiny_plan())
    (folder.path / "environment.json").write_text(environment.as_json("simulated"))
    code, message, _ = fedsim("audit", folder.path, "--scenario", audit_yaml())
    assert code == 2 and "--scenario" in message and "it was simulated with its own scenario" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "threat: {grants: [batch_size]}",
            "threat.grants: batch_size: the scenario does not state training.batch_size",
        ),
        (
            "training: {learning_rate: 0.1, schedule: cosine}",
            "training.schedule: the learning rate of a round depends on how many the app has, and federation.rounds is not",
        ),
        ("threat: {grants: [train_mode]}", "threat.grants: train_mode: the scenario does not state training.mode"),
        ("threat: {grants: [defenses]}", "threat.grants: defenses: the scenario does not state defenses"),
        (
            f"threat: {{grants: [auxiliary_data, normalization]}}\n{DATA}",
            "auxiliary_data: shapes has 10 classes, the head of the observed app 5",
        ),
        ("audit: {rounds: [2]}", "audit.rounds: no round 2; the last captured round is 1"),
    ],
)
def test_what_an_audit_of_an_observed_app_cannot_know_is_refused(text, says, fedsim, audit_yaml, tmp_path):
    observe(tmp_path / "run", *app(lambda: vit(5)))
    model = SCENARIO.splitlines()[1]
    code, message, _ = fedsim(
        "audit", tmp_path / "run", "--scenario", audit_yaml(f"{model}\n{text}\nattacks: [patch_embedding]")
    )
    assert code == 2 and says in message
    assert not (tmp_path / "run" / "artifacts").exists()


def test_defaults_are_no_grants_and_other_classes_are_said(fedsim, audit_yaml, tmp_path):
    observe(tmp_path / "run", *app(lambda: vit(5)))
    text = f"{SCENARIO.splitlines()[1]}\n{DATA}\nattacks: [patch_embedding]\naudit: {{processes: 0}}"
    code, _, shown = fedsim("audit", tmp_path / "run", "--scenario", audit_yaml(text))
    assert code == 0, shown
    for record in RunFolder.open(tmp_path / "run").records.read():
        assert record["grants"] == ["normalization"]
        assert any("data shapes has 10 classes, the head of the app 5" in caution for caution in record["cautions"])


# Nothing was captured


def several(server_kind):
    """An app whose messages fedsim does not read."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    @client.query()
    def answer(message, context):
        if server_kind == "failing":
            raise RuntimeError("no data on this device")
        arrays = {name: ArrayRecord([np.zeros(2, np.float32)]) for name in ("body", "head")}
        return Message(RecordDict({**arrays} if server_kind == "several" else {}), reply_to=message)

    @server.main()
    def main(grid, context):
        kind = "query" if server_kind == "query" else "train"
        arrays = {"arrays": ArrayRecord([np.zeros(2, np.float32)])} if server_kind != "none" else {}
        nodes = [] if server_kind == "silent" else grid.get_node_ids()
        list(grid.send_and_receive([Message(RecordDict(dict(arrays)), node, kind) for node in nodes]))

    return server, client, 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("several", "2 replies to train messages were left out, because the reply holds 2 ArrayRecords (body, head)"),
        ("none", "2 replies to train messages were left out, because the request holds no ArrayRecord"),
        ("query", "no reply to a train message came by, only to query (2)"),
        ("failing", "every client failed, client 0 in round 1 with: no data on this device"),
        ("silent", "no client replied to any message"),
    ],
)
def test_an_empty_capture_is_an_error_with_its_cause(kind, says, fedsim, audit_yaml, tmp_path, caplog):
    observe(tmp_path / "run", *several(kind), audit_yaml())
    for command in ("audit", "report"):
        code, message, _ = fedsim(command, tmp_path / "run")
        assert code == 2 and f"nothing was captured: {says}" in message, command
    assert not (tmp_path / "run" / "report.html").exists()
    assert says in caplog.text


def test_an_app_that_was_killed_before_its_first_reply_is_told_from_one_that_ended(fedsim, audit_yaml, tmp_path):
    observe(tmp_path / "run", *several("silent"), audit_yaml())
    (tmp_path / "run" / "observed.json").unlink()
    for command in ("audit", "report"):
        code, message, _ = fedsim(command, tmp_path / "run")
        assert code == 2 and "still running, or was killed before the first reply" in message


def test_replies_that_were_left_out_are_said_beside_what_was_captured(fedsim, tmp_path):
    folder = RunFolder.create(tmp_path / "run", None)
    observe(tmp_path / "run", *app(lambda: vit(5)))
    observed.write_log(folder, {"train": 3}, {"the reply holds no ArrayRecord": 1}, [])
    assert fedsim("report", tmp_path / "run").code == 0
    assert (
        "1 replies were not captured: the reply holds no ArrayRecord." in (tmp_path / "run" / "report.md").read_text()
    )
