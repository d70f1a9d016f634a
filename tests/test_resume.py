"""A run that is interrupted, at whatever moment, comes to the same end as one that is not."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import time
import traceback
from pathlib import Path

import audits
import pytest
from processes import command

from fedsim.errors import RunFolderError
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader
from fedsim.seeds import numpy_generator
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

EXAMPLES = "fedsim_example_plugins"
NOISE = {"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 0.5}}
RUNS = {
    "FedAvg": {
        "federation": {"rounds": 3},
        "defenses": [
            NOISE,
            {"name": "stubs:Halves", "clients": [0]},
            {"name": f"{EXAMPLES}.error_feedback:ErrorFeedback"},
            {
                "name": "partial_sharing",
                "clients": [2],
                "params": {"hidden": ["pos_embed", "cls_token"], "keeps": "local"},
            },
        ],
        "attacks": [{"name": "stubs:Guess"}, {"name": f"{EXAMPLES}.round_labels:RoundLabels"}],
        "evaluators": [{"name": f"{EXAMPLES}.class_accuracy:ClassAccuracy", "rounds": [1, "last"]}],
    },
    "FedAdam": {
        "federation": {"rounds": 3, "strategy": "FedAdam", "strategy_params": {"eta": 0.01}},
        "model": {"lora": {"rank": 2}},
        "training": {"shares": "delta", "batch_size": 2, "local_steps": 2, "trainable": ["!head.bias"]},
        "defenses": [NOISE, {"name": "stubs:FailsIn", "clients": [2], "params": {"round": 3}}],
    },
}


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """Make the package of examples importable, as if it were installed."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin_package")


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def state(path):
    """Return all that a run folder holds, wall times aside."""
    folder = RunFolder.open(path)
    index = [json.loads(line) for line in (path / "captures" / "index.jsonl").read_text().splitlines()]
    kinds = ("captures/**/*.safetensors", "artifacts/**/*.png", "model.safetensors", "scenario.yaml")
    return {
        "files": {str(file.relative_to(path)): file.read_bytes() for kind in kinds for file in path.glob(kind)},
        "index": sorted((entry["key"], json.dumps(entry)) for entry in index),
        "rounds": timeless(folder.rounds.read()),
        "records": timeless(folder.records.read()),
        "evaluations": timeless(folder.evaluations.read()),
    }


def assert_same(path, expected):
    found = state(path)
    assert not list(path.rglob("*.partial"))
    assert found["rounds"] == expected["rounds"]
    assert found["records"] == expected["records"]
    assert found["evaluations"] == expected["evaluations"]
    # A key that was written twice stands in the index twice, the same both times.
    assert sorted(set(found["index"])) == expected["index"]
    assert found["files"].keys() == expected["files"].keys()
    for name, content in expected["files"].items():
        assert found["files"][name] == content, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of uninterrupted runs by name, each made once."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def whole(tiny_plan, finished, tmp_path):
    """Return a function: name of a run -> its plan and a folder of its uninterrupted run."""

    def run(name):
        plan = tiny_plan(**RUNS[name])
        if not (finished / name).exists():
            folder = RunFolder.create(finished / f"{name}-begun", plan.scenario)
            audits.simulate(plan, folder, Progress())
            folder.path.rename(finished / name)
        return plan, Path(shutil.copytree(finished / name, tmp_path / "whole"))

    return run


def resume(plan, path):
    return audits.simulate(plan, RunFolder.open(path), Progress())


# Killed at a write


def die_at_write(count, torn):
    """Make this process die by SIGKILL when it flushes a file for the `count`-th time, three bytes short if `torn`."""
    flush, left = os.fsync, [count]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] == 0:
            # Whole files are flushed through a read-only handle; they have no name yet, so torn or not is all one.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 3 * torn)
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    os.fsync = fsync


def in_a_child(work):
    """Run `work` in a forked process; returns whether it died by SIGKILL. One that hangs is ended and fails the test."""
    child = os.fork()
    if child == 0:
        signal.alarm(240)
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the run ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return True
    assert os.WEXITSTATUS(status) == 0, "the run failed"
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_dies_after_every_few_writes_comes_to_the_same_end(whole, run_folder, name):
    plan, path = whole(name)
    expected = state(path)
    dying = run_folder(plan, "dying").path
    deaths = 0

    def work():
        # Three writes always bring a run forward: a file, and its line in the index.
        die_at_write(int(numpy_generator(5, deaths).integers(3, 10)), torn=deaths % 2 == 0)
        resume(plan, dying)

    while in_a_child(work):
        deaths += 1
        assert deaths < 60, "the run makes no progress"
    assert deaths >= 5
    assert_same(dying, expected)


