"""Phases that are killed at any moment come to the same end as those that are not, and as their runs one by one."""

import shutil
from pathlib import Path

import audits
import pytest
import yaml

from fedsim.errors import RunFolderError
from fedsim.phases import running, stating
from fedsim.phases.folder import PhasesFolder
from fedsim.planning import preparation as planning
from fedsim.recording.folder_lock import FolderLock
from fedsim.recording.run_folder import RunFolder
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("stubs")

SCENARIO = {
    "name": "two",
    "seed": 3,
    "engine": "inline",
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": ["stubs:Guess"],
    "audit": {"processes": 0, "calibrate": "none"},
    "phases": [
        {"name": "first", "set": {"training.learning_rate": 0.1}},
        {"name": "second", "set": {"federation.rounds": 2, "defenses": [{"name": "stubs:Halves", "clients": [0]}]}},
    ],
}


class Killed(BaseException):
    """What stands for the end of the process."""


@pytest.fixture(autouse=True)
def without_index(monkeypatch):
    """Write no index, whose page has tests of its own."""
    monkeypatch.setattr("fedsim.phases.rendering.render", lambda folder: folder.path / "index.html")


@pytest.fixture
def prepared(tmp_path):
    """Return a function: name, phases -> a new folder of phases."""

    def make(name="whole", **parts):
        file = tmp_path / "two.yaml"
        file.write_text(yaml.safe_dump({**SCENARIO, **parts}))
        phases, _ = stating.read(file)
        stating.check(phases)
        return PhasesFolder.create(tmp_path / name, "two", str(file), phases)

    return make


class Here:
    """Completes phases in this process, and may die at a moment of one."""

    def __init__(self, dies=None, phase="first"):
        self.dies, self.phase, self.began = dies, phase, []

    def __call__(self, entry, folder):
        self.began.append(entry.name)
        here = self.dies if entry.name == self.phase else None
        if here == "before":
            raise Killed
        plan = planning.of(folder.scenario())

        def on_round(line):
            if here == "within" and line["round"] == 1:
                raise Killed

        audits.simulate(plan, folder, Progress(on_round=on_round))
        if here == "after":
            raise Killed


def state(folder):
    """Return all that two runs have in common where they are the same, wall times aside."""
    lines = [*folder.rounds.read(), *folder.records.read()]
    return {
        "lines": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        **{
            str(one.relative_to(folder.path)): one.read_bytes()
            for kind in ("captures/**/*.safetensors", "model.safetensors")
            for one in sorted(folder.path.glob(kind))
        },
    }


def states(folder):
    return [state(RunFolder.open(folder.run(entry))) for entry in folder.read().phases]


def status(folder):
    return [entry.status for entry in folder.read().phases]


def test_phases_are_the_bytes_of_their_runs_one_by_one(prepared, tmp_path):
    whole = prepared()
    running.run(whole, Here())
    assert status(whole) == ["finished", "finished"]
    for entry in whole.read().phases:
        scenario = RunFolder.open(whole.run(entry)).scenario()
        alone = RunFolder.create(tmp_path / entry.name, scenario)
        audits.simulate(planning.make(scenario), alone, Progress())
        assert state(alone) == state(RunFolder.open(whole.run(entry)))
    first, second = (RunFolder.open(whole.run(entry)) for entry in whole.read().phases)
    began = second.read_global(1, 0)
    assert all((began[name] == tensor).all() for name, tensor in first.read_model().items())


def test_phases_that_die_at_any_moment_come_to_the_same_end(prepared, monkeypatch):
    whole, broken = prepared(), prepared("broken")
    running.run(whole, Here())
    for phase in ("first", "second"):
        for dies in ("before", "within", "after"):
            with pytest.raises(Killed):
                running.run(broken, Here(dies, phase))
            assert status(broken) == [["unfinished"] * 2, ["finished", "unfinished"]][phase == "second"]
            assert broken.has_begun(broken.read().phases[1]) == (phase == "second"), "the rest is left undone"
    last = Here()
    running.run(broken, last)
    assert last.began == ["second"], "a finished phase is not run again"
    again = Here()
    running.run(broken, again)
    assert again.began == []
    # The folders, and so the names of the runs, differ.
    for one, other in zip(states(broken), states(whole), strict=True):
        assert one.keys() == other.keys()
        for line, expected in zip(one["lines"], other["lines"], strict=True):
            assert {**line, "run": None} == {**expected, "run": None}
        assert one["model.safetensors"] == other["model.safetensors"]
    assert states(broken)[0] == states(whole)[0]


def test_phases_go_on_where_their_folder_has_been_moved(prepared, tmp_path):
    folder = prepared()
    with pytest.raises(Killed):
        running.run(folder, Here("within", "second"))
    expected = RunFolder.open(folder.run(folder.read().phases[0])).model_digest()
    moved = PhasesFolder(Path(shutil.move(folder.path, tmp_path / "moved")))
    running.run(moved, Here())
    assert status(moved) == ["finished", "finished"]
    first, second = moved.read().phases
    assert RunFolder.open(moved.run(second)).scenario().model.pretrained == str(moved.run(first))
    assert RunFolder.open(moved.run(first)).model_digest() == expected


def test_a_kill_as_the_folder_is_made_leaves_nothing_in_the_way(prepared, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / ".phases.json.1.2.partial").write_text("{")
    assert status(prepared()) == ["unfinished", "unfinished"]
    with pytest.raises(RunFolderError, match="already exists and is not empty"):
        prepared()


def test_two_processes_do_not_work_on_the_same_phases(prepared):
    folder = prepared()
    with FolderLock(folder.path).held(), pytest.raises(RunFolderError, match="another fedsim process"):
        running.run(folder, Here())


def test_a_manifest_that_is_damaged_or_leads_out_of_the_folder_is_refused(prepared):
    folder = prepared()
    text = (folder.path / "phases.json").read_text()
    for damaged in ("{}", "[", text.replace('"1-first"', '"../first"'), text.replace('"1-first"', '".."')):
        (folder.path / "phases.json").write_text(damaged)
        with pytest.raises(RunFolderError, match=r"phases\.json"):
            folder.read()
    (folder.path / "phases.json").unlink()
    with pytest.raises(RunFolderError, match=r"no folder of phases, it has no phases\.json"):
        folder.read()


def test_a_finished_phase_whose_run_folder_is_gone_is_run_again(prepared):
    folder = prepared()
    running.run(folder, Here())
    entry = folder.read().phases[1]
    kept = (folder.run(entry) / "model.safetensors").read_bytes()
    shutil.rmtree(folder.run(entry))
    again = Here()
    running.run(folder, again)
    assert again.began == ["second"] and (folder.run(entry) / "model.safetensors").read_bytes() == kept
