"""Budgets that clients' defenses claim, checked on a run: stored, resumed, judged and shown."""

import json

import audits
import pytest
from fedsim_defenses.dp_noise import DPNoise

from fedsim.audit import budgets, mechanism
from fedsim.defense import ONE_IMAGE, PrivacyBudget
from fedsim.errors import RunFolderError
from fedsim.federation import training
from fedsim.recording.run_folder import RunFolder
from fedsim.report import mechanisms, reading, rendering
from fedsim.simulation import Progress
from fedsim.verdicts.judge import Judge

pytestmark = pytest.mark.usefixtures("without_report")

DRAWS = 100
SMALL = {"name": "vit_nano", "kwargs": {"depth": 1, "embed_dim": 16, "num_heads": 1}}
DP = {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 2.0}}
OVERCLAIMS = {"name": "stubs:Overclaims", "params": {"epsilon": 0.5}}


@pytest.fixture
def run(tiny_plan, run_folder):
    """Return a function: defenses -> the plan and the folder of a run of two rounds with them."""

    def make(*defenses, **parts):
        plan = tiny_plan(model=SMALL, attacks=[], federation={"rounds": 2}, defenses=list(defenses), **parts)
        folder = run_folder(plan)
        audits.simulate(plan, folder, Progress())
        return plan, RunFolder.open(folder.path)

    return make


def audit(plan, folder, draws=DRAWS):
    audits.audit(plan, folder, Progress(), None, draws)
    return RunFolder.open(folder.path).read_mechanisms()


def test_each_claim_of_a_client_is_checked_on_its_first_update(run):
    plan, folder = run(
        {**DP, "clients": [0]}, {**OVERCLAIMS, "clients": [1]}, {"name": "stubs:Budgets", "clients": [1]}
    )
    lines = audit(plan, folder)
    assert [(line.client, line.position, line.round, line.status) for line in lines] == [
        (0, 0, 1, "not refuted"),
        (1, 1, 1, "refuted"),
        (1, 2, 1, "not checked"),
    ]
    honest, refuted, idle = lines
    one_round = DPNoise(**DP["params"]).budget(plan.context_of(0))
    assert honest.claimed.epsilon == one_round.epsilon and honest.defense.params["noise_multiplier"] == 2.0
    assert 0 <= honest.lower_bound < honest.claimed.epsilon and honest.draws == DRAWS
    assert refuted.claimed.epsilon == 0.5 < refuted.lower_bound
    assert "protect_update" in idle.message and idle.lower_bound is None and idle.draws == 0
    # Three claims share 5 %.
    assert honest.confidence == pytest.approx(1 - 0.05 / 3)


def test_a_defense_is_checked_on_what_those_before_it_leave(run, monkeypatch):
    given = []

    def noted(defense, update, *rest):
        given.append(update)
        return None

    monkeypatch.setattr(mechanism, "check_mechanism", noted)
    plan, folder = run({"name": "stubs:Halves", "clients": [0]}, {**DP, "clients": [0]})
    lines = audit(plan, folder)
    clean, _ = training.unprotected(training.prepared(plan, 0, 1, folder.read_global(1, 0)))
    assert [line.status for line in lines] == ["failed"]
    assert given[0].norm() == pytest.approx(clean.norm() / 2, rel=1e-5)