# A disk that is full


def fill_at_write(monkeypatch, count):
    """Let the disk be full from the `count`-th time that a file is flushed; what was written before is cut off."""
    flush, left = os.fsync, [count]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] <= 0:
            # Whole files are flushed through a read-only handle.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 3)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 21, 40])
def test_a_disk_that_is_full_at_some_write_ends_the_run_with_advice_and_costs_nothing(
    whole, run_folder, monkeypatch, count
):
    plan, path = whole("FedAvg")
    full = run_folder(plan, "full").path
    with monkeypatch.context() as patch:
        fill_at_write(patch, count)
        with pytest.raises(
            RunFolderError, match=r"No space left on device.*is kept\. Make room and go on: fedsim run --re"
        ):
            resume(plan, full)
    resume(plan, full)
    assert_same(full, state(path))


def test_a_limit_of_the_system_on_the_size_of_files_is_told_in_the_same_way(whole, run_folder):
    plan, path = whole("FedAvg")
    limited = run_folder(plan, "limited").path
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(RunFolderError, match=r"global\.safetensors: cannot be written: File too large.*Make room"):
            resume(plan, limited)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resume(plan, limited)
    assert_same(limited, state(path))


# Folders as a kill may leave them


def cut_lines(path, keep):
    """Keep those lines of a JSON Lines file whose content satisfies `keep`."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if keep(json.loads(line))))


def without_round_2(path):
    """Take out what comes after the captures of round 2 begin."""
    cut_lines(path / "captures" / "index.jsonl", lambda line: not line["key"].startswith(("round-0002", "round-0003")))
    cut_lines(path / "rounds.jsonl", lambda line: line["round"] < 2)
    cut_lines(path / "records.jsonl", lambda line: line["round"] < 2)
    for part in ("captures", "artifacts"):
        for round in ("round-0002", "round-0003"):
            shutil.rmtree(path / part / round)
    (path / "model.safetensors").unlink()


def between_capture_and_index(path):
    kept = (path / "captures" / "round-0002" / "client-001.safetensors").read_bytes()
    without_round_2(path)
    (path / "captures" / "round-0002").mkdir()
    (path / "captures" / "round-0002" / "client-001.safetensors").write_bytes(kept)


def a_round_half_captured(path):
    cut_lines(
        path / "captures" / "index.jsonl",
        lambda line: line["key"] not in ("round-0002/client-000", "round-0003/global"),
    )
    cut_lines(path / "captures" / "index.jsonl", lambda line: not line["key"].startswith("round-0003"))
    cut_lines(path / "rounds.jsonl", lambda line: line["round"] < 2)
    cut_lines(path / "records.jsonl", lambda line: line["round"] < 2)
    (path / "model.safetensors").unlink()


def between_captures_and_round(path):
    cut_lines(path / "rounds.jsonl", lambda line: line["round"] < 3)
    cut_lines(path / "records.jsonl", lambda line: line["round"] < 3)
    (path / "model.safetensors").unlink()


def between_round_and_records(path):
    cut_lines(path / "records.jsonl", lambda line: line["round"] < 2)
    for round in ("round-0002", "round-0003"):
        shutil.rmtree(path / "artifacts" / round)


def before_the_model(path):
    (path / "model.safetensors").unlink()


def while_records_are_put_in_order(path):
    file = path / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    (path / ".records.jsonl.1.2.partial").write_text("".join(lines)[:-9])
    file.write_text("".join(lines[::-1]))


def half_a_line_everywhere(path):
    for name in ("captures/index.jsonl", "rounds.jsonl", "records.jsonl"):
        file = path / name
        file.write_bytes(file.read_bytes()[:-5])


def a_finding_without_a_record(path):
    cut_lines(path / "records.jsonl", lambda line: (line["round"], line["client"]) != (2, 1))


def before_anything(path):
    for name in ("captures", "artifacts"):
        shutil.rmtree(path / name)
    for name in ("rounds.jsonl", "records.jsonl", "model.safetensors", "environment.json"):
        (path / name).unlink()


CRASHES = [
    between_capture_and_index,
    a_round_half_captured,
    between_captures_and_round,
    between_round_and_records,
    before_the_model,
    while_records_are_put_in_order,
    half_a_line_everywhere,
    a_finding_without_a_record,
    before_anything,
]


@pytest.mark.parametrize("name", RUNS)
def test_every_state_that_a_kill_may_leave_is_resumed(whole, name):
    plan, path = whole(name)
    expected = state(path)
    for crash in CRASHES:
        broken = path.with_name(crash.__name__)
        shutil.copytree(path, broken)
        crash(broken)
        assert state_or_none(broken) != expected, crash
        resume(plan, broken)
        assert_same(broken, expected)


def state_or_none(path):
    try:
        return state(path)
    except (OSError, ValueError):
        return None


def test_a_finished_run_is_left_as_it_is(whole):
    plan, path = whole("FedAvg")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    resume(plan, path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_damaged_capture_is_never_replayed_and_computed_again_once_it_is_taken_out(whole):
    plan, path = whole("FedAvg")
    expected = state(path)
    file = path / "captures" / "round-0002" / "client-001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (path / "model.safetensors").unlink()
    with pytest.raises(
        RunFolderError, match=r"client-001\.safetensors: corrupted.*delete it and its line in the index"
    ):
        resume(plan, path)
    # What the message advises, also when the run had come to its end before.
    file.unlink()
    cut_lines(path / "captures" / "index.jsonl", lambda line: line["key"] != "round-0002/client-001")
    (path / "model.safetensors").write_bytes(expected["files"]["model.safetensors"])
    resume(plan, path)
    assert_same(path, expected)


def test_epsilon_composes_across_a_restart(whole):
    plan, path = whole("FedAvg")
    epsilons = [line["epsilon"]["1"]["epsilon"] for line in RunFolder.open(path).rounds.read()[1:]]
    assert epsilons == sorted(set(epsilons))
    without_round_2(path)
    resume(plan, path)
    assert [line["epsilon"]["1"]["epsilon"] for line in RunFolder.open(path).rounds.read()[1:]] == epsilons


def test_epsilon_counts_a_reply_that_was_lost_and_made_again(whole):
    plan, path = whole("FedAvg")
    expected = state(path)
    cut_lines(path / "captures" / "index.jsonl", lambda line: not line["key"].startswith(("round-0003", "model")))
    cut_lines(path / "rounds.jsonl", lambda line: line["round"] < 3)
    cut_lines(path / "records.jsonl", lambda line: line["round"] < 3)
    for part in ("captures", "artifacts"):
        shutil.rmtree(path / part / "round-0003")
    (path / "captures" / "round-0001" / "client-001.safetensors").unlink()
    resume(plan, path)
    assert_same(path, expected)


# Killed from outside


def progress(path):
    """Return how much a run folder holds: files and lines."""
    files = [file for file in path.rglob("*") if not file.name.endswith(".partial") and file.is_file()]
    lines = [file.read_bytes().count(b"\n") for file in path.rglob("*.jsonl")]
    return len(files) + sum(lines)


def ended(*arguments, log):
    """Run the command to its end; returns its exit code."""
    process = command(*arguments, log=log)
    process.join(900)
    code = process.exitcode
    process.kill()
    return code


def kill_at(count, path, *arguments):
    """Run the command and kill it when the folder holds `count` files and lines; returns whether it got there."""
    process = command(*arguments)
    while process.is_alive():
        if progress(path) >= count:
            # The process alone: its audit workers find out by themselves that it is gone.
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.02)  # a look goes through the folder, which the run is to have the processor for
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes", "count"), [("FedAvg", 1, 3), ("FedAdam", 0, 5)])
def test_a_run_killed_several_times_from_outside_comes_to_the_same_end(tiny_scenario, tmp_path, name, processes, count):
    parts = {**RUNS[name], "audit": {"processes": processes}}
    parts["federation"] = {**parts["federation"], "clients": 4, "fraction": 0.75}
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml_loader.dump(tiny_scenario(**parts).resolved()))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    code = ended("run", file, "--out", whole, log=log)
    assert code == (1 if any(line["failed"] for line in RunFolder.open(whole).rounds.read()) else 0), log.read_text()
    moments = sorted(numpy_generator(7, name).choice(range(3, progress(whole) - 10), count, replace=False).tolist())
    kills = sum(
        kill_at(moment, killed, *(("run", "--resume", killed) if number else ("run", file, "--out", killed)))
        for number, moment in enumerate(moments)
    )
    assert kills == count, moments
    assert ended("run", "--resume", killed, log=log) == code, log.read_text()
    assert_same(killed, state(whole))
    assert (killed / "report.html").is_file()
