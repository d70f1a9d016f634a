import audits
import pytest

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

GUESS = {"name": "stubs:Guess"}
RAISES = {"name": "stubs:RaisesOn"}


@pytest.fixture
def simulate(tiny_plan, run_folder):
    """Return a function: audit.keep_updates, name, other parts -> plan, folder and records of a run."""

    def run(keep, name="run", audit=None, **parts):
        plan = tiny_plan(audit={"processes": 0, "calibrate": "none", "keep_updates": keep, **(audit or {})}, **parts)
        folder = run_folder(plan, name)
        return plan, folder, audits.simulate(plan, folder, Progress())

    return run


def stored(folder):
    """Return round and client of each update on disk."""
    fresh = RunFolder(folder.path)
    return [(r, c) for r in fresh.captured_rounds() for c in fresh.captured(r) if fresh.has_capture(r, c)]


def timeless(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


EVERY = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize(("keep", "kept"), [("all", EVERY), ("audited", [(2, 0), (2, 1)]), ("none", [])])
def test_what_stays_is_what_the_scenario_says_and_no_record_depends_on_it(simulate, keep, kept):
    parts = {"rounds": [2], "clients": [0, 1]}
    _, folder, records = simulate(keep, audit=parts)
    assert stored(folder) == kept
    fresh = RunFolder(folder.path)
    assert fresh.captured(1) == (0, 1, 2) and fresh.has_global(1) and fresh.has_model()
    _, _, expected = simulate("all", "expected", audit=parts)
    assert timeless(records) == timeless(expected) and len(records) == 2
    notes = reading.read(folder.path).notes
    gone = len(EVERY) - len(kept)
    assert any(f"{gone} of 6 updates were removed after their audit" in note for note in notes) == (gone > 0)
    assert not any("missing" in note for note in notes)


def test_an_audit_again_leaves_a_run_without_updates_as_it_is_and_refuses_another_attack(simulate, tiny_plan):
    plan, folder, records = simulate("none")
    assert timeless(audits.audit(plan, RunFolder(folder.path), Progress())) == timeless(records)
    before = folder.records.path.read_bytes()
    added = tiny_plan(audit={"processes": 0, "calibrate": "none", "keep_updates": "none"}, attacks=[GUESS, RAISES])
    with pytest.raises(
        RunFolderError, match=r"client 0 in round 1, which was removed .*delete captures/removed\.jsonl"
    ):
        audits.audit(added, RunFolder(folder.path), Progress())
    assert folder.records.path.read_bytes() == before


def test_a_run_that_goes_on_makes_removed_updates_again_and_comes_out_the_same(simulate):
    _, whole, expected = simulate("none", "whole")
    plan, folder, _ = simulate("none")
    # As if killed before the second round: what tells of it is gone.
    rounds = folder.rounds.read()
    folder.rounds.rewrite(rounds[:2])
    (folder.path / "model.safetensors").unlink()
    records = audits.simulate(plan, RunFolder(folder.path), Progress())
    assert timeless(records) == timeless(expected) and stored(folder) == []
    assert RunFolder(folder.path).model_digest() == whole.model_digest()
    assert timeless(folder.rounds.read()) == timeless(whole.rounds.read())


def test_the_way_that_the_message_names_makes_removed_updates_again(simulate, tiny_plan):
    _, folder, records = simulate("none")
    (folder.path / "captures" / "removed.jsonl").unlink()
    plan = tiny_plan(audit={"processes": 0, "calibrate": "none"})
    assert timeless(audits.simulate(plan, RunFolder(folder.path), Progress())) == timeless(records)
    assert stored(folder) == EVERY


def test_updates_of_a_round_with_a_failed_attempt_stay_until_it_is_made_again(simulate):
    _, folder, records = simulate("none", audit={"rounds": [2]}, attacks=[RAISES])
    assert {record["round"] for record in records if record["status"] == "failed"} == {2}
    assert stored(folder) == [(2, 0), (2, 1), (2, 2)]


def test_attacks_on_several_updates_keep_all_of_them_until_the_end(simulate):
    _, folder, records = simulate("none", attacks=[{"name": "stubs:SeesRun"}], threat={"grants": ["labels"]})
    assert records and stored(folder) == []


def test_what_was_observed_is_never_removed(simulate, monkeypatch):
    plan, folder, _ = simulate("none")
    monkeypatch.setattr(environment, "origin", lambda path: "observed")
    with pytest.raises(ScenarioError, match=r"^audit\.keep_updates: none: .* was observed"):
        audits.audit(plan, RunFolder(folder.path), Progress())
