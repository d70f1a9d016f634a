"""A run folder whose files do not belong together, or of which a part is gone, is never trusted."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import audits
import pytest
import torch

from fedsim.errors import RunFolderError
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.recording.captures import Capture
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading
from fedsim.scenario import parse
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

STUBS = Path(__file__).parents[1] / "stubs"
SCENARIO = {
    "name": "whole",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 16, "test_samples": 4, "auxiliary_samples": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 2},
    "training": {"shares": "delta"},
    "attacks": [{"name": "stubs:Guess"}],
    "audit": {"processes": 0, "calibrate": "all"},
}


class Made(NamedTuple):
    path: Path
    plan: planning.Plan
    seen: inputs.Inputs


def made(path, **parts):
    scenario = parse(SCENARIO | parts, "whole")
    plan = planning.of(scenario)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.report.render", lambda path: path / "report.html")
        audits.simulate(plan, RunFolder.create(path, scenario), Progress())
    return Made(path, plan, inputs.of(plan))


@pytest.fixture(scope="module")
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUBS)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, importable):
    """A finished run; tests copy it."""
    return made(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory, importable):
    """A finished run that differs in its seed alone."""
    return made(tmp_path_factory.mktemp("other") / "run", seed=9)


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole.path, tmp_path / "run"))


@pytest.fixture
def audit(whole):
    return lambda run: audits.audit(whole.plan, RunFolder.open(run), Progress(), whole.seen)


@pytest.fixture
def resume(whole):
    return lambda run: audits.simulate(whole.plan, RunFolder.open(run), Progress(), whole.seen)


def content(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_line(path, number, **change):
    lines = lines_of(path)
    lines[number] |= change
    write_lines(path, lines)


def seal(run, key):
    """Write a file's checksum into the index, as somebody would who wants a changed file to be taken for whole."""
    index = run / "captures" / "index.jsonl"
    digest = hashlib.sha256((run / "captures" / f"{key}.safetensors").read_bytes()).hexdigest()
    write_lines(index, [line | {"sha256": digest} if line["key"] == key else line for line in lines_of(index)])


# Lines that do not belong

STRANGERS = {
    "of another run": (
        "records.jsonl",
        1,
        {"run": "whole-00000000"},
        "line 2 is of the run whole-00000000, this one is",
    ),
    "of no run": ("records.jsonl", 1, {"run": None}, "line 2 is of the run None, this one is whole-"),
    "of client 99": ("records.jsonl", 2, {"client": 99}, "line 3 is of client 99, but the scenario has 2, from 0"),
    "of round 99": ("records.jsonl", 2, {"round": 99}, "line 3 is of round 99, but the scenario has 2"),
    "told twice": ("records.jsonl", 3, {"client": 0}, "line 4 is of the same attempt as line 3"),
    "calibration of another run": (
        "calibrations.jsonl",
        1,
        {"run": "whole-00000000"},
        "line 2 is of the run whole-00000000, this one is",
    ),
    "calibration of no run": ("calibrations.jsonl", 0, {"run": None}, "line 1 is of the run None, this one is whole-"),
    "calibration of round 99": (
        "calibrations.jsonl",
        1,
        {"round": 99},
        "line 2 is of round 99, but the scenario has 2",
    ),
    "calibration told twice": ("calibrations.jsonl", 1, {"round": 1}, "line 2 is of the same calibration as line 1"),
    "calibration of odd scores": (
        "calibrations.jsonl",
        1,
        {"trials": [{"status": "found", "scores": {"psnr": {"value": "high", "worse": "higher"}}, "controls": {}}]},
        "line 2 is damaged, or not of fedsim: trials.0.scores.psnr.value: ",
    ),
    "calibration of odd controls": (
        "calibrations.jsonl",
        1,
        {"trials": [{"status": "found", "scores": {}, "controls": {"grey": 3}}]},
        "line 2 is damaged, or not of fedsim: trials.0.controls.grey: ",
    ),
    "participant 99": ("rounds.jsonl", 1, {"participants": [0, 99]}, "line 2 is of client 99, but the scenario"),
    "failed client 7": ("rounds.jsonl", 1, {"failed": {"7": "x"}}, "line 2 is of client 7, but the scenario"),
    "round told twice": ("rounds.jsonl", 2, {"round": 1}, "line 3 is of round 1, expected round 2"),
    "capture of client 9": (
        "captures/index.jsonl",
        1,
        {"key": "round-0001/client-009"},
        "line 2 is of client 9, but the scenario",
    ),
    "capture of round 5": (
        "captures/index.jsonl",
        1,
        {"key": "round-0005/client-000"},
        "line 2 is of round 5, but the",
    ),
}


