"""Membership from grant to verdict: pairs of candidates, what they are scored by, and what may be claimed."""

import audits
import pytest
import torch

from fedsim.audit.threat import ThreatModel
from fedsim.errors import ScenarioError
from fedsim.exchange import View
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading
from fedsim.report.analysis import Analysis
from fedsim.scenario import parse
from fedsim.simulation import Progress

ATTACK = {"name": "fedsim_attacks.gradient_alignment:GradientAlignment"}
PARTS = {
    "name": "members",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 48, "test_samples": 24, "auxiliary_samples": 8},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "training": {"batch_size": 4},
    "threat": {"grants": ["batch_size", "normalization", "candidates"]},
    "attacks": [ATTACK],
    "audit": {"processes": 0, "metrics": ["pair_accuracy"]},
}
NOISE = {"name": "dp_noise", "clients": [2], "params": {"clip_norm": 1.0, "noise_multiplier": 1.0}}


def simulated(folder, **parts):
    plan = planning.make(parse({**PARTS, **parts}, "scenario"))
    run = RunFolder.create(folder, plan.scenario)
    return plan, run, audits.simulate(plan, run, Progress())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return plan, folder and records of two plain clients and a noisy one, over three rounds."""
    place = tmp_path_factory.mktemp("members") / "run"
    return simulated(place, federation={"clients": 3, "rounds": 3}, defenses=[NOISE])


def test_who_was_trained_on_leaks_from_plain_clients_and_not_from_under_noise(run):
    _, folder, records = run
    for record in records:
        score = record["scores"]["pair_accuracy"]
        assert len(score["per_example"]) == 4 and record["controls"]["chance"] == {"pair_accuracy": 0.5}
        assert record["client"] == 2 or score["value"] == 1.0
    found = Analysis(reading.read(folder.path))
    kinds = {client: verdict.kinds for client, verdict in found.client_verdicts.items()}
    assert kinds[0] == kinds[1] == {"membership": "leaks"} and kinds[2]["membership"] != "leaks"
    assert "membership" in found.headline


def test_the_attack_is_shown_pairs_whose_coin_the_truth_alone_knows(run):
    plan, folder, _ = run
    update, weights = folder.read_update(1, 0), folder.read_global(1, 0)
    seen, truth = ThreatModel(plan).observe(update, weights).candidates, plan.truth([(1, 0)])
    for pair, is_first in zip(seen.images, truth.firsts, strict=True):
        known = [any(torch.equal(image, own) for own in truth.images) for image in pair]
        assert known == ([True, False] if is_first else [False, True])


def test_without_the_grant_there_are_no_candidates_and_the_attack_is_refused():
    with pytest.raises(ScenarioError, match="needs the grant candidates"):
        planning.make(parse({**PARTS, "threat": {"grants": ["normalization"]}}, "scenario"))
    plan = planning.make(parse({**PARTS, "threat": {"grants": []}, "attacks": []}, "scenario"))
    assert plan.truth([(1, 0)]).firsts is None and plan.candidates([(1, 0)]) is None


@pytest.mark.parametrize(("recipe", "trained"), [({"mixup": 0.5}, "blends"), ({"augment": ["flip"]}, "changed images")])
def test_where_no_single_image_was_trained_on_as_it_is_the_grant_is_refused(recipe, trained):
    (key,) = recipe
    with pytest.raises(
        ScenarioError, match=rf"threat\.grants: candidates: with {key} a client trains on {trained}, and on no"
    ):
        planning.make(parse({**PARTS, "training": recipe}, "scenario"))


def test_of_a_sum_the_pairs_are_of_all_clients(tmp_path):
    parts = {"federation": {"clients": 3, "rounds": 1}, "training": {"batch_size": 2}}
    plan, folder, (record,) = simulated(tmp_path / "run", threat={**PARTS["threat"], "sees": "aggregate"}, **parts)
    assert record["view"]["is_sum"] and len(record["scores"]["pair_accuracy"]["per_example"]) == 6
    assert record["scores"]["pair_accuracy"]["value"] == 1.0
    view = View((1,), (0, 1, 2), "round", is_sum=True)
    sent = [(folder.read_update(*place), folder.read_global(*place)) for place in folder.captures_of(view)]
    assert len(ThreatModel(plan).show(sent, view).candidates) == 6


@pytest.mark.parametrize(("sees", "scope"), [("updates", "round"), ("updates", "run"), ("aggregate", "run")])
def test_members_of_a_view_have_no_pairs_of_their_own(tmp_path, sees, scope):
    """An image in the pairs of a view and in those of an update would be one that was trained on."""
    threat = {**PARTS["threat"], "sees": sees}
    plan, folder, _ = simulated(tmp_path / "run", threat=threat, federation={"clients": 2, "rounds": 2})
    rounds = (1,) if scope == "round" else (1, 2)
    view = View(rounds, (0, 1), scope, is_sum=sees == "aggregate")
    sent = [(folder.read_update(*place), folder.read_global(*place)) for place in folder.captures_of(view)]
    seen = ThreatModel(plan).show(sent, view)
    assert len(seen.members) == (4 if (sees, scope) == ("updates", "run") else 2)
    assert all(member.candidates is None for member in seen.members)
    images = seen.candidates.images.flatten(0, 1)
    truth = plan.truth(folder.captures_of(view)).images
    counted = [sum(torch.equal(image, other) for other in images) for image in truth]
    assert counted == [1] * len(truth), "no image is in two pairs, by which it would be told"


def test_a_sum_with_a_client_that_drew_nothing_is_audited(tmp_path):
    parts = {
        "seed": 2,
        "federation": {"clients": 2, "rounds": 4},
        "training": {"sampling": "poisson", "batch_size": 1},
        "threat": {"sees": "aggregate", "grants": ["batch_size", "normalization", "candidates", "labels"]},
    }
    plan, _, records = simulated(tmp_path / "run", **parts)
    drawn = [
        plan.data.images_used(client, round, plan.scenario.training) for client in (0, 1) for round in (1, 2, 3, 4)
    ]
    assert 0 in drawn, "the seed is one of such a round"
    for record in records:
        pairs = record["scores"].get("pair_accuracy", {}).get("per_example", [])
        assert record["status"] == "refused" or len(pairs) == sum(drawn[record["round"] - 1 :: 4])
