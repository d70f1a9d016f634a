"""Attacks on clients with a defense, told of it and not: who is told what, what the records say, and what verdicts rest on."""

import audits
import pytest

from fedsim.errors import PluginError, ScenarioError
from fedsim.recording.records import check_records
from fedsim.report import reading, summary
from fedsim.report.analysis import Analysis
from fedsim.report.limitations import limits
from fedsim.report.tables import record_rows
from fedsim.simulation import Progress
from fedsim.verdicts.scope import Scope

NOISE = {"name": "dp_noise", "clients": [1, 2], "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}}
TOLD = {
    "attacks": [{"name": "stubs:Told"}],
    "defenses": [NOISE],
    "threat": {"grants": ["batch_size", "normalization", "defenses"]},
    "federation": {"clients": 4, "rounds": 1},
}


@pytest.fixture
def simulate(tiny_plan, run_folder):
    """Return a function: name of the folder, parts of a scenario -> plan, run folder, lines of records.jsonl."""

    def run(name="run", **parts):
        plan = tiny_plan(**{**TOLD, **parts})
        folder = run_folder(plan, name)
        return plan, folder, audits.simulate(plan, folder, Progress())

    return run


def by_variant(records):
    return {(r["client"], r["attack"].get("variant")): r for r in records}


def test_a_client_with_a_defense_is_attacked_by_one_that_is_told_of_it_and_by_one_that_is_not(simulate):
    _, folder, records = simulate()
    found = by_variant(records)
    assert sorted(found) == [(0, "aware"), (1, "aware"), (1, "plain"), (2, "aware"), (2, "plain"), (3, "aware")]
    for client in (1, 2):
        aware, plain = found[client, "aware"], found[client, "plain"]
        assert aware["trace"] == {"told": ["dp_noise"], "aware": True} and "defenses" in aware["grants"]
        assert plain["trace"] == {"told": None, "aware": False} and plain["grants"] == ["batch_size", "normalization"]
        assert plain["attack"]["params"] == aware["attack"]["params"] and plain["seed"] != aware["seed"]
        assert plain["artifacts"]["finding"] != aware["artifacts"]["finding"]
        assert all("wrong_update" in one["controls"] for one in (aware, plain))
    for client in (0, 3):
        assert found[client, "aware"]["trace"]["told"] == []
    rows = record_rows(check_records(folder.path, records), Analysis(reading.read(folder.path)).naming)
    assert {(row["attack"], row["variant"]) for row in rows} == {
        ("stubs:Told", "aware"),
        ("stubs:Told (plain)", "plain"),
    }


def test_no_plain_variant_is_run_where_it_could_be_no_other_attack(simulate, tiny_plan):
    assert {r["attack"].get("variant") for r in simulate(threat={"grants": ["batch_size"]})[2]} == {None}
    for parts in ({"defenses": []}, {"audit": {"variants": ["aware"]}}):
        assert [planned.variant for planned in tiny_plan(**{**TOLD, **parts}).attacks] == [None]
    for number, parts in enumerate(
        (
            {"attacks": [{"name": "stubs:Told", "params": {"aware": False}}]},
            {"attacks": [{"name": "stubs:NeedsDefenses"}]},
            {"attacks": ["blind_guess"], "threat": {"grants": ["batch_size", "defenses", "auxiliary_data"]}},
        )
    ):
        plan = tiny_plan(**{**TOLD, **parts})
        assert [planned.variant for planned in plan.attacks] == ["only"], number


@pytest.mark.parametrize("variants", [["aware", "plain"], ["aware"]])
def test_a_plain_variant_that_is_listed_is_refused_since_it_would_pass_for_another_attack(tiny_plan, variants):
    both = [{"name": "stubs:Told", "params": {"aware": False}}, {"name": "stubs:Told"}]
    parts = {**TOLD, "attacks": both, "audit": {"variants": variants}}
    with pytest.raises(ScenarioError, match=r"attacks\.0: stubs:Told .* is the plain variant of attacks\.1"):
        tiny_plan(**parts)
    for untold in ({"threat": {"grants": ["batch_size"]}}, {"defenses": []}):
        assert len(tiny_plan(**{**parts, **untold}).attacks) == 2


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ("raises", r"plain of stubs:BadPlain .* raised RuntimeError: no"),
        ("text", "plain of stubs:BadPlain .* returned 'x'"),
    ],
)
def test_a_plain_variant_that_cannot_be_made_is_the_plug_ins_fault(tiny_plan, plain, said):
    with pytest.raises(PluginError, match=rf"attacks\.0: {said}"):
        tiny_plan(**{**TOLD, "attacks": [{"name": "stubs:BadPlain", "params": {"fault": plain}}]})


