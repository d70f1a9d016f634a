"""What a record says of the privacy budget of the client behind it, and that no attack is told."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import audits
import pydantic
import pytest
import runs
from objects import reachable
from safetensors import safe_open
from safetensors.torch import save_file

from fedsim.audit import assessment
from fedsim.audit.assessment import Task, assess
from fedsim.audit.threat import ThreatModel
from fedsim.defense import PrivacyBudget
from fedsim.errors import RunFolderError
from fedsim.exchange import View
from fedsim.planning import preparation
from fedsim.recording.observed import Captured
from fedsim.recording.records import Budget, RecordedView, as_record
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, tables
from fedsim.report.naming import Naming
from fedsim.scenario import parse
from fedsim.simulation import Progress

DP = {"name": "dp_noise", "clients": [0], "params": {"clip_norm": 1.0, "noise_multiplier": 4.0}}
BUDGET = {"epsilon": 1.5, "delta": 1e-5, "neighbors": "replace"}
SCENARIO = {
    "name": "assessment",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 48, "test_samples": 8, "auxiliary_samples": 8},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1, "embed_dim": 16, "num_heads": 1}},
    "federation": {"clients": 2, "rounds": 2},
    "threat": {"grants": ["labels", "batch_size"]},
    "defenses": [DP],
    "attacks": [{"name": f"stubs:{name}"} for name in ("Guess", "SeesClient", "SeesRound")],
    "audit": {"processes": 0, "calibrate": "none"},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Return the plan, the folder and the lines of a run in which client 0 claims a budget and client 1 none."""
    scenario = parse(SCENARIO, "assessment")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "stubs")
        plan = preparation.of(scenario)
        folder = RunFolder.create(tmp_path_factory.mktemp("assessment") / "run", scenario)
        lines = audits.simulate(plan, folder, Progress())
        yield plan, RunFolder.open(folder.path), lines


def test_a_record_states_what_its_client_claims_over_its_rounds_so_far(audited):
    _, folder, lines = audited
    stated = {line.round: line.epsilon for line in folder.read_rounds()}
    assert stated[1][0].epsilon < stated[2][0].epsilon
    for line in lines:
        seen = line.get("view", {"clients": [line["client"]]})["clients"]
        expected = stated[line["round"]][0].as_json() if seen == [0] else None
        assert line.get("budget") == expected
        # Without a claim a line is what it has always been.
        assert ("budget" in line) == (expected is not None)
    assert {(line["client"], "view" in line) for line in lines if "budget" in line} == {(0, False), (None, True)}


def test_tables_have_a_column_for_it_that_is_empty_without_a_claim(audited):
    _, folder, _ = audited
    found = reading.read(folder.path)
    rows = tables.record_rows([*found.records, *found.views], Naming([*found.records, *found.views]))
    claimed = [row for row in rows if row["client"] == 0]
    assert claimed and all((row["delta"], row["neighbors"]) == (1e-5, "replace") for row in claimed)
    assert all(row["epsilon"] is None for row in rows if row["client"] == 1)
    by_scope = {row["scope"]: row["epsilon"] for row in tables.view_rows(found.views) if row["clients"] != "1"}
    assert by_scope == {"client": claimed[-1]["epsilon"], "round": None}


def test_lines_of_earlier_versions_are_read_and_one_budget_for_several_clients_is_damage():
    view = {"scope": "run", "rounds": [1, 2], "is_sum": False}
    of_client, together = ({**runs.record(0, 2), "client": None, "view": {**view, "clients": c}} for c in ([0], [0, 1]))
    for line in (runs.record(0, 2), of_client, together):
        assert as_record(line).budget is None
    for line in (runs.record(0, 2), of_client):
        assert as_record({**line, "budget": BUDGET}).as_json()["budget"] == BUDGET
    with pytest.raises(pydantic.ValidationError, match="budget: expected none for 2 clients together"):
        as_record({**together, "budget": BUDGET})


def test_no_attack_is_shown_the_budget(audited, monkeypatch):
    plan, folder, lines = audited
    epsilon = next(line["budget"]["epsilon"] for line in lines if "budget" in line)
    shown = []

    def noted(model, sent, view):
        shown.append(show(model, sent, view))
        return shown[-1]

    show = ThreatModel.show
    monkeypatch.setattr(ThreatModel, "show", noted)
    assessment.attempt.make(plan, folder, View.of_update(1, 0), plan.attacks[0])
    found = [*reachable(shown)]
    assert not any(
        isinstance(one, Budget | PrivacyBudget) or (isinstance(one, float) and one == epsilon) for one in found
    )
    # The walk would have found it.
    assert any(one == epsilon for one in reachable({"side": Budget(**lines[0]["budget"])}) if isinstance(one, float))


def test_a_capture_that_states_no_budget_that_can_be_is_refused_by_its_name(audited, tmp_path):
    plan, whole, _ = audited
    folder = RunFolder.open(shutil.copytree(whole.path, tmp_path / "run"))
    task, path = Task(View.of_update(1, 0), 0), folder.capture_path(1, 0)
    assert assess(plan, folder, task, None).budget is not None
    with safe_open(path, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    broken = {name: text.replace('"delta"', '"dalta"') for name, text in header.items()}
    assert broken != header
    save_file(tensors, path, broken)
    with pytest.raises(RunFolderError, match=r"client-000.*privacy budget that it states is none: delta"):
        assessment._budget(plan, RunFolder.open(folder.path), task.view)


def test_an_observed_app_has_none_whatever_it_states(audited):
    plan, folder, _ = audited
    seen = RecordedView(scope="client", rounds=(1,), clients=(0,)).as_view()
    assert math.isfinite(assessment._budget(plan, folder, seen).epsilon)
    observed = replace(plan, captured=Captured((1,), (0,), 1, (), ("delta",), (), None, ()))
    assert assessment._budget(observed, folder, seen) is None