@pytest.mark.parametrize(("file", "number", "change", "says"), STRANGERS.values(), ids=STRANGERS)
def test_a_line_that_does_not_belong_is_refused_by_name_and_nothing_is_written(
    file, number, change, says, run, audit, resume
):
    edit_line(run / file, number, **change)
    before = content(run)
    for step in (audit, resume):
        with pytest.raises(RunFolderError) as refused:
            step(run)
        assert str(refused.value).startswith(f"{run / file}: {says}")
    assert content(run) == before


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"run": "whole-00000000"}, "of the run whole-00000000, this one is whole-"),
        ({"client": 99}, "of client 99 in round 2, which the scenario does not have"),
        ({"round": 99}, "of client 1 in round 99, which the scenario does not have"),
        ({"client": 0}, "tells of the same as records.jsonl, line 3"),
        (
            {"controls": {"grey": {"psnr": 1e308}}},
            "controls.grey.psnr: expected a finite number up to 1e+40 in size; left out.",
        ),
    ],
)
def test_a_report_leaves_out_records_that_do_not_belong_and_says_so(change, note, run):
    edit_line(run / "records.jsonl", 3, **change)
    found = reading.read(run)
    assert len(found.records) == 3
    assert [text for text in found.notes if text.startswith(f"records.jsonl, line 4: {note}")], found.notes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"run": "whole-00000000"}, "of the run whole-00000000, this one is whole-"),
        ({"round": 99}, "of round 99, which the scenario does not have"),
        ({"round": 1}, "tells of the same as calibrations.jsonl, line 1"),
        ({"trials": []}, "written by an earlier fedsim, so it proves nothing; fedsim audit makes it again."),
        ({"trials": [{"status": "found", "scores": {"psnr": {"value": "high"}}}]}, "trials.0.scores.psnr.value: "),
    ],
)
def test_a_report_leaves_out_calibrations_that_do_not_belong_and_says_so(change, note, run):
    edit_line(run / "calibrations.jsonl", 1, **change)
    found = reading.read(run)
    assert [line.round for line in found.calibrations] == [1]
    assert [text for text in found.notes if text.startswith(f"calibrations.jsonl, line 2: {note}")], found.notes


def test_damaged_calibrations_that_are_deleted_are_made_again(run, audit):
    before = content(run)
    (run / "calibrations.jsonl").unlink()
    audit(run)
    again, once = lines_of(run / "calibrations.jsonl"), before["calibrations.jsonl"].decode().splitlines()
    assert [{**line, "seconds": 0} for line in again] == [{**json.loads(line), "seconds": 0} for line in once]


def test_a_report_leaves_out_records_of_who_took_no_part(run):
    edit_line(run / "rounds.jsonl", 2, participants=[0])
    found = reading.read(run)
    assert [(record.round, record.client) for record in found.records] == [(1, 0), (1, 1), (2, 0)]
    assert found.notes == (
        "records.jsonl, line 4: of client 1 in round 2, which took no part as rounds.jsonl says; left out.",
    )


