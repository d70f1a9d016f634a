"""The example apps, observed and audited as the README says: what is chosen, what is found, and how it is scored."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from fedsim.federation import engine_inline
from fedsim.recording.run_folder import RunFolder
from fedsim.report import rendering

APPS = Path(__file__).parent
# Images of each class, by partition.
TRUE_COUNTS = {0: {0: 3, 1: 2, 2: 2, 3: 1}, 1: {0: 2, 1: 1, 2: 1, 3: 4}, 2: {0: 2, 1: 4, 3: 2}}


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Make the apps importable, as they are in their own folders."""
    with pytest.MonkeyPatch.context() as patch:
        for app in ("quickstart", "vit_head", "guarded"):
            patch.syspath_prepend(APPS / app)
        yield
    for module in [one for one in sys.modules if one.startswith(("quickstart_app", "vit_head_app", "guarded_app"))]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def observed(importable, tmp_path_factory):
    """Return a function: name, server, client and folder of an app -> the folder of what was observed of it, made once."""
    found = {}

    def run(name, server, client, made):
        if name not in found:
            work = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(work)
                engine_inline.run(named(server), named(client), 3)
            found[name] = work / made
        return found[name]

    return run


def named(target):
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture
def quickstart(observed, tmp_path):
    made = observed("quickstart", "quickstart_app.server_app:app", "quickstart_app.client_app:app", "runs/quickstart")
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def legacy(observed, tmp_path):
    made = observed("legacy", "quickstart_app.legacy:server_app", "quickstart_app.legacy:client_app", "runs/legacy")
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def audit(fedsim, without_report):
    """Return a function: a folder, arguments -> what came of its audit in this process."""
    return lambda folder, *arguments: fedsim("audit", folder, "--set", "audit.processes=0", *arguments)


def partition_of(folder, client):
    return folder.read_side(1, client)["node"]["partition-id"]


def counted(record):
    return {int(label): count for label, count in record["found"]["labels"].items()}


@pytest.mark.parametrize("style", ["quickstart", "legacy"])
def test_a_cnn_in_either_style_tells_its_labels(style, request, audit):
    path = request.getfixturevalue(style)
    outcome = audit(path)
    assert outcome.code == 0, outcome.output
    assert "chosen by what applies: head_features, label_count, label_recovery." in outcome.output
    assert "left out patch_embedding: it is made for 1 image in an update, and here are 8" in outcome.output
    folder = RunFolder.open(path)
    records = folder.records.read()
    assert len(records) == 9 and all(record["scores"] == {} for record in records)
    for record in records:
        assert counted(record) == TRUE_COUNTS[partition_of(folder, record["client"])]
    assert "What was found" in outcome.output and "8 head inputs" in outcome.output
    # An attack that finds labels and features is told once, not once for each.
    assert outcome.output.count("head_features: not scored") == 3
    assert "--truth MODULE:FUNCTION" in " ".join(outcome.output.split())


def test_a_truth_given_later_scores_the_same_findings(quickstart, audit, drawn_once):
    assert audit(quickstart, "--attack", "label_count").code == 0
    folder = RunFolder.open(quickstart)
    before = {path: path.read_bytes() for path in sorted(quickstart.glob("artifacts/**/*.safetensors"))}
    outcome = audit(quickstart, "--truth", "quickstart_app.truth:batches")
    assert outcome.code == 0 and "--truth" not in outcome.output, outcome.output
    assert {path: path.read_bytes() for path in before} == before and before
    for record in folder.records.read():
        assert record["scores"]["label_recall"]["value"] == 1.0 and record["controls"]["chance"]["label_recall"] < 0.7
        assert any("the truth is what quickstart_app.truth:batches returned" in one for one in record["cautions"])
    assert "clients leak their labels" in outcome.output
    report = rendering.render(quickstart).with_suffix(".md").read_text()
    assert "No attack saw the originals" in report and "not known, so what it found" not in report


def test_the_head_only_app_tells_its_labels_and_no_pictures(observed, audit, tmp_path):
    made = observed("vit", "vit_head_app.server_app:app", "vit_head_app.client_app:app", "runs/vit-head")
    path = shutil.copytree(made, tmp_path / "run")
    outcome = audit(path, "--attack", "label_count", "--set", "audit.clients=[0]")
    assert outcome.code == 0, outcome.output
    records = RunFolder.open(path).records.read()
    assert len(records) == 1
    for record in records:
        assert record["found"]["labels"] and record["found"].get("pictures") is None
    assert "150 frozen parameters, which do not travel" in outcome.output


def test_a_guarded_client_learns_what_it_would_leak_and_hides_it_with_a_defense(
    importable, fedsim, without_report, tmp_path
):
    config = {"policy": "add", "guard-log": str(tmp_path), "fedsim-folder": str(tmp_path / "run")}
    engine_inline.run(named("guarded_app.server_app:app"), named("guarded_app.client_app:app"), 2, config)
    lines = [json.loads(log.read_text()) for log in sorted(tmp_path.glob("client-*.jsonl"))]
    assert len(lines) == 2
    for line in lines:
        assert psnr_of(line["found"]) > 60 and "label_count: Label recall 1.00" in line["found"]
        assert line["action"] == "sent with the defense added" and psnr_of(line["after"]) < 20
    attack = ("--attack", "patch_embedding", "--truth", "guarded_app.truth:batches", "--set", "audit.clients=[0]")
    outcome = fedsim("audit", tmp_path / "run", *attack, "--set", "audit.processes=0")
    assert outcome.code == 0, outcome.output
    (record,) = RunFolder.open(tmp_path / "run").records.read()
    best = max(one["psnr"] for name, one in record["controls"].items() if name in ("grey", "own_mean"))
    assert record["scores"]["psnr"]["value"] < best