def test_sums_and_rounds_are_attacked_both_ways_where_any_of_their_clients_carries_a_defense(simulate):
    _, _, records = simulate(attacks=[{"name": "stubs:ToldOfRound"}, {"name": "stubs:Told"}])
    wide = [r for r in records if r["client"] is None]
    assert [(r["attack"]["variant"], r["trace"]["told"]) for r in wide] == [("aware", ["dp_noise"]), ("plain", None)]
    _, _, sums = simulate("sums", threat={"grants": ["batch_size", "defenses"], "sees": "aggregate"})
    assert [(r["attack"]["variant"], r["trace"]["told"]) for r in sums] == [("aware", ["dp_noise"]), ("plain", None)]


def test_an_audit_again_leaves_both_alone_and_one_with_other_variants_goes_on(simulate, tiny_plan):
    parts = {"attacks": [{"name": "stubs:Guess"}, {"name": "stubs:Told"}]}
    plan, folder, records = simulate(**parts)
    before = folder.records.path.read_bytes()
    audits.audit(plan, folder, Progress())
    assert folder.records.path.read_bytes() == before
    files = {r["artifacts"]["finding"]: (folder.path / r["artifacts"]["finding"]).stat().st_mtime_ns for r in records}
    # The plain one has a name of its own, so that another attack before it in the scenario makes nothing again.
    assert sorted(name for name in files if "plain" in name) == [
        f"artifacts/round-0001/client-00{client}/{name}-plain.safetensors"
        for client in (1, 2)
        for name in ("00-stubs.Guess", "01-stubs.Told")
    ]
    kept = [line for line in folder.records.read() if line["attack"].get("variant") != "plain"]
    folder.records.rewrite(kept)
    again = audits.audit(plan, folder, Progress())
    assert [{**one, "seconds": 0} for one in again] == [{**one, "seconds": 0} for one in records]
    assert files == {name: (folder.path / name).stat().st_mtime_ns for name in files}


def test_a_record_of_a_plain_variant_that_is_missing_is_missing(simulate):
    _, folder, _ = simulate()
    assert Scope.of(reading.read(folder.path)).is_whole
    lines = folder.records.read()
    for lost in ("aware", "plain"):
        folder.records.rewrite([one for one in lines if (one["client"], one["attack"]["variant"]) != (2, lost)])
        assert Scope.of(reading.read(folder.path)).missing == {(2, "stubs:Told"): (1,)}
    folder.records.rewrite([one for one in lines if one["attack"]["variant"] == "aware"])
    assert Scope.of(reading.read(folder.path)).missing == {(1, "stubs:Told"): (1,), (2, "stubs:Told"): (1,)}


def test_a_missing_plain_variant_of_a_round_is_missing(simulate):
    _, folder, _ = simulate(attacks=[{"name": "stubs:ToldOfRound"}])
    assert Scope.of(reading.read(folder.path)).missing_views == 0
    folder.records.rewrite([one for one in folder.records.read() if one["attack"]["variant"] == "aware"])
    assert Scope.of(reading.read(folder.path)).missing_views == 1


def test_a_plain_variant_that_fails_alone_leaves_the_client_inconclusive(simulate):
    _, folder, records = simulate(attacks=[{"name": "stubs:Told", "params": {"fails_plain": True}}])
    found = by_variant(records)
    assert found[1, "plain"]["status"] == "failed" and found[1, "aware"]["status"] == "found"
    lines = {
        (line["client"], line["attack"]): line for line in summary.of(Analysis(reading.read(folder.path)))["attacks"]
    }
    assert lines[1, "stubs:Told (plain)"]["verdict"] == "inconclusive"
    assert "it failed" in lines[1, "stubs:Told (plain)"]["reason"]


TURNED = {
    "attacks": ["patch_embedding"],
    "defenses": [{"name": "stubs:Turned", "clients": [1]}],
    "audit": {"calibrate": "auto"},
}


