"""Runs from Python, and the notebook that shows them."""

import json
from pathlib import Path

import audits
import pytest

import fedsim
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading

ROOT = Path(__file__).parents[1]
CONTENT = {
    "name": "from-python",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 8},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 2},
    "defenses": [{"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 4.0}}],
    "attacks": ["patch_embedding", {"name": "stubs:SeesRound"}],
    "audit": {"processes": 0, "calibrate": "none"},
    "threat": {"grants": ["normalization", "labels"]},
}


@pytest.fixture
def run(tmp_path, stubs):
    with audits.briefly():
        return fedsim.run(CONTENT, tmp_path / "run")


def test_a_run_is_what_its_folder_holds(run, tmp_path):
    assert run.folder == tmp_path / "run" and run.scenario["name"] == "from-python"
    read = reading.read(run.folder)
    assert run.verdict == run.summary["verdict"] == "leaks" and run.headline == run.summary["headline"]
    records, stored = run.records, RunFolder.open(run.folder).records.read()
    assert len(records) == sum(max(1, len(line["scores"])) for line in stored)
    for line in stored:
        client = line["client"] if line["client"] is not None else f"2 clients in round {line['round']}"
        own = records[
            (records["round"] == line["round"])
            & (records["client"] == client)
            & (records["attack"] == line["attack"]["name"])
        ]
        assert dict(zip(own["metric"], own["value"], strict=True)) == {
            metric: score["value"] for metric, score in line["scores"].items()
        }
    assert list(run.rounds["round"]) == [0, 1, 2]
    assert list(run.rounds["accuracy"]) == [line.accuracy for line in read.rounds]
    assert list(run.budgets["client"]) == [1, 1] and run.budgets["epsilon"].is_monotonic_increasing
    assert run.evaluations.empty


def test_a_run_is_read_again_from_its_folder(run):
    again = fedsim.load(str(run.folder))
    assert again.records.equals(run.records) and again.summary == run.summary


def test_wrong_scenarios_and_folders_are_refused(run, tmp_path):
    with pytest.raises(RunFolderError, match="run"):
        fedsim.run(CONTENT, run.folder)
    with pytest.raises(RunFolderError, match="nowhere"):
        fedsim.load(tmp_path / "nowhere")
    with pytest.raises(ScenarioError, match=r"smok: no such file.*'smoke'"):
        fedsim.run("smok")
    with pytest.raises(ScenarioError, match="rounds"):
        fedsim.run("smoke", settings=["federation.rounds=0"])
    with pytest.raises(ValueError, match="change the mapping itself"):
        fedsim.run(CONTENT, settings=["federation.rounds=1"])


def test_the_notebook_runs_and_is_stored_without_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "analysis.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3 and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names: dict[str, object] = {}
    with audits.briefly():
        for cell in code:
            exec("".join(cell["source"]), names)
    leakage = names["leakage"]
    assert leakage.loc["none", "psnr"] > 40 > leakage.drop("none")["psnr"].max()
