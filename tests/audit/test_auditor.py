import dataclasses
import json
import math
import os
import resource
import shutil
import sys

import audits
import pytest
import torch
from processes import is_running

from fedsim import cli, plugins, process_tree
from fedsim.audit import attack_process, attempt
from fedsim.audit.assessment import Task
from fedsim.audit.partners import Partners
from fedsim.audit.work import Work
from fedsim.audit.workers import InThisProcess
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.exchange import Finding, View
from fedsim.federation.engine import train
from fedsim.metrics import scoring
from fedsim.planning import preparation as planning
from fedsim.recording.captures import Capture
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

FIELDS = {
    "schema", "run", "round", "client", "attack", "defenses", "grants", "status", "scores", "controls", "cautions",
    "trace", "seconds", "seed", "artifacts", "inapplicable", "best_example", "workload",
}  # fmt: skip
CONTROLS = {"grey", "own_mean", "dataset_mean", "wrong_update", "prior", "uniform", "chance"}
VIEWED = {"psnr@patches", "ssim@patches"}
NOISE = {"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}}

VIEW = View.of_update(1, 0)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Where the run of the tiny scenario lies, once a test has made it."""
    return tmp_path_factory.mktemp("tiny") / "run"


@pytest.fixture
def simulate(tiny_plan, run_folder, tiny_run, tmp_path):
    """Return a function: parts of a scenario -> plan, folder and records of the whole run."""

    def run(name="run", on_running=None, **parts):
        plan = tiny_plan(**parts)
        if parts or on_running:
            folder = run_folder(plan, name)
            return plan, folder, audits.simulate(plan, folder, Progress(on_running=on_running))
        if not tiny_run.exists():
            folder = run_folder(plan, name)
            audits.simulate(plan, folder, Progress())
            folder.path.rename(tiny_run)
        folder = RunFolder.open(shutil.copytree(tiny_run, tmp_path / name))
        return plan, folder, folder.records.read()

    return run


def audit(plan, folder, **progress):
    return audits.audit(plan, folder, Progress(**progress))


def timeless(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def places(records):
    return [(record["round"], record["client"], record["attack"]["name"]) for record in records]


# One record


def test_a_record_holds_the_documented_fields(simulate):
    _, folder, records = simulate(training={"batch_size": 2}, defenses=[NOISE])
    assert records == folder.records.read()
    raw = (folder.path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in raw] == records
    for record in records:
        assert set(record) == FIELDS | ({"budget"} if record["defenses"] else set())
        assert record["schema"] == SCHEMA and record["run"].startswith("tiny-")
        assert record["status"] == "found" and record["grants"] == ["batch_size", "normalization"]
        assert record["attack"] == {
            "name": "stubs:Guess",
            "params": {"pictures": 1},
            "version": plugins.find("attacks", "stubs:Guess", "here").version,
            "distribution": None,
            "citation": "none",
            "is_control": False,
            "recovers": ["images", "labels"],
        }
        views = VIEWED if record["defenses"] else set()
        assert record["inapplicable"] is None and set(record["best_example"]) == {"psnr", "ssim"} | views
        assert set(record["scores"]) == {"psnr", "ssim", "label_recall"} | views
        for score in record["scores"].values():
            assert len(score["per_example"]) == 2 and score["worse"] == "higher"
            assert score["value"] == pytest.approx(math.fsum(score["per_example"]) / 2)
        assert set(record["controls"]) == CONTROLS
        assert record["trace"]["granted"] == 2
        assert record["seconds"] >= 0 and isinstance(record["seed"], int)
        assert set(record["artifacts"]) == {"finding", "originals", "reconstructions"}
        for path in record["artifacts"].values():
            assert (folder.path / path).stat().st_size > 0
    assert len({record["run"] for record in records}) == 1
    assert len({record["seed"] for record in records}) == len(records)


def test_a_record_names_the_defenses_of_its_client_and_their_cautions(simulate):
    plan, _, records = simulate(defenses=[NOISE], federation={"rounds": 1})
    plain, noised, _ = records
    assert plain["defenses"] == [] and plain["cautions"] == ["a guess"]
    (defense,) = noised["defenses"]
    assert defense["name"] == "dp_noise" and defense["params"] == plan.defenses[0].params
    assert noised["cautions"][0] == "a guess" and all(c.startswith("dp_noise: ") for c in noised["cautions"][1:])


def test_scores_are_those_of_the_stored_finding_against_the_derived_truth(simulate):
    plan, folder, records = simulate(training={"batch_size": 2})
    for record in records:
        tried = attempt.read(plan, folder, View.of_update(record["round"], record["client"]), plan.attacks[0])
        truth = plan.data.truth(record["client"], record["round"], plan.scenario.training)
        expected = scoring.score(("psnr", "ssim", "label_recall"), tried.finding, truth)
        assert {name: score["value"] for name, score in record["scores"].items()} == {
            name: score.value for name, score in expected.items()
        }


def test_the_wrong_update_control_is_the_next_clients_finding_scored(simulate):
    plan, folder, records = simulate(training={"batch_size": 2}, federation={"rounds": 1})
    for client, partner in ((0, 1), (1, 2), (2, 0)):
        other = attempt.read(plan, folder, View.of_update(1, partner), plan.attacks[0]).finding
        truth = plan.data.truth(client, 1, plan.scenario.training)
        expected = scoring.score(("psnr", "ssim", "label_recall"), other, truth)
        wrong = records[client]["controls"]["wrong_update"]
        assert {name: value for name, value in wrong.items() if "@" not in name} == {
            name: score.value for name, score in expected.items()
        }


def partners(tiny_plan, partition, defenses=()):
    """Return the partner of each client that holds these samples of the training pool."""
    plan = tiny_plan(federation={"clients": len(partition), "rounds": 1}, defenses=list(defenses))
    own = dataclasses.replace(plan, data=dataclasses.replace(plan.data, partition=partition))
    chosen = Partners(own)
    return [chosen.of(1, client, range(len(partition))) for client in range(len(partition))]


def test_the_wrong_update_control_comes_from_a_client_with_other_images_where_there_is_one(tiny_plan):
    assert partners(tiny_plan, ((0,), (0,), (1,))) == [2, 2, 0]


def test_other_images_come_before_equal_defenses(tiny_plan):
    masked = {"name": "partial_sharing", "clients": [0, 1], "params": {"hidden": ["head.*"]}}
    assert partners(tiny_plan, ((0,), (0,), (1,)), [masked]) == [2, 2, 0]


def test_where_all_clients_have_the_same_images_one_of_them_is_the_control(tiny_plan):
    assert partners(tiny_plan, ((0,), (0,))) == [1, 0]


def test_the_wrong_update_control_comes_from_a_client_with_equal_defenses_where_there_is_one(simulate):
    two = [{**NOISE, "clients": [1]}, {**NOISE, "clients": [3]}, {"name": "stubs:Scales", "clients": [4]}]
    federation = {"clients": 5, "rounds": 1}
    plan, folder, records = simulate(training={"batch_size": 2}, federation=federation, defenses=two)
    for client, partner in ((0, 2), (1, 3), (2, 0), (3, 1), (4, 0)):
        other = attempt.read(plan, folder, View.of_update(1, partner), plan.attacks[0]).finding
        truth = plan.data.truth(client, 1, plan.scenario.training)
        expected = scoring.score(("psnr", "ssim", "label_recall"), other, truth)
        wrong = records[client]["controls"]["wrong_update"]
        assert {name: value for name, value in wrong.items() if "@" not in name} == {
            name: score.value for name, score in expected.items()
        }


def test_a_client_that_is_not_audited_still_serves_as_control(simulate):
    _, _, full = simulate("full", federation={"rounds": 1})
    _, folder, (record,) = simulate("one", federation={"rounds": 1}, audit={"clients": [1]})
    assert record["client"] == 1 and record["controls"] == full[1]["controls"]
    found = {path.parent.name for path in folder.path.rglob("artifacts/**/*.safetensors")}
    assert found == {"client-001", "client-002"}


def test_without_another_client_the_record_says_that_a_control_is_missing(simulate):
    _, _, (record,) = simulate(federation={"clients": 1, "rounds": 1})
    assert "wrong_update" not in record["controls"]
    assert any(caution.startswith("no wrong-update control") for caution in record["cautions"])


# Attempts that fail


def test_a_failed_and_a_refused_attempt_are_records_and_the_others_go_on(simulate):
    _, _, records = simulate(attacks=[{"name": "stubs:RaisesOn"}, {"name": "stubs:Guess"}], federation={"rounds": 1})
    assert [record["status"] for record in records] == ["found", "found", "failed", "found", "refused", "found"]
    failed, refused = records[2], records[4]
    assert failed["message"].startswith("RuntimeError: out of luck (stubs.py:")
    assert refused["message"] == "one image at a time"
    for record in (failed, refused):
        assert set(record) == FIELDS | {"message"} and record["scores"] == record["controls"] == {}
    # Client 0 would be compared with client 1, whose attempt failed.
    assert "wrong_update" not in records[0]["controls"] and "wrong_update" in records[1]["controls"]


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_an_attack_changes_in_its_process_reaches_no_other_attempt(simulate, processes, quick_workers, isolated):
    parts = {"federation": {"rounds": 1}, "audit": {"processes": processes}}
    _, _, alone = simulate("alone", attacks=[{"name": "stubs:Guess"}], **parts)
    _, _, both = simulate("both", attacks=[{"name": "stubs:Poisons"}, {"name": "stubs:Guess"}], **parts)
    assert [record["status"] for record in both] == ["found"] * 6
    found = [record for record in both if record["attack"]["name"] == "stubs:Guess"]
    for record, expected in zip(found, alone, strict=True):
        assert {name: record[name] for name in ("scores", "controls", "trace", "seed")} == {
            name: expected[name] for name in ("scores", "controls", "trace", "seed")
        }


@pytest.mark.slow
def test_an_attack_of_others_has_a_process_of_its_own_where_that_starts_from_nothing(simulate, monkeypatch, isolated):
    monkeypatch.setattr(attack_process, "start_method", lambda: "spawn")
    own = [{"name": "blind_guess"}, {"name": "stubs:TellsProcess"}]
    _, _, records = simulate(attacks=own, federation={"clients": 2, "rounds": 1})
    processes = [record["trace"]["process"] for record in records[1::2]]
    assert len(set(processes)) == 2 and os.getpid() not in processes


def test_a_finding_that_is_gone_is_made_again_in_a_process_of_its_own_before_it_is_assessed(simulate, isolated):
    plan, folder, _ = simulate(attacks=[{"name": "stubs:TellsProcess"}], federation={"clients": 2, "rounds": 1})
    for client in (0, 1):
        attempt.finding_path(folder, View.of_update(1, client), plan.attacks[0]).unlink()
    with pytest.raises(RunFolderError, match="Audit again"):
        attempt.read(plan, folder, View.of_update(1, 0), plan.attacks[0])
    with InThisProcess(plan, RunFolder(folder.path)) as executor:
        record = executor.submit(Work.assess, Task(View.of_update(1, 0), 0), View.of_update(1, 1)).result().as_json()
    assert record["status"] == "found" and "wrong_update" in record["controls"]
    assert record["trace"]["process"] != os.getpid()


def test_an_attack_that_ends_python_is_a_failed_attempt(simulate, isolated):
    attacks = [{"name": "stubs:EndsOn", "params": {"exits": 1}}]
    _, _, records = simulate(attacks=attacks, federation={"rounds": 1})
    assert [record["status"] for record in records] == ["found", "failed", "found"]
    assert records[1]["message"].startswith("SystemExit: 3 (stubs.py:")


def going(fault, on=1, **params):
    return {"name": "faulty_attacks:Goes", "params": {"fault": fault, "on": on, **params}}


ENDS_BY_ITSELF = {
    "interrupts": "KeyboardInterrupt: by itself (faulty_attacks.py:",
    "disturbs": "RuntimeError: after a mess (faulty_attacks.py:",
    "exits": "its process died",
    "dies before its child": "its process died",
    "closes files": "its process died",
}
NEVER_ENDS = ("spins", "spins in C", "ignores signals")
LEAVES = ("goes on twice", "changes the directory", "leaves a thread", "leaves a child", "leaves a session")


def scored(record):
    return {key: record[key] for key in ("round", "client", "status", "scores", "controls", "trace", "cautions")}


def assert_neighbours_found(records, guesses, faults):
    """Check that attempts on other clients, and other attacks, found what they find where nothing goes wrong."""
    by_client = {record["client"]: record for record in guesses}
    for record in records:
        found = {**scored(record), "controls": None}
        # Each attack draws from a seed of its own.
        if record["attack"]["name"] == "stubs:Guess":
            assert scored(record) == scored(by_client[record["client"]])
        elif not (
            record["attack"]["params"]["fault"] in faults and record["client"] == record["attack"]["params"]["on"]
        ):
            assert found["status"] == "found" and found["trace"] == by_client[record["client"]]["trace"]


@pytest.fixture
def left_children(tmp_path, monkeypatch):
    """Return the file that attacks which leave a child write the number of its process to."""
    note = tmp_path / "children"
    monkeypatch.setenv("FEDSIM_TEST_NOTE", str(note))
    return note


def test_attacks_that_end_their_process_or_leave_something_behind_fail_alone(simulate, left_children, isolated):
    attacks = [*map(going, ENDS_BY_ITSELF), *map(going, LEAVES), {"name": "stubs:Guess"}]
    federation = {"clients": 2, "rounds": 1}
    _, folder, records = simulate(attacks=attacks, federation=federation)
    assert len(records) == 2 * len(attacks) and records == folder.records.read()
    for record, (fault, message) in zip(records[len(attacks) :], ENDS_BY_ITSELF.items(), strict=False):
        assert record["attack"]["params"]["fault"] == fault
        assert record["status"] == "failed" and record["message"].startswith(message), record["message"]
    _, _, guesses = simulate("alone", federation=federation)
    assert_neighbours_found(records, guesses, ENDS_BY_ITSELF)
    left = left_children.read_text().split()
    assert len(left) == 2 and not any(map(is_running, left)), "they end with the audit"


def test_an_attack_that_takes_too_long_is_ended_and_fails_alone(simulate, isolated):
    attacks = [*(going(fault, on) for on, fault in enumerate(NEVER_ENDS)), {"name": "stubs:Guess"}]
    _, folder, records = simulate(attacks=attacks, federation={"rounds": 1}, audit={"attack_timeout": 0.75})
    assert records == folder.records.read()
    failed = [record for record in records if record["status"] == "failed"]
    assert [(record["client"], record["attack"]["params"]["fault"]) for record in failed] == [*enumerate(NEVER_ENDS)]
    for record in failed:
        assert record["message"] == "took longer than audit.attack_timeout (0.75 s)" and record["seconds"] == 0.75
    _, _, guesses = simulate("alone", federation={"rounds": 1})
    assert_neighbours_found(records, guesses, NEVER_ENDS)


BEYOND = "used more than audit.attack_memory (256 MiB)"
HOARDS = ("takes memory", "leaves memory to a child")


@pytest.fixture
def looked(monkeypatch):
    """Return what every look at the memory of an attempt saw, none of which waits for the time of the next."""
    seen, memory = [], process_tree.memory

    def look(process):
        seen.append(memory(process))
        return seen[-1]

    monkeypatch.setattr(attack_process, "_LOOK", 0.0)
    monkeypatch.setattr(process_tree, "memory", look)
    return seen


def test_an_attack_that_uses_too_much_memory_is_ended_with_its_children_and_fails_alone(simulate, isolated):
    attacks = [*(going(fault, on) for on, fault in enumerate(HOARDS)), {"name": "stubs:Guess"}]
    # What the attempts begin with is theirs to have: a copy shares it.
    ballast = b"x" * (1024 * 2**20)
    _, folder, records = simulate(attacks=attacks, federation={"rounds": 1}, audit={"attack_memory": 256})
    del ballast
    assert records == folder.records.read()
    failed = [record for record in records if record["status"] == "failed"]
    assert [(record["client"], record["attack"]["params"]["fault"]) for record in failed] == [*enumerate(HOARDS)]
    for record in failed:
        assert record["message"] == BEYOND and 0 < record["seconds"] < 60
    _, _, guesses = simulate("alone", federation={"rounds": 1})
    assert_neighbours_found(records, guesses, HOARDS)


def test_an_attack_that_writes_a_gigabyte_is_stopped_by_an_error_that_says_how_much_it_may_write(simulate, isolated):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    attacks = [going("writes a gigabyte"), {"name": "stubs:Guess"}]
    _, _, records = simulate(attacks=attacks, federation={"clients": 2, "rounds": 1})
    assert [record["status"] for record in records] == ["found", "found", "failed", "found"]
    message = records[2]["message"]
    assert message.startswith("OSError: [Errno 27] File too large; an attack may write files of at most 512 MiB")
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before, "of this process, which writes the run folder"


def test_an_attack_within_its_memory_gives_the_same_record(simulate, looked, isolated):
    parts = {"attacks": [going("takes a little memory")], "federation": {"clients": 2, "rounds": 1}}
    _, _, unlimited = simulate("unlimited", **parts)
    assert not looked
    _, _, records = simulate("limited", **parts, audit={"attack_memory": 256})
    assert timeless(records) == timeless(unlimited) and len(looked) > len(records), "at the beginning, and later"


def test_memory_that_an_attack_holds_when_it_ends_is_seen_whenever_the_last_look_was(simulate, monkeypatch, isolated):
    # No look follows the one at the beginning.
    monkeypatch.setattr(attack_process, "_LOOK", math.inf)
    parts = {"attacks": [{"name": "stubs:KeepsMemory"}], "federation": {"clients": 1, "rounds": 1}}
    _, _, (record,) = simulate(**parts, audit={"attack_memory": 256})
    assert (record["status"], record["message"]) == ("failed", BEYOND)
    _, _, (record,) = simulate("more", **parts, audit={"attack_memory": 4096})
    assert record["status"] == "found"


def test_a_calibration_trial_that_uses_too_much_memory_has_failed(simulate, isolated):
    parts = {"attacks": [going("takes memory", on=0)], "federation": {"clients": 2, "rounds": 1}}
    plan, folder, records = simulate(**parts, audit={"attack_memory": 256})
    assert [record["status"] for record in records] == ["failed", "found"]
    with InThisProcess(plan, RunFolder(folder.path)) as executor:
        line = executor.submit(Work.calibrate, Task(View.of_update(1, 1), 0)).result().as_json()
    assert (line["status"], line["message"]) == ("failed", BEYOND)
    assert {trial["message"] for trial in line["trials"]} == {BEYOND}


@pytest.mark.slow
def test_the_limit_on_memory_holds_on_a_worker_and_in_a_process_kept_from_one_attempt_to_the_next(
    simulate, quick_workers, monkeypatch, isolated
):
    parts = {"attacks": [going("takes memory")], "federation": {"clients": 2, "rounds": 1}}
    _, _, on_worker = simulate("worker", **parts, audit={"attack_memory": 256, "processes": 1})
    monkeypatch.setattr(attack_process, "start_method", lambda: "spawn")
    monkeypatch.setattr(plugins, "is_own", lambda info: True)
    _, _, kept = simulate("kept", **parts, audit={"attack_memory": 256})
    assert [record.get("message") for record in on_worker] == [None, BEYOND]
    assert [record.get("message") for record in kept] == [None, BEYOND]


def test_a_limit_on_memory_that_nobody_would_enforce_is_refused(tiny_scenario, monkeypatch):
    monkeypatch.setattr(process_tree, "tells_memory", lambda: False)
    with pytest.raises(ScenarioError, match=r"audit\.attack_memory: this system does not tell"):
        planning.make(tiny_scenario(audit={"attack_memory": 256}))
    planning.make(tiny_scenario())


@pytest.mark.slow
def test_a_process_for_attacks_that_starts_from_nothing_gives_the_same_records(
    simulate, quick_workers, monkeypatch, isolated
):
    attacks = [{"name": "stubs:Guess"}, going("raises a long text")]
    parts = {"attacks": attacks, "federation": {"clients": 2, "rounds": 1}}
    _, _, copied = simulate("copied", **parts)
    monkeypatch.setattr(attack_process, "start_method", lambda: "spawn")
    # Its imports take longer, and are not the attack's.
    _, _, records = simulate("from nothing", **parts, audit={"attack_timeout": 2})
    assert timeless(records) == timeless(copied)


def test_an_attack_that_took_too_long_is_made_again_by_an_audit_with_more_time(simulate, tiny_plan, isolated):
    parts = {"attacks": [going("spins")], "federation": {"clients": 2, "rounds": 1}}
    _, folder, before = simulate(**parts, audit={"attack_timeout": 0.75})
    assert [record["status"] for record in before] == ["found", "failed"]
    after = audit(tiny_plan(**parts, audit={"attack_timeout": 1.5}), folder)
    assert after[1]["message"] == "took longer than audit.attack_timeout (1.5 s)"


@pytest.fixture
def claim(tiny_plan, run_folder, stubs, monkeypatch):
    """Return a function: a finding -> the record of an attack that claims it."""
    import stubs as module

    def run(finding, **parts):
        monkeypatch.setattr(module.Claims, "finding", finding)
        plan = tiny_plan(attacks=[{"name": "stubs:Claims"}], federation={"clients": 1, "rounds": 1}, **parts)
        return audits.simulate(plan, run_folder(plan), Progress())[0]

    return run


GREY = torch.full((1, 3, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("finding", "message"),
    [
        (None, "TypeError: the attack returned NoneType, not a Finding"),
        (Finding(images=torch.rand(1, 3, 16, 16)), "ValueError: the attack returned images of shape (3, 16, 16)"),
        (Finding(images=GREY * math.nan), "ValueError: the attack returned pixels that are not finite"),
        (Finding(labels=torch.full((1, 10), math.nan)), "ValueError: the attack returned labels that are not finite"),
        (Finding(labels=torch.full((1, 9), 1 / 9)), "ValueError: the attack returned labels over 9 classes, not 10"),
        (
            Finding(features=torch.full((1, 8), math.inf)),
            "ValueError: the attack returned features that are not finite",
        ),
    ],
    ids=["nothing", "another size", "not finite", "labels not finite", "other classes", "features not finite"],
)
def test_a_finding_that_is_none_is_a_failed_attempt(claim, finding, message):
    record = claim(finding)
    assert record["status"] == "failed" and record["message"].startswith(message)


def test_a_trace_of_any_kind_becomes_json(claim):
    record = claim(
        Finding(images=GREY, trace={"loss": [1.0, math.inf, math.nan], 3: ("a", None, True), "dtype": torch.float32})
    )
    assert record["trace"] == {"loss": [1.0, "inf", "nan"], "3": ["a", None, True], "dtype": "torch.float32"}


def test_an_empty_finding_has_no_scores(claim):
    record = claim(Finding())
    assert record["status"] == "found" and record["scores"] == {}


@pytest.mark.parametrize("pictures", [0, 1, 5])
def test_any_number_of_images_is_scored_per_original(claim, pictures):
    record = claim(Finding(images=GREY.repeat(pictures, 1, 1, 1)), training={"batch_size": 2})
    score = record["scores"]["psnr"]
    assert len(score["per_example"]) == 2 and score["value"] == pytest.approx(record["controls"]["grey"]["psnr"])


def test_an_update_that_is_not_finite_is_refused_not_attacked(tiny_plan, run_folder):
    plan = tiny_plan(federation={"rounds": 1})
    folder = run_folder(plan)
    train(plan, folder)
    broken = {name: tensor * math.nan for name, tensor in plan.initial_weights().items()}
    folder.write_capture(Capture(1, 2, "gradient", broken, {"num-examples": 1}, {}))
    tried = attempt.attack(
        plan, plan.attacks[0], [(folder.read_update(1, 2), folder.read_global(1, 2))], View.of_update(1, 2), 0, {}
    )[0]
    assert tried.status == "refused" and tried.message == "the update is not finite"


# The whole audit


def test_records_are_in_canonical_order_whatever_the_order_of_the_work(simulate):
    two = [{"name": "stubs:RaisesOn", "params": {"raises": -1, "refuses": -1}}, {"name": "stubs:Guess"}]
    plan, folder, records = simulate(attacks=two)
    names = [part["name"] for part in two]
    assert places(records) == [(r, c, name) for r in (1, 2) for c in range(3) for name in names]
    folder.records.rewrite(records[::-1])
    assert audit(plan, folder) == records == folder.records.read()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"rounds": [2]}, [(2, 0), (2, 1), (2, 2)]),
        ({"rounds": ["last"], "clients": [0, 2]}, [(2, 0), (2, 2)]),
        ({"clients": "1-2"}, [(1, 1), (1, 2), (2, 1), (2, 2)]),
    ],
)
def test_only_the_chosen_rounds_and_clients_are_audited(simulate, part, expected):
    assert [place[:2] for place in places(simulate(audit=part)[2])] == expected


def test_the_display_hears_of_every_new_record_and_of_their_number(tiny_plan, run_folder):
    plan = tiny_plan()
    folder = run_folder(plan)
    lines, records, totals = [], [], []
    audits.simulate(plan, folder, Progress(lines.append, records.append, totals.append))
    assert [line["round"] for line in lines] == [0, 1, 2] and totals == [3, 6] and len(records) == 6
    heard = []
    audit(plan, folder, on_record=heard.append, on_total=totals.append)
    assert heard == [] and totals[-1] == 6


def test_attempts_with_a_record_are_left_alone_and_lost_records_come_back_from_the_findings(simulate):
    plan, folder, records = simulate()
    findings = {path: path.stat().st_mtime_ns for path in folder.path.rglob("artifacts/**/*.safetensors")}
    folder.records.rewrite(records[:2])
    assert audit(plan, folder) == records
    (folder.path / "records.jsonl").unlink()
    assert audit(plan, folder) == records
    assert {path: path.stat().st_mtime_ns for path in findings} == findings and len(findings) == 6


def test_an_audit_makes_failed_attempts_again_and_the_controls_they_left_out(simulate, monkeypatch):
    import stubs

    attacks = [{"name": "stubs:RaisesOn", "params": {"refuses": -1}}, {"name": "stubs:Guess"}]
    plan, folder, before = simulate(attacks=attacks, federation={"rounds": 1})
    assert [record["status"] for record in before[::2]] == ["found", "failed", "found"]
    assert "wrong_update" not in before[0]["controls"]
    assert timeless(audit(plan, folder)) == timeless(before), "it raises still"
    monkeypatch.setattr(stubs.RaisesOn, "run", stubs.Guess.run)
    monkeypatch.setattr(stubs.RaisesOn, "pictures", 1, raising=False)
    heard = []
    after = audit(plan, folder, on_record=heard.append)
    assert after == folder.records.read() and [record["status"] for record in after] == ["found"] * 6
    assert "wrong_update" in after[0]["controls"]
    assert sorted(places(audits.lines(heard))) == sorted(places(before[:1] + before[2:3]))
    assert [after[i] for i in (1, 3, 4, 5)] == [before[i] for i in (1, 3, 4, 5)]


def test_a_failed_attempt_on_a_client_that_is_a_mere_control_is_made_again(simulate, monkeypatch):
    import stubs

    attacks = [{"name": "stubs:RaisesOn", "params": {"raises": 2, "refuses": -1}}]
    plan, folder, (before,) = simulate(attacks=attacks, federation={"rounds": 1}, audit={"clients": [1]})
    assert "wrong_update" not in before["controls"]
    monkeypatch.setattr(stubs.RaisesOn, "run", stubs.Guess.run)
    monkeypatch.setattr(stubs.RaisesOn, "pictures", 1, raising=False)
    (after,) = audit(plan, folder)
    assert "wrong_update" in after["controls"] and after["seed"] == before["seed"]


def test_an_edited_class_without_distribution_attacks_again(simulate, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "under_edit.py"
    file.write_text("from stubs import Claims\n")
    attacks = [{"name": "under_edit:Claims"}, {"name": "stubs:Guess"}]
    plan, folder, before = simulate(attacks=attacks, federation={"rounds": 1})
    file.write_text("# edited\nfrom stubs import Claims\n")
    heard = []
    after = audit(planning.make(plan.scenario), folder, on_record=heard.append)
    assert {name for _, _, name in places(audits.lines(heard))} == {"under_edit:Claims"} and len(heard) == 3
    assert [record["attack"]["version"] for record in after[1::2]] == [before[1]["attack"]["version"]] * 3
    assert all(
        new["attack"]["version"] != old["attack"]["version"] for new, old in zip(after[::2], before[::2], strict=True)
    )


def test_a_new_label_renames_records_and_attacks_nothing_again(simulate, tiny_plan):
    attack = {"name": "stubs:Guess"}
    _, folder, before = simulate(attacks=[attack])
    after = audit(tiny_plan(attacks=[{**attack, "label": "a guess"}]), folder)
    assert all("label" not in record["attack"] for record in before)
    assert [record["attack"].pop("label") for record in after] == ["a guess"] * len(before)
    assert after == before, "seconds of the stored attempts included"


def test_a_stored_finding_of_other_parameters_is_not_used_again(simulate, tiny_plan):
    _, folder, _ = simulate()
    (folder.path / "records.jsonl").unlink()
    other = tiny_plan(attacks=[{"name": "stubs:Guess", "params": {"pictures": 3}}])
    assert all(record["attack"]["params"] == {"pictures": 3} for record in audit(other, folder))


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"x" * 99])
def test_a_damaged_finding_is_made_again(simulate, damage):
    plan, folder, records = simulate()
    path = folder.path / records[0]["artifacts"]["finding"]
    path.write_bytes(damage(path.read_bytes()))
    (folder.path / "records.jsonl").unlink()
    assert timeless(audit(plan, folder)) == timeless(records)


def test_a_folder_can_be_audited_anywhere_from_its_captures_alone(simulate, tmp_path):
    plan, folder, records = simulate(training={"batch_size": 2})
    elsewhere = tmp_path / "else" / "where"
    shutil.copytree(folder.path, elsewhere)
    shutil.rmtree(elsewhere / "artifacts")
    (elsewhere / "records.jsonl").unlink()
    (elsewhere / "model.safetensors").unlink()
    assert timeless(audit(plan, RunFolder.open(elsewhere))) == timeless(records)
    for record in records:
        for path in record["artifacts"].values():
            if path.endswith(".png"):
                assert (elsewhere / path).read_bytes() == (folder.path / path).read_bytes()


def test_a_corrupted_capture_stops_the_audit_and_what_was_audited_is_saved(simulate):
    plan, folder, _ = simulate()
    shutil.rmtree(folder.path / "artifacts")
    (folder.path / "records.jsonl").unlink()
    path = folder.path / "captures" / "round-0002" / "client-001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=r"round-0002/client-001\.safetensors: corrupted"):
        audit(plan, RunFolder.open(folder.path))
    kept = folder.records.read()
    assert kept and all(record["round"] == 1 for record in kept)


def test_records_of_another_schema_or_of_an_unknown_attack_are_refused(simulate, tiny_plan):
    plan, folder, records = simulate()
    other = tiny_plan(attacks=[{"name": "stubs:RaisesOn"}])
    with pytest.raises(RunFolderError, match=r"attack 'stubs:Guess' with these parameters is not in scenario"):
        audit(other, folder)
    folder.records.rewrite([records[0], {**records[1], "schema": 99}])
    with pytest.raises(RunFolderError, match="line 2 has schema 99"):
        audit(plan, folder)


def test_the_runs_identity_ignores_how_it_was_computed_and_which_attacks_ran(tiny_scenario):
    from fedsim.planning.inputs import run_id

    same = [{}, {"engine": "ray"}, {"audit": {"processes": 2}}, {"attacks": [{"name": "stubs:RaisesOn"}]}]
    same += [{"audit": {limit: value}} for limit in ("attack_timeout", "attack_memory") for value in (1, None)]
    assert len({run_id(tiny_scenario(**parts)) for parts in same}) == 1
    others = [{"seed": 9}, {"federation": {"rounds": 9}}, {"threat": {"grants": []}}, {"defenses": [NOISE]}]
    assert len({run_id(tiny_scenario(**parts)) for parts in ({}, *others)}) == 5


def test_the_identity_of_runs_made_before_later_settings_existed_stays(tiny_scenario):
    from fedsim.planning.inputs import run_id
    from fedsim.scenario import parse

    assert run_id(parse({"name": "old"}, "old")) == "old-c84a7dbb"
    others = [{"label_smoothing": 0.1}, {"label_smoothing": 0.2}, {"mixup": 0.1}, {"mixup": 0.2}]
    assert len({run_id(tiny_scenario(training=recipe)) for recipe in ({}, *others)}) == 5


# The command


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr("fedsim.cli.display.summary", lambda path: "")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fedsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out + captured.err

    return run


def test_an_added_attack_leaves_the_records_there_are_as_they_were(simulate, command):
    _, folder, before = simulate()
    assert command("audit", folder.path, "--attack", "stubs:RaisesOn")[0] == 1
    after = folder.records.read()
    assert [record for record in after if record["attack"]["name"] == "stubs:Guess"] == before
    names = ["stubs:Guess", "stubs:RaisesOn"]
    assert places(after) == [(r, c, name) for r in (1, 2) for c in range(3) for name in names]
    assert [part.name for part in folder.scenario().attacks] == names


def test_the_same_attack_is_added_once_and_again_with_other_parameters(simulate, command):
    _, folder, before = simulate()
    assert command("audit", folder.path, "--attack", "stubs:Guess")[0] == 0
    assert folder.records.read() == before
    assert command("audit", folder.path, "--attack", "{name: 'stubs:Guess', label: one}")[0] == 0
    labeled = folder.records.read()
    assert [record["attack"].pop("label") for record in labeled] == ["one"] * 6 and labeled == before
    more = "{name: 'stubs:Guess', params: {pictures: 2}}"
    assert command("audit", folder.path, "--attack", more)[0] == 0
    after = folder.records.read()
    assert len(after) == 12 and {record["attack"]["params"]["pictures"] for record in after} == {1, 2}
    assert len({record["artifacts"]["finding"] for record in after}) == 12


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        ("no_such", "no attack 'no_such'"),
        ("{name: 'stubs:Guess', params: {pictores: 2}}", "pictores: unknown parameter"),
        ("[1]", "--attack"),
    ],
)
def test_a_wrong_attack_is_refused_and_the_folder_stays_as_it_was(simulate, command, attack, text):
    _, folder, before = simulate()
    scenario = (folder.path / "scenario.yaml").read_bytes()
    code, output = command("audit", folder.path, "--attack", attack)
    assert code == 2 and text in output and "Traceback" not in output
    assert folder.records.read() == before and (folder.path / "scenario.yaml").read_bytes() == scenario


def test_an_attack_is_not_added_to_a_run_that_another_process_works_on(simulate, command):
    _, folder, before = simulate()
    scenario = (folder.path / "scenario.yaml").read_bytes()
    with folder.locked():
        code, output = command("audit", folder.path, "--attack", "stubs:RaisesOn")
    assert code == 2 and "another fedsim process" in output
    assert folder.records.read() == before and (folder.path / "scenario.yaml").read_bytes() == scenario


def test_the_exit_code_tells_failed_attempts_from_refused_ones(tiny_scenario, command, tmp_path):
    for name, params, expected in (("refuses", {"raises": -1}, 0), ("raises", {"refuses": -1}, 1)):
        scenario = tiny_scenario(attacks=[{"name": "stubs:RaisesOn", "params": params}])
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml_loader.dump(scenario.resolved()))
        code, text = command("run", path, "--out", tmp_path / name)
        assert code == expected, text
        assert len(RunFolder.open(tmp_path / name).records.read()) == 6


# Several processes


@pytest.mark.slow
def test_one_and_two_worker_processes_give_the_same_records(simulate, left_children, quick_workers, isolated):
    attacks = [*map(going, (*ENDS_BY_ITSELF, *LEAVES, "ignores signals"))]
    attacks += [{"name": "stubs:EndsOn", "params": {"exits": 0, "dies": 1}}]
    attacks += [{"name": "stubs:RaisesOn"}, {"name": "stubs:Guess"}]
    parts = {"attacks": attacks, "training": {"batch_size": 2}, "federation": {"rounds": 1}}
    _, _, alone = simulate("0", **parts, audit={"attack_timeout": 3.0})
    ends = [record for record in alone if record["attack"]["name"] == "stubs:EndsOn"]
    assert [record["status"] for record in ends] == ["failed", "failed", "found"]
    assert ends[1]["message"] == "its process died"
    for processes in (1, 2):
        heard = []
        audit = {"attack_timeout": 3.0, "processes": processes}
        _, folder, records = simulate(str(processes), heard.append, **parts, audit=audit)
        assert folder.records.read() == records
        for record, expected in zip(timeless(records), timeless(alone), strict=True):
            assert record == expected
        assert heard[-1] == (), "nothing is shown as if it still ran"
    left = left_children.read_text().split()
    assert len(left) == 3 * 2 and not any(map(is_running, left)), "they end with the audit"


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_audit_with_a_message(simulate, tiny_plan, monkeypatch):
    _, folder, _ = simulate()
    shutil.rmtree(folder.path / "artifacts")
    (folder.path / "records.jsonl").unlink()
    monkeypatch.setattr("fedsim.audit.worker_process.start_worker", sys.exit)
    with pytest.raises(FedsimError, match="worker processes die as they start"):
        audit(tiny_plan(audit={"processes": 1}), RunFolder.open(folder.path))


@pytest.mark.slow
def test_a_corrupted_capture_is_told_by_a_worker_as_well(simulate, tiny_plan, quick_workers):
    _, folder, _ = simulate()
    shutil.rmtree(folder.path / "artifacts")
    (folder.path / "records.jsonl").unlink()
    path = folder.path / "captures" / "round-0001" / "client-000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match="corrupted"):
        audit(tiny_plan(audit={"processes": 1}), RunFolder.open(folder.path))