def psnr_of(said):
    return float(said.partition("patch_embedding: PSNR ")[2].partition(" dB")[0])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def batches(round): pass", "takes (round), expected round and partition, or round and node"),
        ("def batches(round, partition): return None", "returned NoneType, expected a pair (images, labels)"),
        ("def batches(round, partition): raise OSError('gone')", "raised OSError: gone"),
        ("def batches(round, partition): return load(8, scale=2), labels(8)", "expected 0 to 1, or uint8"),
        ("def batches(round, partition): return load(8)[:, :1], labels(8)", "expected shape (count, 3, 32, 32)"),
        ("def batches(round, partition): return load(8), labels(7)", "8 images and 7 labels"),
        ("def batches(round, partition): return load(8), labels(8) + 10", "labels outside 0 to 9"),
        ("def batches(round, partition): return load(8), labels(8).float()", "expected whole numbers"),
        (
            "def batches(round, partition): return load(7), labels(7)",
            "7 images, and the client reported num-examples 8",
        ),
    ],
)
def test_a_truth_that_is_none_is_refused_before_any_attack(body, says, quickstart, audit, tmp_path, monkeypatch):
    (tmp_path / "wrong_truth.py").write_text(
        "import torch\ndef load(n, scale=1): return scale * torch.ones(n, 3, 32, 32)\n"
        f"def labels(n): return torch.arange(n)\n{body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_truth", raising=False)
    outcome = audit(quickstart, "--truth", "wrong_truth:batches", "--attack", "label_count")
    assert outcome.code == 2 and says in outcome.message, outcome.output
    assert not (quickstart / "artifacts").exists() and not RunFolder.open(quickstart).records.read()
    monkeypatch.delitem(sys.modules, "wrong_truth", raising=False)


def test_a_truth_that_changes_from_call_to_call_scores_nothing(quickstart, audit, tmp_path, monkeypatch):
    (tmp_path / "fickle_truth.py").write_text(
        "import torch\ndef batches(round, partition): return torch.rand(8, 3, 32, 32), torch.arange(8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    outcome = audit(quickstart, "--truth", "fickle_truth:batches", "--attack", "label_count")
    assert outcome.code == 2 and "other images or labels than when the audit began" in outcome.message, outcome.output
    assert not RunFolder.open(quickstart).records.read()


def test_an_audit_elsewhere_than_in_the_app_says_where_to_work(quickstart, audit, monkeypatch):
    for module in [one for one in sys.modules if one.startswith("quickstart_app")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if not one.endswith("flower_apps/quickstart")])
    outcome = audit(quickstart)
    assert outcome.code == 2 and "cannot import 'quickstart_app.task:Net'" in outcome.message
    assert "Work in the folder of your app, or install the app here" in outcome.message


def test_attacks_never_ask_for_the_truth(quickstart, monkeypatch):
    from fedsim.audit import attempt
    from fedsim.exchange import View
    from fedsim.planning import preparation
    from fedsim.scenario import load

    folder = RunFolder.open(quickstart)
    truth = "audit.truth=quickstart_app.truth:batches"
    scenario, _ = load(quickstart / "scenario.yaml", [truth, "attacks=[label_count]"])
    plan = preparation.of_folder(folder, scenario)

    def refuse(*given):
        raise AssertionError("the truth was read")

    monkeypatch.setattr("fedsim.planning.supplied_truth.SuppliedTruth.read", refuse)
    assert attempt.make(plan, folder, View.of_update(1, 0), plan.attacks[0]).status == "found"
    with pytest.raises(AssertionError, match="the truth was read"):
        plan.truth([(1, 0)])


def test_a_stated_loss_leaves_the_rules_of_cross_entropy_out(quickstart, fedsim):
    loss = "torch.nn.functional:mse_loss"
    outcome = fedsim("audit", quickstart, "--loss", loss, "--set", "audit.processes=0")
    assert outcome.code == 2 and "none of those installed applies by itself" in outcome.message, outcome.output
    assert "label_count: it is made for cross-entropy, and the client minimizes another loss" in outcome.message
    assert "inverting_gradients: little is to be expected of it here (it is made for 2 images" in outcome.message


def test_the_commands_of_the_readme_are_those_of_the_apps():
    readme = (APPS.parents[1] / "README.md").read_text()
    (section,) = re.findall(r"## Audit your Flower app in five minutes\n(.*?)\n## ", readme, re.DOTALL)
    assert "fedsim audit" in section and "--truth" in section
    server = (APPS / "quickstart" / "quickstart_app" / "server_app.py").read_text()
    for line in ('model="quickstart_app.task:Net",', "fedsim.observe("):
        assert line in section and line in server
