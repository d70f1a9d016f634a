"""The command line: what each command writes, prints and returns."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from fedsim_attacks import patch_embedding
from fedsim_attacks.patch_embedding import PatchEmbedding
from PIL import Image

from fedsim import models, shipped
from fedsim.cli import app
from fedsim.metrics.table import METRICS
from fedsim.planning import catalogue
from fedsim.planning import schema as schemas
from fedsim.plugins import installed, parameters
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart, Scenario, yaml_loader

pytestmark = pytest.mark.usefixtures("drawn_once")

GALLERY = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))
SMALL = {
    "name": "small",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 12, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 3, "rounds": 1},
    "attacks": [{"name": "stubs:Guess"}],
    "audit": {"processes": 0},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def finished(template, tmp_path, file, fedsim):
    """A copy of a finished run of the scenario."""
    if not template.exists():
        assert fedsim("run", file, "--out", template).code == 0
    return Path(shutil.copytree(template, tmp_path / "run"))


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# run


def test_run_trains_captures_audits_and_reports(fedsim, file, tmp_path):
    outcome = fedsim("run", file, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert outcome.message == ""
    assert f"Run folder: {tmp_path / 'run'}\n" in outcome.output
    assert f"Report: {tmp_path / 'run' / 'report.html'}\n" in outcome.output
    for name in ("scenario.yaml", "environment.json", "rounds.jsonl", "report.html", "report.md", "model.safetensors"):
        assert (tmp_path / "run" / name).is_file(), name
    assert [record["client"] for record in records(tmp_path / "run")] == [0, 1, 2]


def test_the_resolved_scenario_of_a_run_makes_the_same_run(fedsim, finished, tmp_path):
    assert fedsim("run", finished / "scenario.yaml", "--out", tmp_path / "again").code == 0
    assert [r | {"seconds": 0} for r in records(tmp_path / "again")] == [r | {"seconds": 0} for r in records(finished)]


def test_a_run_without_a_folder_gets_one_by_name_and_time(fedsim, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fedsim("run", file, "--set", "attacks=[]").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"small-\d{8}-\d{6}", folder.name)


def test_settings_and_engine_reach_the_run_and_notes_are_printed(fedsim, file):
    outcome = fedsim("check", file, "--set", "data.name=photos", "--set", "data.samples=12", "--engine", "inline")
    assert outcome.code == 0
    assert "note: data.name is now 'photos': dropped classes, which it does not have" in outcome.output


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"attacks": [{"name": "stubs:RaisesOn"}]}, "1 of 3 attempts failed; records.jsonl says why."),
        (
            {"defenses": [{"name": "stubs:FailsIn", "clients": [1]}]},
            "Clients failed in some rounds: 1; see rounds.jsonl.",
        ),
    ],
)
def test_a_failure_ends_with_1_after_everything_else_is_saved(part, says, fedsim, file, tmp_path):
    file.write_text(yaml.safe_dump(SMALL | part))
    outcome = fedsim("run", file, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert says in outcome.output
    assert "Traceback" not in outcome.output
    assert {record["client"] for record in records(tmp_path / "run")} >= {0, 2}
    assert (tmp_path / "run" / "report.html").is_file()


def test_no_client_at_all_ends_with_2_and_says_what_they_said(fedsim, file, tmp_path):
    file.write_text(yaml.safe_dump(SMALL | {"defenses": [{"name": "stubs:FailsIn"}]}))
    outcome = fedsim("run", file, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "no client delivered an update in round 1; client 0 said: " in outcome.message
    assert "out of battery" in outcome.message
    assert "Traceback" not in outcome.output


def test_resuming_a_finished_run_changes_nothing_that_was_measured(fedsim, finished):
    before = content(finished)
    assert fedsim("run", "--resume", finished).code == 0
    assert content(finished) == before


# audit and report


def test_audit_adds_an_attack_by_name_or_mapping_and_leaves_the_rest(fedsim, finished):
    before = records(finished)
    assert fedsim("audit", finished, "--attack", "{name: stubs:Guess, params: {pictures: 2}}").code == 0
    after = records(finished)
    assert [record for record in after if record["attack"]["params"] == {"pictures": 1}] == before
    assert [record["client"] for record in after if record["attack"]["params"] == {"pictures": 2}] == [0, 1, 2]
    assert len(yaml_loader.read(finished / "scenario.yaml")["attacks"]) == 2
    saved = content(finished)
    assert fedsim("audit", finished, "--attack", "stubs:Guess").code == 0
    assert content(finished) == saved


def test_audit_redoes_records_that_are_gone(fedsim, finished):
    before = records(finished)
    (finished / "records.jsonl").unlink()
    assert fedsim("audit", finished).code == 0
    assert records(finished) == before


def test_report_renders_from_the_folder_alone(fedsim, finished):
    before = content(finished)
    (finished / "report.html").unlink()
    outcome = fedsim("report", finished)
    assert outcome.code == 0
    assert outcome.output == f"Report: {finished / 'report.html'}\n"
    assert content(finished) == before


# check, list, schema


def test_check_tells_what_the_scenario_means_and_writes_nothing(fedsim, file, tmp_path):
    defenses = [{"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0}}]
    file.write_text(yaml.safe_dump(SMALL | {"defenses": defenses}))
    outcome = fedsim("check", file)
    assert outcome.code == 0
    for text in (
        "shapes, 2 classes, 4 to 4 samples a client",
        "vit_nano, 0.1 M parameters, input (3, 32, 32)",
        "travels all parameters",
        "3 clients, 1 rounds",
        "batch_size, normalization",
        "client 1: dp_noise: Clipping without noise",
        "dp_noise (clip_norm: 1.0) on clients 1",
        "attack stubs:Guess ",
        f"{file}: fine",
    ):
        assert text in " ".join(outcome.output.split()), text
    assert list(tmp_path.iterdir()) == [file]


def test_how_weights_were_fitted_is_said_by_check_by_run_and_in_the_report(fedsim, file, tmp_path):
    weights = models.build(ModelPart(name="vit_nano", kwargs={"depth": 1}), 2, 32, 1).state_dict()
    backbone = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    setting = f"model.pretrained={tmp_path / 'backbone.pth'}"
    note = "model.pretrained: backbone.pth: the backbone is loaded, the head is fresh (head: the file has none)."
    assert f"note: {note}\n" in fedsim("check", file, "--set", setting).output
    run = tmp_path / "run"
    assert f"note: {note}\n" in fedsim("run", file, "--out", run, "--set", setting).output
    assert f"> {note}<br>" in (run / "report.md").read_text()
    assert note in (run / "report.html").read_text()


def test_check_shows_the_first_class_names_the_splits_and_what_is_converted(fedsim, file, tmp_path):
    names = [f"c{number:02d}" for number in range(10)] + ["[/red]", "\x1b[31m"]
    for split in ("train", "val"):
        for name in names[: 12 if split == "train" else 3]:
            (tmp_path / "pictures" / split / name.replace("/", "%")).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), number).save(
                    tmp_path / "pictures" / split / name.replace("/", "%") / f"{number}.png"
                )
    file.write_text(yaml.safe_dump(SMALL | {"data": {"name": "folder", "path": str(tmp_path / "pictures")}}))
    outcome = fedsim("check", file)
    output = " ".join(outcome.output.split())
    assert outcome.code == 0
    assert "\x1b" not in output
    for text in (
        "folder, 12 classes",
        "and 2 more",
        "42 training, 12 test, 6 auxiliary",
        "train is used for training",
        "val for testing",
        "images used: gray; their channel is repeated three times.",
    ):
        assert text in output, text


@pytest.mark.parametrize("kind", ["attacks", "defenses", "data"])
def test_list_names_every_plug_in_with_a_line_and_its_parameters(kind, fedsim):
    rows = {row.name: row for row in catalogue.find(kind).entries()}
    assert set(rows) == set(installed(kind))
    assert all(row.summary.endswith(".") and row.listed for row in rows.values())
    outcome = fedsim("list", kind)
    assert outcome.code == 0
    assert all(name in outcome.output for name in rows)


def test_list_without_a_kind_shows_all_of_them(fedsim):
    outcome = fedsim("list")
    assert outcome.code == 0
    for text in ("shapes", "vit_nano", "FedAdam", "dp_noise", "patch_embedding", *METRICS, "quickstart"):
        assert text in outcome.output


def test_list_of_a_name_prints_its_documentation_parameters_and_facts(fedsim):
    printed = " ".join(fedsim("list", "attacks", "patch_embedding").output.split())
    module, cls = inspect.getdoc(patch_embedding), PatchEmbedding
    assert " ".join(module.split()) in printed
    for parameter in parameters(cls):
        assert f"{parameter.name} " in printed and repr(parameter.default) in printed
    assert f"citation: {cls.citation}" in printed
    assert "needs the grants: normalization" in printed
    assert "1 image in an update; a model with a learned position embedding" in printed
    assert "recovers: images" in printed
    assert "made for: a gradient or a delta, local sgd; at most 1 image in an update" in printed


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("models", "vit_nano", "patch_size: 8"),
        ("models", "vit_tiny_patch16_224", "global_pool"),
        ("strategies", "FedAdam", "beta_1"),
        ("defenses", "dp_noise", "a number or nothing"),
        ("data", "folder", "required"),
        ("metrics", "psnr", "Hore and Ziou"),
    ],
)
def test_every_kind_has_pages(kind, name, says, fedsim):
    outcome = fedsim("list", kind, name)
    assert outcome.code == 0 and outcome.output.startswith(f"{name}\n")
    assert says in outcome.output


@pytest.mark.parametrize("kind", ["models", "strategies", "defenses", "attacks", "data", "metrics", "scenarios"])
def test_a_page_of_an_unknown_name_names_the_nearest(kind, fedsim):
    known = catalogue.find(kind).names()[0]
    outcome = fedsim("list", kind, f"{known}x")
    assert (
        outcome.code == 2
        and outcome.message.startswith("fedsim: list ")
        and f"Did you mean {known!r}?" in outcome.message
    )


def test_the_page_of_a_scenario_is_its_file(fedsim):
    assert fedsim("list", "scenarios", "quickstart").output == shipped.path("quickstart").read_text()


def test_list_as_json_holds_every_parameter_with_its_default(fedsim):
    listed = {entry["name"]: entry for entry in json.loads(fedsim("list", "defenses", "--json").output)}
    assert set(listed) == set(installed("defenses"))
    by_name = {one["name"]: one for one in listed["dp_noise"]["parameters"]}
    assert by_name["noise_multiplier"] == {
        "name": "noise_multiplier", "type": "a number", "required": False, "default": 0.0
    }  # fmt: skip
    page = json.loads(fedsim("list", "attacks", "label_count", "--json").output)
    assert page["name"] == "label_count" and page["recovers"] == ["labels"] and "Idea:" in page["text"]
    everything = json.loads(fedsim("list", "--json").output)
    assert list(everything) == list(catalogue.sections())


def test_check_tells_what_travels_and_what_is_frozen(fedsim, file):
    file.write_text(yaml.safe_dump(SMALL))
    setting = ("--set", "training.trainable=[head.*]")
    printed = " ".join(fedsim("check", file, *setting).output.split())
    assert "parameters (head.weight, head.bias); frozen: cls_token, pos_embed, patch_embed.proj.weight" in printed
    assert "vit_nano, 0.1 M parameters" in printed
    travels = json.loads(fedsim("check", file, *setting, "--json").output)["travels"]
    assert travels["parameters"] == {"head.weight": 128, "head.bias": 2} and "head.weight" not in travels["frozen"]


def test_check_as_json_says_what_the_table_says(fedsim, file):
    file.write_text(
        yaml.safe_dump(SMALL | {"defenses": [{"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0}}]})
    )
    outcome = fedsim("check", file, "--json", "--set", "data.name=photos")
    found = json.loads(outcome.output)
    assert found["data"]["samples"] == [4, 4, 4] and found["data"]["training"] == 12
    assert found["model"] == {"name": "vit_nano", "parameters": found["model"]["parameters"], "input": [3, 32, 32]}
    assert found["federation"] == {"clients": 3, "rounds": 1, "strategy": "FedAvg"}
    assert sum(found["travels"]["parameters"].values()) == found["model"]["parameters"]
    assert found["travels"]["buffers"] == found["travels"]["frozen"] == {}
    assert found["defenses"][0]["clients"] == [1] and found["defenses"][0]["params"]["clip_norm"] == 1.0
    assert found["attacks"] == [{"name": "stubs:Guess", "label": None, "params": {"pictures": 1}}]
    assert any("Clipping without noise" in caution["text"] for caution in found["cautions"])
    assert [gap["attack"] for gap in found["inconclusive"]] == ["stubs:Guess"]
    assert found["notes"][0].startswith("data.name is now 'photos'")


def test_a_caution_of_several_clients_is_told_once(fedsim):
    recipe = "defenses=[{name: adversarial_training, clients: [0, 1, 2, 4]}]"
    outcome = fedsim("check", "smoke", "--set", "federation.clients=6", "--set", recipe)
    said = " ".join(outcome.output.split())
    assert said.count("Adversarial training is no privacy defense") == 1
    assert "clients 0-2, 4: adversarial_training: Adversarial training is no privacy defense" in said


def test_records_are_printed_as_a_table_as_json_and_as_csv(fedsim, finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert json.loads(fedsim("records", finished, "--json").output) == records(finished)
    assert fedsim("records", finished, "--csv").output == (finished / "tables" / "records.csv").read_text()
    printed = fedsim("records", finished).output.splitlines()
    assert printed[0].split()[:5] == ["round", "client", "attack", "defenses", "status"]
    # Long cells go on in a second line, which begins with spaces.
    assert sum(line[:1].isdigit() for line in printed) == len(
        (finished / "tables" / "records.csv").read_text().splitlines()[1:]
    )
    assert "epsilon" not in printed[0], "no client claims a budget"
    refused = fedsim("records", finished, "--json", "--csv")
    assert (refused.code, refused.message) == (2, "fedsim: records: give --json or --csv, and not both.\n")
    (finished / "records.jsonl").write_text("")
    assert json.loads(fedsim("records", finished, "--json").output) == []
    assert fedsim("records", finished, "--csv").output == ""
    assert fedsim("records", finished).output == "No records yet.\n"


def test_printed_records_show_the_budget_of_clients_that_claim_one(fedsim, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    printed = fedsim("records", Path(__file__).parents[1] / "golden" / "run").output.splitlines()
    assert printed[0].split()[3:6] == ["defenses", "epsilon", "status"]
    assert {line.split()[4] for line in printed if line.startswith("1      1 ")} == {"3.5"}


def test_list_of_an_unknown_kind_names_the_nearest(fedsim):
    outcome = fedsim("list", "attack")
    assert outcome.code == 2
    assert outcome.message.startswith("fedsim: list: no kind 'attack'. Did you mean 'attacks'? Known: data, models, ")


def test_the_schema_is_a_schema_and_accepts_every_scenario_of_the_gallery(fedsim):
    outcome = fedsim("schema")
    assert outcome.code == 0
    schema = json.loads(outcome.output)
    assert schema == schemas.of()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert GALLERY
    for path in GALLERY:
        validator.validate(yaml_loader.read(path))
    validator.validate(Scenario().resolved())
    for clients in ("all", [0, 2], "0-3", {"fraction": 0.5}):
        validator.validate({"audit": {"clients": clients}})
    for rounds in ("all", [1, "last"]):
        validator.validate({"audit": {"rounds": rounds}})


@pytest.mark.parametrize(
    "bad",
    [
        {"modle": {}},
        {"training": {"batch_size": "x"}},
        {"federation": {"clients": 0}},
        {"engine": "dask"},
        {"threat": {"grants": ["label"]}},
        {"audit": {"clients": 3}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(bad):
    validator = jsonschema.Draft202012Validator(Scenario.model_json_schema())
    assert not validator.is_valid(bad)


# The edge


@pytest.mark.parametrize("arguments", [[], ["run"], ["list"]])
def test_help_has_a_short_form(arguments, fedsim):
    outcome = fedsim(*arguments, "-h")
    assert outcome.code == 0 and outcome.output == fedsim(*arguments, "--help").output
    assert "Usage: " in outcome.output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fedsim run quick", ["quickstart"]),
        ("fedsim check vit", ["vit_base_224"]),
        ("fedsim list def", ["defenses"]),
        ("fedsim list defenses dp_n", ["dp_noise"]),
        ("fedsim list nonsense x", []),
    ],
)
def test_a_shell_completes_scenarios_kinds_and_names(words, offered, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fedsim"])
    for name, value in {
        "_FEDSIM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        app(prog_name="fedsim")
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run", "SCENARIO is a YAML file, or a name that "),
        ("check", "SCENARIO is a YAML file, or a name that "),
        ("audit", "FOLDER is that of a run"),
        ("list", "KIND is data, models, strategies, defenses, attacks, evaluators, metrics or scenarios"),
    ],
)
def test_help_says_what_the_arguments_are(command, says, fedsim):
    assert says in " ".join(fedsim(command, "-h").output.split())


def test_a_misspelt_command_is_answered_with_the_nearest_once(fedsim):
    outcome = fedsim("chekc")
    assert outcome.code == 2 and outcome.message.count("Did you mean 'check'?") == 1


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run", "--frobnicate"], ["check"]])
def test_usage_errors_end_with_2_and_no_traceback(arguments, fedsim):
    outcome = fedsim(*arguments)
    assert outcome.code == 2
    assert "Usage: " in outcome.message
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (PermissionError(13, "Permission denied", "/locked/file"), "fedsim: /locked/file: Permission denied.\n"),
        (OSError(28, "No space left on device"), "fedsim: No space left on device.\n"),
        (OSError("wrong in words"), "fedsim: wrong in words.\n"),
    ],
)
def test_what_the_operating_system_refuses_is_told_in_one_line(fault, says, fedsim, finished, monkeypatch):
    def fails(path):
        raise fault

    monkeypatch.setattr("fedsim.report.render", fails)
    outcome = fedsim("report", finished)
    assert (outcome.code, outcome.message) == (2, says)


@pytest.mark.parametrize(
    ("command", "step", "says"),
    [
        (["run", "--resume"], "simulate", "fedsim run --resume"),
        (["audit"], "audit", "fedsim audit"),
    ],
)
def test_an_interruption_ends_with_130_and_says_how_to_go_on(command, step, says, fedsim, finished, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fedsim.simulation.{step}", interrupted)
    outcome = fedsim(*command, finished)
    assert (outcome.code, outcome.message) == (130, f"interrupted; go on with {says} {finished}\n")


def test_an_audit_reads_the_run_only_once_it_holds_it(fedsim, finished, monkeypatch):
    """Another audit that adds an attack just before this one gets the folder must not be undone."""
    first = []
    locked = RunFolder.locked

    def late(folder):
        if not first:
            first.append(folder)
            assert fedsim("audit", finished, "--attack", "{name: stubs:Guess, params: {pictures: 3}}").code == 0
        return locked(folder)

    monkeypatch.setattr(RunFolder, "locked", late)
    assert fedsim("audit", finished, "--attack", "{name: stubs:Guess, params: {pictures: 2}}").code == 0
    attacks = yaml_loader.read(finished / "scenario.yaml")["attacks"]
    assert [part["params"].get("pictures", 1) for part in attacks] == [1, 3, 2]
    assert len(records(finished)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_control_c_ends_a_run_and_its_workers_at_once_and_quietly(processes, file, stubs, tmp_path):
    # It lets go of nothing: no other thread of its process ever runs.
    params = {"fault": "spins in C", "on": 0, "note": str(tmp_path / "asleep")}
    attack = {"name": "faulty_attacks:Goes", "params": params}
    file.write_text(yaml.safe_dump(SMALL | {"attacks": [attack], "audit": {"processes": processes}}))
    # As in a terminal: what runs in the background inherits that Ctrl-C is ignored.
    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fedsim.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", str(file), "--out", str(tmp_path / "slow")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not (tmp_path / "asleep").exists():
            time.sleep(0.05)
        # The whole group, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        output, message = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 130, output + message
    assert message == f"interrupted; go on with fedsim run --resume {tmp_path / 'slow'}\n"
    with RunFolder.open(tmp_path / "slow").locked():
        pass


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "fedsim", "--help"], capture_output=True, text=True, check=True)
    for command in ("run", "audit", "report", "records", "check", "init", "list", "schema"):
        assert f" {command} " in found.stdout


def test_an_error_of_our_own_keeps_its_traceback(fedsim, file, monkeypatch):
    def fails(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("fedsim.scenario.load", fails)
    with pytest.raises(ZeroDivisionError):
        fedsim("check", file)


def test_a_run_fails_by_its_verdict_where_that_is_asked(fedsim, file, tmp_path):
    outcome = fedsim("run", file, "--out", tmp_path / "run", "--fail-on", "inconclusive")
    assert outcome.code == 3
    assert "verdict: inconclusive; --fail-on inconclusive ends with exit code 3." in outcome.message
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["verdict"] == "inconclusive"
    assert fedsim("audit", tmp_path / "run", "--fail-on", "leaks").code == 0
    assert fedsim("audit", tmp_path / "run", "--fail-on", "held").code == 2


@pytest.fixture
def claiming(fedsim, file, tmp_path):
    """The folder of a run in which a client states a budget that its noise does not keep."""
    small = "model.kwargs={depth: 1, embed_dim: 16, num_heads: 1}"
    defenses = "defenses=[{name: 'stubs:Overclaims', clients: [0], params: {epsilon: 0.5}}]"
    assert fedsim("run", file, "--out", tmp_path / "claims", "--set", defenses, "--set", small).code == 0
    return tmp_path / "claims"


def test_a_refuted_budget_ends_the_audit_with_3_then_and_later(fedsim, claiming):
    outcome = fedsim("audit", claiming, "--mechanisms", "--draws", "100")
    assert outcome.code == 3 and "client 0: stubs:Overclaims claims epsilon 0.5 for one round" in outcome.message
    assert "A claimed privacy budget is refuted; ends with exit code 3." in outcome.message
    assert fedsim("audit", claiming).code == 3


def test_a_check_of_a_budget_that_failed_ends_with_1(fedsim, claiming):
    assert fedsim("audit", claiming, "--mechanisms", "--draws", "100").code == 3
    (line,) = RunFolder.open(claiming).read_mechanisms()
    failed = {**line.as_json(), "status": "failed", "message": "died", "claimed": None}
    (claiming / "mechanisms.jsonl").write_text(json.dumps(failed) + "\n")
    outcome = fedsim("audit", claiming)
    assert outcome.code == 1 and "1 of 1 checks of a claim failed" in outcome.output


def test_the_budgets_of_an_observed_app_are_not_checked(fedsim, finished):
    environment = json.loads((finished / "environment.json").read_text())
    (finished / "environment.json").write_text(json.dumps({**environment, "origin": "observed"}))
    outcome = fedsim("audit", finished, "--mechanisms")
    assert outcome.code == 2 and "Leave --mechanisms out" in outcome.message


def test_draws_without_a_check_are_refused(fedsim, finished):
    outcome = fedsim("audit", finished, "--draws", "200")
    assert outcome.code == 2 and "belongs to --mechanisms" in outcome.message


def test_check_says_which_attack_will_be_inconclusive_and_what_to_add(fedsim, file):
    setting = "training={batch_size: 2, shares: delta, local_epochs: 2}"
    outcome = fedsim("check", file, "--set", setting, "--set", "attacks=[patch_embedding]")
    said = " ".join(outcome.output.split())
    assert outcome.code == 0
    assert "patch_embedding on clients 0-2, where it finds nothing: it is made for 1 image in an update" in said
    assert "Add instead:" in said and "token_matching" in said
