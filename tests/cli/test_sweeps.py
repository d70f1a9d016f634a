"""The commands about many runs, in this process: what they print and return."""

import json

import pytest
import yaml
from runs import write_run

from fedsim.recording.records import SCHEMA
from fedsim.sweeping import launchers
from fedsim.sweeping.manifest import Outcome, SweepFolder

TINY = {
    "name": "tiny",
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 2},
    "attacks": ["stubs:Guess"],
    "audit": {"calibrate": "none"},
}


class Written:
    """Cells that end at once: with a run that is written by hand, or failed where the seed is 1."""

    def start(self, sweep, folder):
        (entry,) = (entry for entry in sweep.read().cells if entry.folder == folder)
        status, reason = ("failed", "out of luck") if entry.seed == 1 else ("finished", None)
        path = sweep.run(folder)
        if entry.seed != 1:
            (path / "scenario.yaml").rename(path.with_suffix(".kept"))
            path.rmdir()
            write_run(path)
            path.with_suffix(".kept").rename(path / "scenario.yaml")
        sweep.write_outcome(folder, Outcome(schema=SCHEMA, status=status, reason=reason, seconds=1.0))
        return self

    def ended(self):
        return "ended"

    def end(self):
        pass

    def close(self):
        pass


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setitem(launchers.LAUNCHERS, "local", lambda jobs: Written())
    monkeypatch.setattr("fedsim.comparing.plots.svg", lambda draw, width, height: b'<svg viewBox="0 0 1 1"/>')
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_the_same_command_finds_its_folder_again_and_a_failed_cell_ends_with_1(fedsim, file, tmp_path):
    outcomes = [fedsim("sweep", "tiny.yaml", "--over", "training.batch_size=1,2", "--seeds", "2") for _ in range(2)]
    assert [outcome.code for outcome in outcomes] == [1, 1]
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert folder.name.startswith("tiny-")
    for outcome in outcomes:
        assert f"Sweep folder: sweeps/{folder.name}\n" in outcome.output
        assert "failed: batch_size=1, seed 1: out of luck\n" in outcome.output
        assert "2 of 4 cells failed; sweep.json says why." in outcome.message
        assert f"Comparison: sweeps/{folder.name}/compare.html\n" in outcome.output
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert [(cell["setting"], cell["seed"], cell["status"], cell["reason"]) for cell in cells] == [
        (f"batch_size={size}", seed, *(("failed", "out of luck") if seed else ("finished", None)))
        for size in (1, 2)
        for seed in (0, 1)
    ]
    assert "batch_size=1, seed 1: the cell failed: out of luck." in (folder / "compare.html").read_text()
    resumed = fedsim("sweep", "--resume", folder)
    assert (resumed.code, "2 of 4 cells failed" in resumed.message) == (1, True)


def test_an_interruption_says_how_to_go_on(fedsim, file, monkeypatch):
    def interrupt(self, sweep, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(Written, "start", interrupt)
    outcome = fedsim("sweep", "tiny.yaml", "--out", "here")
    assert outcome.code == 130
    assert outcome.message == "interrupted; go on with fedsim sweep --resume here\n"
    assert [entry.status for entry in SweepFolder(file.parent / "here").read().cells] == ["unfinished"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "sweep: give a scenario or a sweep file, or --resume with the folder of a sweep, and not both."),
        (["--resume", ".", "--seeds", "3"], "sweep --resume: goes on as the sweep began; leave --over, --seeds,"),
        (["--resume", "."], "not the folder of a sweep, it has no sweep.json."),
        (["tiny.yaml", "--over", "seed=1,2"], "--over seed: a sweep repeats each setting with seeds of its own."),
        (["tiny.yaml", "--over", "attacks=[dgl]"], "attacks.0.name: no attack 'dgl'. Did you mean 'dlg'?"),
        (["tny.yaml"], "tny.yaml: no such file. Did you mean 'tiny.yaml'?"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused_and_nothing_is_made(arguments, says, fedsim, file, tmp_path):
    outcome = fedsim("sweep", *arguments)
    assert outcome.code == 2 and says in outcome.message, outcome.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_runs_are_compared_into_a_folder_of_their_own(fedsim, file, tmp_path):
    folders = [
        write_run(tmp_path / name, name=name, defenses=own) for name, own in (("none", []), ("clips", ["clips"]))
    ]
    outcome = fedsim("compare", *folders)
    assert outcome.code == 0
    assert "No setting is known to keep every attacker within 1 dB of its control." in outcome.output
    assert outcome.output.endswith("Comparison: comparison/compare.html\n")
    assert fedsim("compare", *folders, "--baseline", "clips", "--out", "there", "--margin", "3").code == 0
    content = json.loads((tmp_path / "there" / "compare.json").read_text())
    assert content["margin_db"] == 3.0 and content["families"][0]["settings"][0]["baseline"] == "clips"


def test_a_folder_that_cannot_be_compared_is_refused(fedsim, file, tmp_path):
    outcome = fedsim("compare", tmp_path / "none")
    assert (outcome.code, "no such folder" in outcome.message) == (2, True)