def test_lines_are_kept_unless_more_draws_are_asked_for_or_the_check_failed(run):
    plan, folder = run({**DP, "clients": [0]})
    (first,) = audit(plan, folder)
    assert audit(plan, folder) == [first]
    (more,) = audit(plan, folder, DRAWS + 20)
    assert more.draws == DRAWS + 20
    assert audit(plan, folder) == [more]
    lines = [{**more.as_json(), "status": "failed", "message": "died"}]
    (folder.path / "mechanisms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (again,) = audit(plan, folder)
    assert again.status == "not refuted"


def test_a_defense_of_local_steps_is_checked_on_one_step(run):
    plan, folder = run({"name": "dp_sgd", "clients": [0]}, training={"sampling": "poisson", "batch_size": 4})
    (line,) = audit(plan, folder)
    assert (line.status, line.release, line.draws) == ("not refuted", "step", DRAWS)
    assert line.claimed.neighbors == ONE_IMAGE and 0 <= line.lower_bound < line.claimed.epsilon
    (shown,) = mechanisms.claims([line])
    assert shown.claimed == f"{line.claimed.epsilon:.3g} (delta 1e-05, {ONE_IMAGE}; one step on all images)"


def test_a_defense_of_local_steps_that_an_earlier_version_could_not_check_is_checked(run, monkeypatch):
    plan, folder = run({"name": "dp_sgd", "clients": [0]}, training={"sampling": "poisson", "batch_size": 4})
    found = mechanism.MechanismCheck(
        "not checked", PrivacyBudget(4.0, 1e-5, ONE_IMAGE), "it costs too much", release="step"
    )
    monkeypatch.setattr(budgets.private_step, "check_step", lambda *given: found)
    (line,) = audit(plan, folder)
    old = {name: value for name, value in line.as_json().items() if name != "release"}
    folder.mechanisms.rewrite([{**old, "message": "it does nothing in protect_update"}])
    (again,) = audit(plan, folder)
    assert (again.message, again.release) == ("it costs too much", "step")
    monkeypatch.setattr(budgets.private_step, "check_step", None)
    assert audit(plan, folder) == [again], "a current line is left alone"


def test_an_interrupted_check_goes_on_where_it_stopped(run, monkeypatch):
    plan, folder = run({**DP, "clients": [0]}, {**OVERCLAIMS, "clients": [1]})
    honest = mechanism.check_mechanism

    def interrupted(defense, *rest):
        if not isinstance(defense, DPNoise):
            raise KeyboardInterrupt
        return honest(defense, *rest)

    monkeypatch.setattr(mechanism, "check_mechanism", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit(plan, folder)
    (kept,) = RunFolder.open(folder.path).read_mechanisms()
    monkeypatch.setattr(mechanism, "check_mechanism", honest)
    lines = audit(plan, folder)
    assert lines[0] == kept and lines[1].status == "refuted"


def test_a_check_that_fails_is_a_line(run, monkeypatch):
    plan, folder = run({**OVERCLAIMS, "clients": [1]})
    monkeypatch.setattr(type(plan.defenses[0].defense), "protect_update", lambda *given: 1 / 0)
    (line,) = audit(plan, folder)
    assert line.status == "failed" and "ZeroDivisionError" in line.message and line.claimed is None


def test_the_report_and_the_summary_state_the_claims(run):
    plan, folder = run({**DP, "clients": [0]}, {**OVERCLAIMS, "clients": [1]})
    audit(plan, folder)
    rendering.render(folder.path)
    page, text = ((folder.path / name).read_text() for name in ("report.html", "report.md"))
    assert "Claims checked" in page and "| 1 | stubs:Overclaims | 0.5 (delta 1e-05, replace) |" in text
    claims = json.loads((folder.path / "summary.json").read_text())["claims"]
    assert [(claim["client"], claim["verdict"]) for claim in claims] == [(0, "not refuted"), (1, "refuted")]
    assert (folder.path / "tables" / "claims.csv").read_text().startswith("client,round,defense,")
    first = (folder.path / "report.md").read_bytes()
    rendering.render(folder.path)
    assert (folder.path / "report.md").read_bytes() == first


def test_no_budget_counts_of_a_client_with_a_refuted_claim(run):
    plan, folder = run({**DP, "clients": [0]}, {**OVERCLAIMS, "clients": [1]})
    audit(plan, folder)
    found = reading.read(folder.path)
    assert found.refuted == {1} == Judge.of(found).refuted


def test_lines_of_another_run_are_left_out_of_the_report(run):
    plan, folder = run({**OVERCLAIMS, "clients": [1]})
    (line,) = audit(plan, folder)
    (folder.path / "mechanisms.jsonl").write_text(json.dumps({**line.as_json(), "run": "other-12345678"}) + "\n")
    found = reading.read(folder.path)
    assert not found.mechanisms and any("of the run other-12345678" in note for note in found.notes)


def test_a_damaged_line_is_refused(run):
    plan, folder = run({**DP, "clients": [0]})
    (folder.path / "mechanisms.jsonl").write_text('{"round": 0}\n')
    with pytest.raises(RunFolderError, match=r"mechanisms\.jsonl: line 1 is damaged"):
        budgets.check_budgets(plan, folder, DRAWS)