def test_an_index_that_says_both_is_refused(run, audit, resume):
    index = run / "captures" / "index.jsonl"
    with index.open("a") as file:
        file.write(json.dumps({"key": "round-0001/client-001", "failed": "out of battery"}) + "\n")
    number = len(lines_of(index))
    says = rf"index\.jsonl: line {number} says that round-0001/client-001 failed, but line \d says that it was captured"
    for step in (audit, resume):
        with pytest.raises(RunFolderError, match=says):
            step(run)
    assert "captures/index.jsonl: says that client 1 in round 1 failed, and rounds.jsonl that it took part." in (
        reading.read(run).notes
    )


# Captures that are gone


def without(*keys):
    def change(run):
        index = run / "captures" / "index.jsonl"
        write_lines(index, [line for line in lines_of(index) if line["key"] not in keys])
        for key in keys:
            (run / "captures" / f"{key}.safetensors").unlink()

    return change


def files_gone(*keys):
    return lambda run: [(run / "captures" / f"{key}.safetensors").unlink() for key in keys]


GONE = {
    "index": lambda run: (run / "captures" / "index.jsonl").unlink(),
    "all captures": lambda run: shutil.rmtree(run / "captures"),
    "one file": files_gone("round-0001/client-001"),
    "a file of the last round": files_gone("round-0002/client-000"),
    "file and line": without("round-0001/client-000"),
    "what the server sent": files_gone("round-0002/global"),
    "what the server sent, and its line": without("round-0001/global"),
}


@pytest.mark.parametrize("gone", GONE.values(), ids=GONE)
def test_captures_that_are_gone_stop_an_audit_and_are_made_again_by_a_resume(gone, run, audit, resume, whole):
    gone(run)
    before = content(run)
    with pytest.raises(RunFolderError, match=r"captures/.*(lists nothing|missing, though).*fedsim run --resume"):
        audit(run)
    assert content(run) == before
    resume(run)
    after, expected = content(run), content(whole.path)
    assert set(after.pop("captures/index.jsonl").splitlines()) == set(expected.pop("captures/index.jsonl").splitlines())
    assert after == expected


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("all captures", "captures/index.jsonl: gone, so no update of this run can be attacked again."),
        (
            "one file",
            "captures/round-0001/client-001.safetensors: missing, though rounds.jsonl says that client 1 in round 1 took part.",
        ),
        (
            "file and line",
            "captures/round-0001/client-000.safetensors: missing, though rounds.jsonl says that client 0 in round 1 took part.",
        ),
    ],
)
def test_a_report_says_which_captures_are_gone(gone, note, run):
    assert reading.read(run).notes == ()
    GONE[gone](run)
    assert reading.read(run).notes == (note,)


def test_a_lost_reply_that_comes_out_otherwise_is_not_taken_for_the_lost_one(run, resume):
    without("round-0002/client-001")(run)
    edit_line(run / "rounds.jsonl", 2, loss=1.25)
    with pytest.raises(
        RunFolderError, match=r"rounds\.jsonl: round 2 was trained again.*its loss is now [\d.]+, not 1\.25"
    ):
        resume(run)


def test_a_lost_file_that_comes_out_otherwise_is_not_taken_for_the_lost_one(run, resume):
    index, key = run / "captures" / "index.jsonl", "round-0002/client-001"
    files_gone(key)(run)
    write_lines(index, [line | {"sha256": "0" * 64} if line["key"] == key else line for line in lines_of(index)])
    with pytest.raises(
        RunFolderError, match=r"client-001\.safetensors: was missing and has been made again, but differs"
    ):
        resume(run)
    assert not (run / "captures" / f"{key}.safetensors").exists()


# Files in the wrong place


