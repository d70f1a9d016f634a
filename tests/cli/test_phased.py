"""Commands on phases: run, resume, audit, report, check, and the commands that want one run."""

import json

import pytest
import yaml

import fedsim as package
from fedsim.errors import RunFolderError, ScenarioError

PHASES = [
    {"name": "first", "set": {"attacks": [{"name": "stubs:RaisesOn", "params": {"raises": 1}}]}},
    {"name": "second", "set": {"training.learning_rate": 0.1}},
]
TINY = {
    "name": "two",
    "seed": 3,
    "engine": "inline",
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": ["stubs:Guess"],
    "audit": {"processes": 0, "calibrate": "none"},
    "phases": PHASES,
}


@pytest.fixture
def file(tmp_path, without_report):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_a_run_in_phases_from_the_command_to_the_reports(file, fedsim, tmp_path, drawn_once):
    folder = tmp_path / "run"
    outcome = fedsim("run", file, "--out", folder, "--set", "training.batch_size=2")
    assert outcome.code == 1, "an attempt of the first phase failed, and the second was run nevertheless"
    assert "Phase 1 of 2: first" in outcome.output and "Phase 2 of 2: second" in outcome.output
    assert "phase first: exit code 1" in outcome.message and "phase second" not in outcome.message
    assert f"starts from the global model of the run {folder / '1-first'} after its last round, 1" in outcome.output
    for name in ("1-first", "2-second"):
        assert yaml.safe_load((folder / name / "scenario.yaml").read_text())["training"]["batch_size"] == 2
    assert "2-second/report.html" not in (folder / "index.html").read_text(), "this test renders no report"

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert fedsim("run", "--resume", folder).code == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before

    outcome = fedsim("audit", folder, "--attack", "blind_guess")
    assert outcome.code == 1 and "Phase 2: second" in outcome.output
    for name in ("1-first", "2-second"):
        assert "blind_guess" in (folder / name / "records.jsonl").read_text()

    outcome = fedsim("report", folder)
    assert outcome.code == 0 and outcome.output.count("Report: ") == 2 and "index.html" in outcome.output
    assert fedsim("run", "--resume", folder, "--fail-on", "inconclusive").code == 3

    for command in ("records", "compare"):
        outcome = fedsim(command, folder)
        assert outcome.code == 2
        assert (
            f"holds phases, each a run of its own. Name one: {folder / '1-first'}, {folder / '2-second'}."
            in " ".join(outcome.message.split())
        )
    assert fedsim("records", folder / "2-second").code == 0
    with pytest.raises(RunFolderError, match="holds phases, each a run of its own"):
        package.load(folder)
    outcome = fedsim("audit", folder, "--scenario", "smoke")
    assert outcome.code == 2 and "holds phases with scenarios of their own" in outcome.message


def test_check_tells_of_every_phase_and_makes_nothing(file, fedsim, tmp_path):
    outcome = fedsim("check", file)
    assert outcome.code == 0
    assert "Phase second (starts from the global model of the phase before)" in outcome.output
    assert "fine, 2 phases" in outcome.output
    told = json.loads(fedsim("check", file, "--json").output)["phases"]
    assert [(one["phase"], one["continues"]) for one in told] == [("first", False), ("second", True)]
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_a_fault_of_the_second_phase_is_found_before_the_first_trains(file, fedsim, tmp_path):
    phases = [PHASES[0], {"name": "second", "set": {"defenses": [{"name": "mjpp"}]}}]
    file.write_text(yaml.safe_dump({**TINY, "phases": phases}))
    for command in (["check", file], ["run", file, "--out", tmp_path / "run"]):
        outcome = fedsim(*command)
        assert outcome.code == 2 and "no defense 'mjpp'" in outcome.message
        assert "(in the phase second)" in " ".join(outcome.message.split())
    assert not (tmp_path / "run").exists()


def test_an_interruption_says_how_to_go_on_and_leaves_the_rest_undone(file, fedsim, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.simulation.simulate", interrupted)
    outcome = fedsim("run", file, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert f"go on with fedsim run --resume {tmp_path / 'run'}\n" in outcome.message
    assert not (tmp_path / "run" / "2-second").exists()


def test_a_sweep_and_python_want_one_run(file, fedsim):
    outcome = fedsim("sweep", file)
    assert outcome.code == 2 and "runs in phases, each a run of its own" in " ".join(outcome.message.split())
    with pytest.raises(ScenarioError, match="runs in phases"):
        package.run(file)
    with pytest.raises(ScenarioError, match="runs in phases"):
        package.run(TINY)
