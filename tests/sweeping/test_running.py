"""A sweep that is killed or interrupted, at whatever moment, comes to the same table as one that is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import command, is_running, wait_until

from fedsim import comparing, process_tree
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.recording.folder_lock import FolderLock
from fedsim.recording.records import SCHEMA
from fedsim.sweeping import grid, running
from fedsim.sweeping.cell import complete
from fedsim.sweeping.launchers import LocalTask
from fedsim.sweeping.manifest import Outcome, SweepFolder

pytestmark = pytest.mark.usefixtures("without_report", "stubs")

TINY = {
    "name": "tiny",
    "seed": 3,
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": ["stubs:Guess"],
    "audit": {"calibrate": "none"},
}
OVER = "defenses=[],[{name: 'stubs:Halves'}]"


class Killed(BaseException):
    """What stands for the end of the process."""


class Here:
    """Runs cells in this process, and may die at the moments of one cell.

    Args:
        dies: `before`, `within`, `after` or None.
        work: what a cell does; its run where it is not given.
    """

    def __init__(self, dies=None, work=complete):
        self.dies, self.work, self.started, self.ends = dies, work, [], []

    def start(self, sweep, folder):
        self.started.append(folder)
        if self.dies == "before":
            raise Killed
        if self.dies == "within":
            (sweep.run(folder) / "rounds.jsonl").write_text('{"schema": 1, "rou')
            raise Killed
        self.work(sweep, folder)
        if self.dies == "after":
            raise Killed
        return Done(self, folder)

    def close(self):
        self.ends.append("closed")


class Done:
    def __init__(self, launcher, folder):
        self.launcher, self.folder = launcher, folder

    def ended(self):
        return "its process ended with exit code 1"

    def end(self):
        self.launcher.ends.append(self.folder)


def finishes(sweep, folder):
    sweep.write_outcome(folder, Outcome(schema=SCHEMA, status="finished", seconds=1.0))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def sweep(file, tmp_path):
    """Return a function: values -> the folder of a prepared sweep."""

    def make(*over, seeds=1, keep="captures", name="sweep"):
        axes = [grid.axis(text) for text in over]
        cells, _ = grid.cells(str(file), (), (), axes, seeds)
        folder = SweepFolder(tmp_path / name)
        running.check(folder, cells)
        running.prepare(folder, cells, str(file), axes, seeds, keep)
        return folder

    return make


def table(folder):
    """Return what a comparison of the sweep tells, wall times aside."""
    comparing.compare([folder.path], folder.path, 1.0)
    content = json.loads((folder.path / "compare.json").read_text())
    for setting in content["families"][0]["settings"]:
        del setting["round_seconds"], setting["round_time_ratio"]
    return content


def test_a_sweep_that_dies_at_any_moment_comes_to_the_same_table(sweep, monkeypatch):
    # The plots have tests of their own.
    monkeypatch.setattr("fedsim.comparing.plots.svg", lambda draw, width, height: b'<svg viewBox="0 0 1 1"/>')
    whole = sweep(OVER, keep="results", name="whole")
    manifest = running.run(whole, Here(), 2)
    assert [entry.status for entry in manifest.cells] == ["finished", "finished"]
    expected = table(whole)
    assert expected["families"][0]["settings"][1]["paired_seeds"] == [3]

    broken = sweep(OVER, keep="results", name="broken")
    for dies in ("before", "within", "after"):
        with pytest.raises(Killed):
            running.run(broken, Here(dies), 1)
    # Killed between the manifest and what removes the captures.
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", dying)
        with pytest.raises(Killed):
            running.run(broken, Here(), 1)
    (broken.path / "sweep.json").unlink()  # the same command makes it again
    sweep(OVER, keep="results", name="broken")
    last = Here()
    running.run(broken, last, 1)
    assert len(last.started) == 1, "what had finished is not run again"
    assert table(broken) == expected
    assert not [*broken.cells.glob("*/captures")]
    assert len([*broken.cells.glob("*/records.jsonl")]) == 2


def dying(*_):
    raise Killed


def test_finished_cells_are_skipped_and_failed_ones_are_rows_that_are_tried_again(sweep):
    folder = sweep("training.batch_size=1,2,3")
    cells = [entry.folder for entry in folder.read().cells]

    def work(sweep, name):
        if name == cells[0]:
            finishes(sweep, name)
        if name == cells[1]:
            raised(sweep, name)
        # The third one leaves no outcome, as one that is killed.

    said = []
    manifest = running.run(folder, Here(work=work), 2, said.append)
    assert [entry.status for entry in manifest.cells] == ["finished", "failed", "failed"]
    assert [entry.folder for entry in said] == cells
    assert manifest.cells[1].reason == "out of luck"
    assert (
        manifest.cells[2].reason
        == f"its process ended with exit code 1, and left no outcome; {folder.log(cells[2])} may say why"
    )
    assert folder.read() == manifest
    again = Here(work=finishes)
    assert {entry.status for entry in running.run(folder, again, 1).cells} == {"finished"}
    assert again.started == cells[1:]


def raised(sweep, name):
    sweep.write_outcome(name, Outcome(schema=SCHEMA, status="failed", reason="out of luck"))


def test_what_goes_wrong_in_a_cell_is_its_outcome(sweep, tmp_path):
    folder = sweep()
    (entry,) = folder.read().cells
    (folder.run(entry.folder) / "rounds.jsonl").write_text("3\n")
    outcome = complete(folder, entry.folder)
    assert outcome.status == "failed" and "line 1 is not a JSON object" in outcome.reason
    assert folder.outcome(entry.folder) == outcome
    shutil.rmtree(folder.run(entry.folder))
    assert "not a run folder" in complete(folder, entry.folder).reason


def test_failures_inside_of_a_run_are_told_and_the_cell_has_finished(file, sweep):
    file.write_text(yaml.safe_dump(TINY | {"attacks": [{"name": "stubs:RaisesOn", "params": {"raises": 1}}]}))
    folder = sweep()
    (entry,) = running.run(folder, Here(), 1).cells
    assert (entry.status, entry.troubles) == ("finished", ("1 of 2 attempts failed",))


def test_all_cells_are_checked_before_anything_is_made(file, sweep, tmp_path):
    with pytest.raises(ScenarioError) as caught:
        sweep("defenses=[],[{name: mjp, params: {gama: 1}}]")
    assert "defenses.0.params.gama: unknown parameter" in str(caught.value)
    assert "(in the setting defenses=mjp, seed 3)" in str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_values_and_seeds_may_join_a_sweep_and_none_may_leave_it(sweep):
    folder = sweep("training.batch_size=1,2")
    before = {entry.digest for entry in folder.read().cells}
    sweep("training.batch_size=1,2,3", seeds=2)
    assert before < {entry.digest for entry in folder.read().cells}
    with pytest.raises(
        RunFolderError, match=r"holds a sweep with cells that this one lacks: batch_size=1-s4-.* and 1 more"
    ):
        sweep("training.batch_size=1,2")


def test_a_setting_that_is_renamed_keeps_its_run(sweep, tmp_path):
    (tmp_path / "one.yaml").write_text("old: {training.batch_size: 2}")
    folder = sweep(f"@{tmp_path / 'one.yaml'}")
    running.run(folder, Here(work=finishes), 1)
    (tmp_path / "one.yaml").write_text("new: {training.batch_size: 2}")
    sweep(f"@{tmp_path / 'one.yaml'}")
    (entry,) = folder.read().cells
    assert (entry.setting, entry.status) == ("new", "finished") and entry.folder.startswith("old-")


def test_a_folder_of_something_else_is_refused_and_left_alone(sweep, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="already exists and holds no sweep"):
        sweep()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["mine.txt"]


def test_two_processes_do_not_run_one_sweep(sweep):
    folder = sweep()
    with FolderLock(folder.path).held(), pytest.raises(RunFolderError, match="another fedsim process"):
        running.run(folder, Here(), 1)


def test_a_manifest_that_is_damaged_or_leads_out_of_the_folder_is_refused(sweep):
    folder = sweep()
    text = (folder.path / "sweep.json").read_text()
    for damaged in ("{}", "[", text.replace('"folder": "', '"folder": "../')):
        (folder.path / "sweep.json").write_text(damaged)
        with pytest.raises(FedsimError, match=r"sweep\.json"):
            folder.read()


def test_an_interruption_ends_the_cells_under_way(sweep, monkeypatch):
    folder = sweep("training.batch_size=1,2,3")
    launcher = Here(work=lambda sweep, name: None)
    monkeypatch.setattr(Done, "ended", lambda task: interrupt() if len(launcher.started) == 2 else None)
    with pytest.raises(KeyboardInterrupt):
        running.run(folder, launcher, 2)
    assert sorted(launcher.ends) == sorted([*launcher.started, "closed"])
    assert all(entry.status == "unfinished" for entry in folder.read().cells)


def interrupt():
    raise KeyboardInterrupt


FAMILY = """
import os, subprocess, sys, time
from fedsim.sweeping.cell import end_with_input

end_with_input()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(99)
"""


@pytest.mark.skipif(not process_tree.tells_memory(), reason="this system does not list processes")
def test_a_cell_ends_with_all_that_it_has_started_when_its_sweep_does():
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(30) == 128 + signal.SIGTERM
        wait_until(lambda: not is_running(child))


def test_a_task_that_is_ended_is_gone_at_once(sweep):
    folder = sweep()
    task = LocalTask(folder, folder.read().cells[0].folder)
    assert task.ended() is None
    task.end()
    assert task.ended() == "its process was killed by signal 9"


def test_a_sweep_that_is_killed_leaves_no_process_behind(file, tmp_path):
    process = command("sweep", file, "--out", tmp_path / "sweep", "--jobs", "1", log=tmp_path / "log")
    try:
        wait_until(lambda: any(cells_under_way(tmp_path / "sweep")))
        (cell,) = cells_under_way(tmp_path / "sweep")
    finally:
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    wait_until(lambda: not is_running(cell))
    assert [entry.status for entry in SweepFolder(tmp_path / "sweep").read().cells] == ["unfinished"]


def cells_under_way(folder):
    """Return the processes that work on cells of a sweep."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fedsim.sweeping.cell" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found