def swapped(run, one, other):
    first, second = (run / "captures" / f"{key}.safetensors" for key in (one, other))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    seal(run, one)
    seal(run, other)


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        (
            "round-0001/client-000",
            "round-0001/client-001",
            # Whichever of the two is read first.
            r"client-00(0|1).safetensors: belongs to client (?!\1)(0|1) in round 1, as it says itself, and not to client \1 in",
        ),
        (
            "round-0001/client-001",
            "round-0002/client-001",
            r"client-001.safetensors: belongs to client 1 in round 2, as it says itself, and not to client 1 in round 1",
        ),
        (
            "round-0001/global",
            "round-0002/global",
            "global.safetensors: belongs to round 2, as it says itself, and not to round 1",
        ),
    ],
)
def test_captures_that_were_swapped_with_their_checksums_are_told_apart(one, two, says, run, audit, resume):
    swapped(run, one, two)
    (run / "records.jsonl").unlink()
    shutil.rmtree(run / "artifacts")
    (run / "model.safetensors").unlink()
    for step in (audit, resume):
        with pytest.raises(RunFolderError) as refused:
            step(run)
        assert re.search(f"{re.escape(str(run))}/captures/round-0001/{says}", str(refused.value))


def test_captures_of_another_run_are_refused(run, other, audit, resume):
    shutil.rmtree(run / "captures")
    shutil.copytree(other.path / "captures", run / "captures")
    (run / "records.jsonl").unlink()
    shutil.rmtree(run / "artifacts")
    (run / "model.safetensors").unlink()
    for step in (audit, resume):
        with pytest.raises(
            RunFolderError, match=r"safetensors: belongs to the run whole-\w+, as it says itself, and this is"
        ):
            step(run)


@pytest.mark.parametrize("two", ["round-0001/client-001", "round-0002/client-000"])
def test_findings_that_were_swapped_are_told_apart(two, run, audit):
    first, second = (
        run / "artifacts" / place / "00-stubs.Guess.safetensors" for place in ("round-0001/client-000", two)
    )
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    (run / "records.jsonl").unlink()
    with pytest.raises(
        RunFolderError, match=rf"{first}: belongs to client \d in round \d, as it says itself, and not to"
    ):
        audit(run)


def test_a_finding_of_another_run_is_refused(run, other, audit):
    name = "artifacts/round-0001/client-000/00-stubs.Guess.safetensors"
    shutil.copy(other.path / name, run / name)
    (run / "records.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"Guess\.safetensors: belongs to the run whole-\w+, as it says itself"):
        audit(run)


# The training that a resume repeats


@pytest.mark.parametrize("round", [1, 2])
def test_a_resume_that_sends_other_weights_is_refused_with_round_and_tensor(round, run, resume):
    folder = RunFolder.open(run)
    weights = folder.read_global(round, 0)
    weights["head.bias"] = torch.nextafter(weights["head.bias"], torch.tensor(1e9))
    folder.write_global(round, weights)
    (run / "model.safetensors").unlink()
    before = content(run)
    with pytest.raises(
        RunFolderError,
        match=rf"round-000{round}/global\.safetensors: round {round} now sends other .*the first in 'head\.bias'",
    ):
        resume(run)
    assert content(run) == before


def test_a_reply_of_another_model_is_not_replayed(run, resume):
    folder = RunFolder.open(run)
    kept = folder.read_capture(2, 1)
    folder.write_capture(Capture(2, 1, "delta", {"x": torch.zeros(3)}, kept.metrics, kept.side))
    (run / "model.safetensors").unlink()
    with pytest.raises(
        RunFolderError, match=r"the capture of round 2, client 1 is refused: cls_token and [0-9]+ more are missing"
    ):
        resume(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: whole[:-1] + b"\1",
    ],
    ids=["one byte short", "half", "empty", "changed"],
)
def test_a_damaged_final_model_is_named_and_made_again_once_it_is_taken_out(damage, run, resume, whole):
    path = run / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFolderError, match=r"run/model\.safetensors: corrupted, (its checksum|Error while)"):
        resume(run)
    path.unlink()
    resume(run)
    assert path.read_bytes() == (whole.path / "model.safetensors").read_bytes()