def test_each_variant_is_proven_by_calibrations_of_its_own_and_the_stronger_one_decides(simulate):
    _, folder, _ = simulate(**TURNED)
    result = summary.of(Analysis(reading.read(folder.path)))
    lines = {(one["client"], one["attack"]): one for one in result["attacks"] if one["kind"] == "images"}
    assert [key for key in lines if key[0] == 1] == [(1, "patch_embedding"), (1, "patch_embedding (plain)")]
    for attack in ("patch_embedding", "patch_embedding (plain)"):
        assert lines[1, attack]["verdict"] == "resisted"
        assert " that the auditor made itself" in lines[1, attack]["reason"]
    calibrations = folder.calibrations.read()
    assert [(one["attack"]["variant"], "defenses" in one["grants"]) for one in calibrations] == [
        ("aware", True),
        ("plain", False),
    ]
    folder.calibrations.rewrite(calibrations[:1])
    result = summary.of(Analysis(reading.read(folder.path)))
    verdicts = {
        one["attack"]: one["verdict"] for one in result["attacks"] if (one["client"], one["kind"]) == (1, "images")
    }
    assert verdicts == {"patch_embedding": "resisted", "patch_embedding (plain)": "inconclusive"}
    # Were the plain one to find what the aware one does not, the client would leak.
    changed = folder.records.read()
    good = next(one for one in changed if one["client"] == 0)
    for one in changed:
        if one["client"] == 1 and one["attack"]["variant"] == "plain":
            one.update({name: good[name] for name in ("scores", "controls", "best_example")})
    folder.records.rewrite(changed)
    assert summary.of(Analysis(reading.read(folder.path)))["clients"]["1"]["verdict"] == "leaks"


def test_a_plain_variant_that_resists_does_not_make_up_for_an_aware_one_that_cannot_tell(simulate):
    _, folder, _ = simulate(**{**TURNED, "attacks": [{"name": "stubs:RefusesTold"}]})
    result = summary.of(Analysis(reading.read(folder.path)))
    verdicts = {
        one["attack"]: one["verdict"] for one in result["attacks"] if (one["client"], one["kind"]) == (1, "images")
    }
    assert verdicts == {"stubs:RefusesTold": "inconclusive", "stubs:RefusesTold (plain)": "resisted"}
    assert result["clients"]["1"]["verdict"] == "inconclusive"


def test_variants_that_are_asked_for_later_are_missing_until_they_are_made(simulate, tiny_plan):
    _, folder, _ = simulate(audit={"variants": ["aware"]})
    both = tiny_plan(**TOLD)
    folder.write_scenario(both.scenario)
    assert Scope.of(reading.read(folder.path)).missing == {(1, "stubs:Told"): (1,), (2, "stubs:Told"): (1,)}
    audits.audit(both, folder, Progress())
    assert Scope.of(reading.read(folder.path)).is_whole


def test_plain_variants_that_are_not_asked_for_any_more_are_dropped(simulate, tiny_plan):
    _, folder, records = simulate()
    plan = tiny_plan(**{**TOLD, "audit": {"variants": ["aware"]}})
    folder.write_scenario(plan.scenario)
    audits.audit(plan, folder, Progress())
    found = folder.records.read()
    assert not any(one["attack"].get("variant") == "plain" for one in found)
    assert (len(records), len(found)) == (6, 4)


def test_a_label_that_would_be_taken_for_a_plain_variant_is_refused(tiny_plan):
    with pytest.raises(
        ScenarioError, match=r"attacks\.0\.label: 'x \(plain\)' is what a plain variant would be called"
    ):
        tiny_plan(**{**TOLD, "attacks": [{"name": "stubs:Told", "label": "x (plain)"}]})


def test_without_the_grant_the_report_says_that_attacks_were_not_told(simulate):
    told = reading.read(simulate("told")[1].path)
    untold = reading.read(simulate("untold", threat={"grants": ["batch_size"]})[1].path)
    bare = reading.read(simulate("bare", threat={"grants": ["batch_size"]}, defenses=[])[1].path)
    said = [
        any(text.startswith("Attacks were not told of") for text in limits(run, ())) for run in (told, untold, bare)
    ]
    assert said == [False, True, False]
