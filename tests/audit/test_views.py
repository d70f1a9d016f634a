"""Attacks that look at several updates at once: all of a round, of a client, or of the run."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import audits
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim import simulation
from fedsim.applicability import Applicability, Setting, together
from fedsim.audit.scores import by_view, joined, scores_of
from fedsim.audit.threat import ThreatModel
from fedsim.errors import ScenarioError
from fedsim.exchange import SCOPES, Observation, TrainingKnowledge, Update, View
from fedsim.planning import preparation as planning
from fedsim.recording.records import ViewRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, summary
from fedsim.report.analysis import Analysis
from fedsim.simulation import Progress
from fedsim.testing import observation, observation_of, random_images
from fedsim.verdicts.several import view_entries
from fedsim.views import views

ALL = [{"name": f"stubs:{name}"} for name in ("SeesRound", "SeesClient", "SeesRun", "Guess")]
PARTS = {
    "attacks": ALL,
    "threat": {"grants": ["batch_size", "labels"]},
    "training": {"batch_size": 2},
    "federation": {"clients": 3, "rounds": 2},
}


@pytest.fixture
def simulate(tiny_plan, run_folder):
    """Return a function: name of the folder, parts of a scenario -> plan, run folder, lines of records.jsonl."""

    def run(name="run", **parts):
        plan = tiny_plan(**{**PARTS, **parts})
        folder = run_folder(plan, name)
        return plan, folder, audits.simulate(plan, folder, Progress())

    return run


def of(records, name):
    return [record for record in records if record["attack"]["name"] == f"stubs:{name}"]


def view(scope, rounds, clients):
    return {"scope": scope, "rounds": rounds, "clients": clients, "is_sum": False}


def test_each_scope_is_shown_its_updates_and_scored_against_all_that_is_behind_them(simulate):
    plan, folder, records = simulate()
    everything = [[round, client] for round in (1, 2) for client in (0, 1, 2)]
    assert [(r["view"], r["trace"]["seen"]) for r in of(records, "SeesRound")] == [
        (view("round", [round], [0, 1, 2]), [place for place in everything if place[0] == round]) for round in (1, 2)
    ]
    assert [(r["view"], r["trace"]["seen"]) for r in of(records, "SeesClient")] == [
        (view("client", [1, 2], [client]), [place for place in everything if place[1] == client])
        for client in (0, 1, 2)
    ]
    (of_run,) = of(records, "SeesRun")
    assert (of_run["view"], of_run["trace"]["seen"]) == (view("run", [1, 2], [0, 1, 2]), everything)
    wide = [record for record in records if record["client"] is None]
    assert all(record["round"] == record["view"]["rounds"][-1] and record["trace"]["client"] == -1 for record in wide)
    for record in of(records, "SeesRound"):
        truth = plan.truth([(record["round"], client) for client in (0, 1, 2)])
        assert len(record["scores"]["label_recall"]["per_example"]) == len(truth.labels) == 6
        assert record["scores"]["label_recall"]["value"] == 1.0 > record["controls"]["chance"]["label_recall"]
        assert record["cautions"] == [] and "wrong_update" in record["controls"], "the other round has other images"
        assert (folder.path / record["artifacts"]["finding"]).is_file()
    assert len({record["artifacts"]["finding"] for record in records}) == len(records) == 12


def test_the_records_are_the_same_from_worker_processes_and_when_audited_again(simulate, quick_workers):
    plan, folder, alone = simulate("alone")
    _, _, pooled = simulate("pooled", audit={"processes": 2, "calibrate": "none"})
    assert timeless(pooled) == timeless(alone)
    content = folder.records.path.read_bytes()
    assert audits.audit(plan, RunFolder.open(folder.path), Progress()) == alone
    assert folder.records.path.read_bytes() == content


def timeless(records):
    return [{**record, "seconds": 0} for record in records]


def test_an_attempt_on_fewer_updates_gives_way_once_there_are_more(simulate):
    plan, folder, before = simulate(audit={"rounds": [1]})
    assert of(before, "SeesRun")[0]["view"] == view("run", [1], [0, 1, 2])
    raw = {**plan.scenario.resolved(), "audit": {"processes": 0, "calibrate": "none"}}
    after = audits.audit(planning.make(type(plan.scenario)(**raw)), RunFolder.open(folder.path), Progress())
    (of_run,) = of(after, "SeesRun")
    assert of_run["view"] == view("run", [1, 2], [0, 1, 2]) and of_run["trace"]["seen"][-1] == [2, 2]
    assert len(of(after, "SeesClient")) == 3 and len(of(after, "SeesRound")) == 2


def test_a_failed_attempt_is_a_record_with_the_reason_and_is_made_again_by_hand(simulate, monkeypatch):
    import stubs

    plan, folder, records = simulate(attacks=[{"name": "stubs:SeesRun", "params": {"raises": True}}])
    (failed,) = records
    assert failed["status"] == "failed" and failed["message"].startswith("RuntimeError: of several updates")
    monkeypatch.setattr(stubs.SeesRun, "run", lambda self, seen, generator: stubs.Finding(labels=seen.labels))
    (again,) = audits.audit(plan, RunFolder.open(folder.path), Progress())
    assert again["status"] == "found" and again["scores"]["label_recall"]["value"] == 1.0


def test_the_report_has_a_section_of_its_own_and_its_leaks_count(simulate):
    _, folder, _ = simulate(attacks=ALL[:1])
    read = reading.read(folder.path)
    assert len(read.views) == 2 and not read.records
    analysis = Analysis(read)
    (entry,) = analysis.views
    assert (entry.verdict, entry.kind, entry.attempts) == ("leaks", "labels", (2, 0, 0)) and analysis.verdict == "leaks"
    assert analysis.headline == (
        "stubs:SeesRound finds the labels of 2 of 2 rounds, most in 3 clients in round 1: Label recall 1.00 where the best "
        f"blind guess reaches {analysis.views[0].peak[1]:.2f}."
    )
    found = json.loads(summary.as_json(analysis))
    assert [one["verdict"] for one in found["views"]] == ["leaks"] and found["views"][0]["scope"] == "round"
    from fedsim import report

    page = report.render(folder.path).read_text()
    assert "Attacks on several updates at once" in page
    text = (folder.path / "report.md").read_text()
    assert "| stubs:SeesRound | all of a round | none | 2 | Label recall | 1.00 |" in text
    assert "so nothing can be said about leakage" not in text + page
    assert (folder.path / "tables" / "views.csv").read_text().count("stubs:SeesRound,round,") == 2


def test_one_that_finds_nothing_is_inconclusive_and_never_resisted(simulate, monkeypatch):
    import stubs

    monkeypatch.setattr(
        stubs.SeesRun, "run", lambda self, seen, generator: stubs.Finding(labels=(seen.labels + 1) % seen.num_classes)
    )
    _, folder, _ = simulate(attacks=ALL[2:3])
    analysis = Analysis(reading.read(folder.path))
    assert analysis.verdict == "inconclusive" and "not calibrated" in analysis.views[0].reason
    assert analysis.headline.startswith(
        "Inconclusive for the labels by stubs:SeesRun (all of a run: nothing shows that"
    )


def test_failed_attempts_are_told_with_their_reason_and_keep_the_verdict_open(simulate):
    _, folder, _ = simulate(attacks=[{"name": "stubs:SeesRun", "params": {"raises": True}}, ALL[0]])
    analysis = Analysis(reading.read(folder.path))
    by_attack = {entry.attack: entry for entry in analysis.views}
    assert by_attack["stubs:SeesRound"].verdict == "leaks" and by_attack["stubs:SeesRun"].verdict == "inconclusive"
    assert by_attack["stubs:SeesRun"].reason.startswith("no finding: RuntimeError")
    assert analysis.verdict == "leaks" and "RuntimeError: of several updates" in analysis.headline
    from fedsim import report

    page = report.render(folder.path).read_text()
    assert "failed: RuntimeError: of several updates" in page
    assert "failed: RuntimeError: of several updates" in (folder.path / "report.md").read_text()


def entry_of(**fields):
    record = ViewRecord.model_validate(
        {
            "round": 1,
            "client": None,
            "attack": {"name": "all", "recovers": ["images"]},
            "status": "found",
            "view": {"scope": "round", "rounds": [1], "clients": [0, 1]},
            **fields,
        }
    )
    (entry,) = view_entries([record])
    return entry


def score(value, worse="higher"):
    return {"value": value, "per_example": [value], "worse": worse}


def test_the_metric_that_shows_most_stands_for_its_kind_and_one_that_is_not_rated_for_none():
    controls = {"grey": {"psnr": 12.9, "ssim": 0.06, "fft2d": 0.2}}
    assert entry_of(scores={"psnr": score(13.0), "ssim": score(0.9)}, controls=controls).metric == "ssim"
    found = entry_of(scores={"fft2d": score(0.1, "lower"), "psnr": score(50.0)}, controls=controls)
    assert (found.metric, found.verdict) == ("psnr", "leaks")


def test_one_image_that_leaks_is_told_with_its_own_score():
    example = {"psnr": {"index": 3, "value": 60.0, "control": 12.0, "floor": 14.0, "luck": 0.0}}
    controls = {"grey": {"psnr": 12.0}}
    found = entry_of(scores={"psnr": score(11.2)}, controls=controls, best_example=example)
    assert found.verdict == "leaks"
    assert "one image at PSNR 60.0 dB where the best blind guess reaches 12.0 dB" in found.written


def test_a_little_beyond_a_blind_guess_counts_only_beside_another_view():
    controls = {"grey": {"psnr": 12.0}}
    alone = entry_of(scores={"psnr": score(14.0)}, controls=controls)
    assert alone.verdict == "inconclusive" and "no other view" in alone.reason
    beside = entry_of(scores={"psnr": score(14.0)}, controls={**controls, "wrong_update": {"psnr": 11.0}})
    assert beside.verdict == "partial"
    assert (
        entry_of(scores={"psnr": score(14.0)}, controls={**controls, "wrong_update": {"psnr": 14.0}}).is_leak is False
    )


def test_what_leaks_of_a_client_is_its_leak_and_a_whole_run_is_not_said_to_lack_attempts(simulate):
    _, folder, _ = simulate(attacks=[ALL[1], ALL[0]])
    analysis = Analysis(reading.read(folder.path))
    assert {client: verdict.kinds["labels"] for client, verdict in analysis.client_verdicts.items()} == {
        0: "leaks",
        1: "leaks",
        2: "leaks",
    }
    assert analysis.scope.is_whole and "have no record" not in analysis.headline
    assert "3 of 3 clients" in analysis.headline
    folder.records.rewrite(folder.records.read()[1:])
    lacking = Analysis(reading.read(folder.path))
    assert (
        lacking.scope.missing_views == 1 and "1 attempts that the scenario asks for have no record" in lacking.headline
    )


def test_a_view_of_a_round_does_not_make_its_clients_audited_one_by_one(simulate):
    _, folder, _ = simulate(attacks=[ALL[0], ALL[3]], audit={"clients": [0]})
    scope = Analysis(reading.read(folder.path)).scope
    assert scope.audited_clients == (0,) and not scope.is_whole and "audited are 1 of 3 clients" in scope.written()


def test_a_view_that_lacked_its_control_because_of_a_failure_in_another_round_is_made_again(simulate, monkeypatch):
    import stubs

    run = stubs.SeesRun.run

    def fails_in_2(self, seen, generator):
        if seen.update.round == 2:
            raise RuntimeError("in round 2")
        return run(self, seen, generator)

    with monkeypatch.context() as patched:
        patched.setattr(stubs.SeesRun, "run", fails_in_2)
        plan, folder, before = simulate(attacks=ALL[:1])
    assert [record["status"] for record in before] == ["found", "failed"] and "wrong_update" not in before[0][
        "controls"
    ]
    after = audits.audit(plan, RunFolder.open(folder.path), Progress())
    assert [record["status"] for record in after] == ["found"] * 2
    assert all("wrong_update" in record["controls"] for record in after)


def test_what_a_view_is_made_of_is_one_large_batch_a_round(simulate, monkeypatch):
    import stubs

    for made_for in (stubs.SeesRound, stubs.SeesClient):
        monkeypatch.setattr(made_for, "applies", Applicability(batch_size=2), raising=False)
    _, _, records = simulate(attacks=ALL[:2])
    assert all(record["inapplicable"] == [] for record in of(records, "SeesClient"))
    assert {tuple(record["inapplicable"]) for record in of(records, "SeesRound")} == {
        ("it is made for 2 images in a local step, and here are 6",)
    }


def test_an_attack_that_is_not_made_for_a_view_says_so():
    found = entry_of(
        scores={"psnr": score(11.0)}, controls={"grey": {"psnr": 12.0}}, inapplicable=["it is made for 1 image"]
    )
    assert (found.verdict, found.reason) == ("inconclusive", "it is made for 1 image")


def test_a_narrower_audit_forgets_no_leak(simulate):
    plan, folder, before = simulate(attacks=ALL[1:2])
    raw = {**plan.scenario.resolved(), "audit": {"processes": 0, "calibrate": "none", "clients": [0]}}
    after = audits.audit(planning.make(type(plan.scenario)(**raw)), RunFolder.open(folder.path), Progress())
    assert after == before and len(after) == 3


def test_a_view_of_a_client_with_other_images_is_the_wrong_update(simulate):
    _, _, records = simulate(attacks=ALL[1:2])
    assert all("wrong_update" in record["controls"] for record in records)


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "update"},
        {"rounds": [2]},
        {"rounds": [1, 2]},
        {"clients": [2, 1, 0]},
        {"clients": [0, 0]},
        {"scope": "client"},
        {},
    ],
)
def test_a_view_that_contradicts_itself_is_refused(simulate, change):
    plan, folder, records = simulate(attacks=ALL[:1], federation={"clients": 3, "rounds": 1})
    folder.records.rewrite([{**records[0], "view": {**records[0]["view"], **change}}])
    if not change:
        assert audits.audit(plan, RunFolder.open(folder.path), Progress()) == records
        return
    with pytest.raises(simulation.RunFolderError, match="line 1 is damaged"):
        audits.audit(plan, RunFolder.open(folder.path), Progress())


def test_images_that_defenses_changed_count_as_found_where_a_view_finds_them(simulate, monkeypatch):
    """Every client mirrors its images; the attack returns exactly what was trained on."""
    import stubs

    plan, folder, _ = simulate(
        attacks=ALL[:1], defenses=[{"name": "stubs:Rearranges"}], federation={"clients": 2, "rounds": 1}
    )
    truth = plan.truth([(1, 0), (1, 1)])
    mirrored = truth.images.flip(-1)
    scored = scores_of(plan, folder, View((1,), (0, 1), "round"), truth, stubs.Finding(images=mirrored), None)
    found, stated = by_view(
        plan, folder, View((1,), (0, 1), "round"), truth, stubs.Finding(images=mirrored), None, scored
    )
    assert stated.other_pictures and stated.inputs == len(truth.images)
    assert joined([scored, *found]).scores["psnr@trained"].value > 100 > scored.scores["psnr"].value


def test_a_record_of_clients_that_were_not_captured_is_refused(simulate):
    plan, folder, records = simulate(attacks=ALL[:1])
    folder.records.rewrite([{**records[0], "view": {**records[0]["view"], "clients": [0, 1, 2, 7]}}])
    with pytest.raises(simulation.RunFolderError, match=r"line 1 is of client 7, but the scenario has 3"):
        audits.audit(plan, RunFolder.open(folder.path), Progress())


@pytest.mark.parametrize("counts", [(1, 3), (0, 2)], ids=["reported", "not reported"])
def test_the_recipe_of_several_rounds_has_the_mean_learning_rate(counts):
    """What two rounds of one step each sent together is their weighted mean gradient, times that rate."""
    gradient, rates = torch.tensor([1.0, -2.0]), (0.4, 0.1)
    members = [
        Observation(
            Update(round, 0, "delta", {"weight": -rate * gradient}, count),
            lambda: torch.nn.Linear(2, 1),
            (3, 4, 4),
            2,
            training=TrainingKnowledge("sgd", rate, 0.0, 0.0, 1, None),
        )
        for round, rate, count in zip((1, 2), rates, counts, strict=True)
    ]
    seen = observation_of(members)
    torch.testing.assert_close(seen.update.tensors["weight"] / -seen.training.learning_rate, gradient)
    alone = observation_of([replace(member, training=None) for member in members])
    assert alone.training is None


def test_a_client_that_failed_in_a_round_is_left_out_of_the_view_of_that_round():
    captured = {1: (0, 2), 2: (0, 1, 2), 3: ()}
    assert views("round", captured, (0, 1)) == [View((1,), (0, 2), "round"), View((2,), (0, 1, 2), "round")]
    assert views("client", captured, (0, 1)) == [View((1, 2), (0,), "client"), View((2,), (1,), "client")]
    assert views("run", captured, (0,)) == [View((1, 2), (0, 1, 2), "run")]
    assert views("run", {3: ()}, (0,)) == []


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.sampled_from(SCOPES)), min_size=2, unique=True))
def test_views_sort_by_their_last_round_and_single_updates_first(places):
    made = sorted(View((round,), (client,), scope) for round, client, scope in places)
    assert [v.round for v in made] == sorted(v.round for v in made)
    for first, second in pairwise(made):
        assert first.round < second.round or SCOPES.index(first.scope) <= SCOPES.index(second.scope)
    assert sorted(reversed(made)) == made


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_the_update_of_several_is_their_mean_weighted_by_examples(counts, is_sum):
    seen = observation(random_images(torch.Generator().manual_seed(0)), grants=[])
    name, tensor = next(iter(seen.update.tensors.items()))
    own = [Update(1, client, "gradient", {name: tensor * (client + 1)}, count) for client, count in enumerate(counts)]
    members = [type(seen)(update, seen.model, seen.image_shape, seen.num_classes) for update in own]
    found = observation_of(members, is_sum)
    expected = sum(count * (client + 1) for client, count in enumerate(counts)) / sum(counts)
    assert torch.allclose(found.update.tensors[name], tensor * expected, rtol=1e-5)
    assert (found.update.client, found.update.num_examples) == (-1, sum(counts))
    assert len(found.members) == (0 if is_sum else len(counts)) and len(found.updates) == (1 if is_sum else len(counts))


def test_an_attack_on_several_updates_is_made_for_all_their_images():
    def setting(pictures, steps):
        return Setting(pictures, 2, "gradient", steps, "sgd", False, frozenset())

    found = together([setting(2, 1), setting(3, 4)])
    assert (found.pictures, found.batch_size, found.steps) == (5, 4, 4)
    assert together([setting(2, 1), setting(None, None)]).pictures is None
    assert together([setting(7, 1)]) == setting(7, 1)


# Secure aggregation: the sum of each round alone


SUMS = {"threat": {"grants": ["batch_size", "labels"], "sees": "aggregate"}, "attacks": ALL[:1] + ALL[2:]}


def test_under_secure_aggregation_every_attack_sees_sums_and_is_scored_against_all_that_is_behind_them(simulate):
    plan, folder, records = simulate(**SUMS)
    assert [(record["attack"]["name"], record["view"]) for record in records if record["round"] == 1] == [
        (name, {**view("round", [1], [0, 1, 2]), "is_sum": True}) for name in ("stubs:SeesRound", "stubs:Guess")
    ]
    (of_run,) = of(records, "SeesRun")
    assert of_run["view"] == {**view("run", [1, 2], [0, 1, 2]), "is_sum": True}
    assert of_run["trace"]["seen"] == [[1, -1], [2, -1]], "a sum of each round, and no single update"
    assert all(record["trace"]["seen"] == [[record["round"], -1]] for record in of(records, "SeesRound"))
    for record in of(records, "SeesRound"):
        assert record["scores"]["label_recall"]["value"] == 1.0
        assert len(record["scores"]["label_recall"]["per_example"]) == 6
    content = folder.records.path.read_bytes()
    assert audits.audit(plan, RunFolder.open(folder.path), Progress()) == records
    assert folder.records.path.read_bytes() == content


def test_what_an_attack_is_shown_of_a_round_is_the_weighted_mean_of_its_updates(simulate):
    plan, folder, _ = simulate(**SUMS)
    summed = View((1,), (0, 1, 2), "round", is_sum=True)
    sent = [(folder.read_update(1, client), folder.read_global(1, client)) for client in (0, 1, 2)]
    seen = ThreatModel(plan).show(sent, summed)
    counts = [update.num_examples for update, _ in sent]
    for name, tensor in seen.update.tensors.items():
        parts = [update.tensors[name] * count / sum(counts) for (update, _), count in zip(sent, counts, strict=True)]
        assert torch.allclose(tensor, sum(parts), atol=1e-7)
    assert seen.members == () and seen.updates == (seen.update,)
    assert seen.batch_size == 6 and len(seen.labels) == 6


def test_the_report_of_sums_says_what_was_seen_and_who_can_be_told_apart(simulate):
    _, folder, _ = simulate(**SUMS)
    analysis = Analysis(reading.read(folder.path))
    assert analysis.verdict == "leaks" and analysis.scope.is_whole
    assert all(entry.looks_at.startswith("the sum") for entry in analysis.views)
    found = json.loads(summary.as_json(analysis))
    assert all(entry["is_sum"] for entry in found["views"])
    assert found["separation"] == {"0": None, "1": None, "2": None}
    from fedsim import report

    page = report.render(folder.path).read_text()
    assert "sees the weighted sum of all updates of a round" in page and "one by one" not in page
    text = (folder.path / "report.md").read_text()
    assert "| stubs:SeesRound | the sum of a round | none | 2 |" in text
    assert "real protocols may reveal more" in text and "tell no client apart" in text


def test_where_sums_are_seen_an_attack_without_any_attempt_is_missing(simulate):
    _, folder, records = simulate(**SUMS)
    folder.records.rewrite([record for record in records if record["attack"]["name"] != "stubs:Guess"])
    analysis = Analysis(reading.read(folder.path))
    assert analysis.scope.missing_views == 2 and not analysis.scope.is_whole


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"attacks": ["stubs:SeesClient"]}, "attacks.0.name: stubs:SeesClient looks at all updates of one client"),
        ({"audit": {"clients": [0]}}, "audit.clients: with threat.sees: aggregate there are only sums"),
        ({"federation": {"strategy": "FedMedian"}}, "federation.strategy: FedMedian looks at each client's update"),
        (
            {"federation": {"strategy": "DifferentialPrivacyServerSideFixedClipping"}},
            "DifferentialPrivacyServerSideFixedClipping looks at",
        ),
        (
            {
                "training": {"shares": "delta"},
                "federation": {
                    "strategy": "DifferentialPrivacyClientSideFixedClipping",
                    "strategy_params": {"noise_multiplier": 1.0, "clipping_norm": 1.0, "strategy": "FedMedian"},
                },
            },
            "federation.strategy_params.strategy: FedMedian looks at",
        ),
    ],
)
def test_what_needs_single_updates_is_refused_where_sums_are_seen(tiny_plan, parts, message):
    federation = {"strategy_params": {"noise_multiplier": 1.0, "clipping_norm": 1.0}} if "ServerSide" in message else {}
    merged = {**SUMS, **parts}
    merged["federation"] = {"clients": 3, "rounds": 2, **federation, **parts.get("federation", {})}
    with pytest.raises(ScenarioError, match=re.escape(message)):
        tiny_plan(**merged)
    tiny_plan(**{**merged, "threat": {"sees": "updates", "grants": SUMS["threat"]["grants"]}})


def test_a_runs_identity_depends_on_what_is_seen_only_where_that_is_not_the_default(tiny_plan):
    from fedsim.planning.inputs import run_id

    plain, stated, summed = (tiny_plan(threat=threat) for threat in ({}, {"sees": "updates"}, {"sees": "aggregate"}))
    assert run_id(plain.scenario) == run_id(stated.scenario) != run_id(summed.scenario)


@pytest.mark.parametrize("augment", [[], ["flip", "crop"]])
def test_copies_of_the_same_images_are_no_other_view_however_they_are_augmented(simulate, augment):
    """Two clients of four images each use them all in every round."""
    parts = {
        "data": {"name": "shapes", "samples": 8, "test_samples": 8, "auxiliary_samples": 8},
        "training": {"batch_size": 4, "augment": augment},
        "federation": {"clients": 2, "rounds": 2},
    }
    _, _, records = simulate(**{**SUMS, **parts, "attacks": ALL[:1]})
    assert len(records) == 2 and not any("wrong_update" in record["controls"] for record in records)