# Who trained the clients


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"origin": 3}', '{"origin": "guessed"}', "[" * 100_000])
def test_an_environment_that_does_not_say_who_trained_is_refused(text, run, audit, resume):
    (run / "environment.json").write_text(text)
    for step in (audit, resume):
        with pytest.raises(RunFolderError, match=r"run/environment\.json: "):
            step(run)
    assert (run / "environment.json").read_text() == text


def test_an_observed_run_without_its_environment_is_not_trained_on(run, resume):
    for name in ("environment.json", "rounds.jsonl", "records.jsonl", "model.safetensors"):
        (run / name).unlink()
    with pytest.raises(RunFolderError, match=r"environment\.json: missing, so who trained the clients is not known"):
        resume(run)
    assert not (run / "environment.json").exists()


def test_a_simulated_run_without_its_environment_is_still_scored(run, audit, whole):
    (run / "environment.json").unlink()
    (run / "records.jsonl").unlink()
    found = audit(run)
    assert [record["scores"] for record in found] == [
        record["scores"] for record in RunFolder.open(whole.path).records.read()
    ]


# A kill as the run begins


def test_a_folder_that_was_killed_in_the_first_write_is_taken_for_an_empty_one(tmp_path, whole):
    path = tmp_path / "killed"
    path.mkdir()
    (path / ".scenario.yaml.31.140.partial").write_text("name: ha")
    (path / ".lock").touch()
    with pytest.raises(
        RunFolderError, match=r"has no scenario\.yaml\. Start the run anew, with fedsim run SCENARIO --out"
    ):
        RunFolder.open(path)
    folder = RunFolder.create(path, whole.plan.scenario)
    with folder.locked():
        pass
    assert sorted(file.name for file in path.iterdir()) == [".lock", "scenario.yaml"]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", ".x.partial", "environment.json", "a.1.2.partial"])
def test_a_file_of_somebody_else_is_not_taken_for_a_leftover(tmp_path, name, whole):
    (tmp_path / ".scenario.yaml.31.140.partial").write_text("name: ha")
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match="already exists and is not empty"):
        RunFolder.create(tmp_path, whole.plan.scenario)
    assert (tmp_path / name).read_text() == "mine"


# Links


@pytest.mark.parametrize(
    "name", ["artifacts", "captures", "tables", "figures", "artifacts/round-0001", "captures/round-0001"]
)
def test_a_folder_that_is_a_link_is_refused_and_its_target_left_alone(name, run, audit, resume, tmp_path):
    outside = tmp_path / "outside"
    if (run / name).exists():
        shutil.move(run / name, outside)
    else:
        outside.mkdir()
        (outside / "records.csv").write_text("theirs")
    (run / name).symlink_to(outside)
    (run / "records.jsonl").unlink()
    before = content(outside)
    for step in (audit, resume):
        with pytest.raises(RunFolderError, match=rf"{run / name}: a symbolic link"):
            step(run)
    assert content(outside) == before


@pytest.mark.parametrize(
    "name", [".lock", "records.jsonl", "rounds.jsonl", "inputs.json", "environment.json", "scenario.yaml"]
)
def test_a_file_that_is_a_link_is_refused_and_its_target_left_alone(name, run, audit, tmp_path):
    target = tmp_path / "theirs"
    (run / name).touch()
    shutil.move(run / name, target)
    target.write_bytes(target.read_bytes() + b"\n")
    (run / name).symlink_to(target)
    before = target.read_bytes()
    with pytest.raises(RunFolderError, match=rf"{run / name}: a symbolic link"):
        RunFolder.open(run).scenario()
        audit(run)
    assert target.read_bytes() == before


def test_a_run_is_audited_through_a_link_to_it(run, audit, tmp_path, whole):
    (tmp_path / "latest").symlink_to(run)
    (run / "records.jsonl").unlink()
    assert [record["scores"] for record in audit(tmp_path / "latest")] == [
        record["scores"] for record in RunFolder.open(whole.path).records.read()
    ]
