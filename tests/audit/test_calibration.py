"""Calibrations: the auditor's own unprotected updates, the lines they leave, and when an attack needs one."""

import copy
import dataclasses
import functools
import json
import math

import audits
import pytest
import torch

from fedsim import simulation
from fedsim.audit import calibration
from fedsim.audit.attempt import Attempt
from fedsim.exchange import Finding
from fedsim.federation.training import local_update
from fedsim.planning import preparation as planning
from fedsim.recording.records import Record, Trial
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse
from fedsim.verdicts.judge import updates_without_defense
from fedsim.verdicts.scores import scored

CHEAP = {"name": "patch_embedding"}
DEAR = {"name": "gradient_matching", "params": {"steps": 2}}


def scenario(**changes):
    raw = {
        "name": "calibrated",
        "engine": "inline",
        "data": {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 8},
        "model": "vit_nano",
        "federation": {"clients": 2, "rounds": 1},
        "defenses": [{"name": "partial_sharing", "clients": [1], "params": {"hidden": ["pos_embed"]}}],
        "attacks": [CHEAP, DEAR],
        "audit": {"processes": 0},
    }
    return parse(raw | changes, "scenario")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = planning.make(scenario())
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", plan.scenario)
    audits.simulate(plan, folder, simulation.Progress())
    return plan, folder


def lines(folder):
    return {line["attack"]["name"]: line for line in folder.calibrations.read()}


def test_a_cheap_attack_is_calibrated_on_eight_images_and_a_dear_one_on_two_updates(run):
    _, folder = run
    found = lines(folder)
    cheap, dear = found["patch_embedding"], found["gradient_matching"]
    assert (len(cheap["trials"]), cheap["workload"]) == (8, {"pictures": 1, "batch_size": 1, "steps": 1})
    assert all(trial["scores"]["psnr"]["value"] > 40 for trial in cheap["trials"])
    assert len({trial["scores"]["psnr"]["value"] for trial in cheap["trials"]}) == 8
    assert len(dear["trials"]) == 2


def test_a_trial_stands_beside_what_the_same_attack_finds_in_another_one(run):
    _, folder = run
    for line in lines(folder).values():
        assert all("wrong_update" in trial["controls"] for trial in line["trials"])
        assert all(trial["controls"]["wrong_update"]["psnr"] < 20 for trial in line["trials"])


def test_an_attack_that_never_looks_leaks_from_none_of_its_trials(run, stubs):
    """It returns all auxiliary images: some are near any image, in its own update and in another."""
    plan, folder = run
    raw = plan.scenario.resolved() | {
        "attacks": [{"name": "stubs:AllAuxiliary"}],
        "threat": {"grants": ["auxiliary_data"]},
        "data": {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 300},
    }
    own = planning.make(parse(raw, "scenario"))
    line = made(own, folder, own.attacks[0])
    trials = [Trial.model_validate(trial) for trial in line["trials"]]
    assert len(trials) == 8
    alone = [one for one in scored(trials, "ssim") if one.guessed in ("leaks", "partial")]
    assert len(alone) > 1 and updates_without_defense(trials)["images"].leaking == 0


def test_the_same_calibration_is_the_same_line(run):
    plan, folder = run
    for planned in plan.attacks:
        again = made(plan, folder, planned)
        stored = lines(folder)[planned.info.name]
        assert {**again, "seconds": 0} == {**json.loads(json.dumps(stored)), "seconds": 0}


def made(plan, folder, planned):
    attack = functools.partial(calibration.attack, plan, folder, 1, 0, planned)
    return calibration.calibrate(plan, folder, 1, 0, planned, attack).as_json()


def test_an_audit_again_leaves_calibrations_alone_and_makes_missing_ones(run):
    plan, folder = run
    before = folder.calibrations.path.read_bytes()
    audits.audit(plan, folder, simulation.Progress())
    assert folder.calibrations.path.read_bytes() == before
    kept = [line for line in folder.calibrations.read() if line["attack"]["name"] != "patch_embedding"]
    folder.calibrations.rewrite(kept)
    audits.audit(plan, folder, simulation.Progress())
    assert [{**line, "seconds": 0} for line in folder.calibrations.read()] == [
        {**json.loads(line), "seconds": 0} for line in before.splitlines()
    ]


def record(client=0, psnr=11.0, defenses=(), status="found", inapplicable=()):
    score = {"value": psnr, "per_example": [psnr], "worse": "higher"}
    return {
        "round": 1,
        "client": client,
        "attack": {"name": "gradient_matching"},
        "defenses": [{"name": name} for name in defenses],
        "workload": {"pictures": 1, "batch_size": 1, "steps": 1},
        "status": status,
        "inapplicable": list(inapplicable),
        "scores": {"psnr": score} if status == "found" else {},
        "controls": {"grey": {"psnr": 12.0}},
    }


LEAK, NO_LEAK = record(psnr=60.0), record(client=1, defenses=("mask",))


@pytest.mark.parametrize(
    ("choice", "records", "asked"),
    [
        ("none", [NO_LEAK], False),
        ("all", [LEAK], True),
        ("auto", [NO_LEAK], True),
        ("auto", [LEAK, NO_LEAK], True),
        ("auto", [LEAK, record(client=2, psnr=60.0), NO_LEAK], False),
        ("auto", [record(client=1)], False),
        ("auto", [record(client=1, defenses=("mask",), inapplicable=("it is made for 1 image",))], False),
        ("auto", [record(status="failed")], False),
        ("auto", [record(client=1, defenses=("mask",), status="failed")], False),
    ],
)
def test_a_dear_attack_is_calibrated_where_a_verdict_hangs_on_it(choice, records, asked):
    audit = {"processes": 0, "calibrate": choice}
    plan = planning.make(scenario(attacks=[CHEAP, DEAR], audit=audit, federation={"clients": 3, "rounds": 1}))
    cheap, dear = plan.attacks
    assert bool(asked_for(plan, dear, records)) == asked
    assert bool(asked_for(plan, cheap, records)) == (not records[-1]["inapplicable"])


def asked_for(plan, planned, records):
    return calibration.clients_to_calibrate(plan, planned, [Record.model_validate(line) for line in records])


def test_each_workload_on_which_a_verdict_hangs_is_calibrated_up_to_a_limit():
    sizes = {"name": "sizes", "sizes": [2, 3, 3, 4, 5, 6]}
    data = {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 8, "partition": sizes}
    training = {"shares": "delta", "local_epochs": 1, "batch_size": 2}
    raw = {"data": data, "federation": {"clients": 6, "rounds": 1}, "training": training}
    plan = planning.make(scenario(defenses=[], **raw))
    cheap, dear = plan.attacks
    masked = [record(client=client, defenses=("mask",), psnr=60.0 if client == 0 else 11.0) for client in range(6)]
    assert calibration.MOST_WORKLOADS == 4
    assert asked_for(plan, cheap, masked) == [1, 3, 4, 5]
    assert asked_for(plan, dear, masked[:4]) == [1, 3]
    assert asked_for(plan, cheap, [masked[0]]) == [0]
    everything = planning.make(scenario(defenses=[], audit={"processes": 0, "calibrate": "all"}, **raw))
    assert asked_for(everything, everything.attacks[1], masked[:4]) == [1, 3, 0]


def test_the_images_that_clients_leak_do_not_make_the_calibration_of_labels_needless():
    plan = planning.make(scenario(attacks=[DEAR], federation={"clients": 3, "rounds": 1}))
    recalled = {"label_recall": {"value": 0.0, "per_example": [0.0], "worse": "higher"}}
    leaks = [LEAK, record(client=2, psnr=60.0)]
    masked = {**NO_LEAK, "scores": NO_LEAK["scores"] | recalled}
    masked["controls"] = {"grey": {"psnr": 12.0}, "chance": {"label_recall": 0.1}}
    assert asked_for(plan, plan.attacks[0], [*leaks, NO_LEAK]) == []
    assert asked_for(plan, plan.attacks[0], [*leaks, masked]) == [0]


def test_the_auditors_own_client_carries_no_defense_and_has_the_recipe_of_the_clients(run):
    plan, folder = run
    own = calibration._unprotected(plan, 0, 1, 0)
    assert own.defenses_of(0) == () and plan.defenses_of(1) != ()
    assert own.setting_of(0, 1) == plan.setting_of(0, 1)
    update = local_update(own, 0, 1, folder.read_global(1, 0)).update
    assert update.tensors["pos_embed"].abs().sum() > 0


def test_the_auditors_images_are_never_those_that_an_attack_is_granted(run):
    plan, _ = run
    own = calibration._unprotected(plan, 0, 1, 0)
    truth = own.data.truth(0, 1, plan.scenario.training).images
    granted = plan.data.pools.auxiliary.read(range(len(plan.data.pools.auxiliary))).images
    assert not any(torch.equal(picture, other) for picture in truth for other in granted)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"shares": "delta", "local_steps": 3, "batch_size": 4},
        {"local_epochs": 2, "shares": "delta", "batch_size": 5},
        {"local_epochs": 2, "shares": "delta", "batch_size": 5, "augment": ["flip", "crop"]},
    ],
)
def test_the_auditors_own_client_trains_as_much_as_the_one_it_stands_for(training):
    sizes = {"name": "sizes", "sizes": [9, 12]}
    data = {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 8, "partition": sizes}
    plan = planning.make(scenario(data=data, training=training))
    for client in (0, 1):
        own = calibration._unprotected(plan, client, 1, 0)
        assert own.workload_of(0) == plan.workload_of(client)
        assert own.setting_of(0, 1).steps == plan.setting_of(client, 1).steps


def test_trials_share_no_image_as_long_as_there_are_enough():
    training = {"shares": "delta", "local_epochs": 1, "batch_size": 4}
    plan = planning.make(scenario(training=training))
    first, second, third = (set(calibration._unprotected(plan, 0, 1, index).data.partition[0]) for index in range(3))
    assert len(first) == len(second) == 12 and not first & second
    assert third not in (first, second)


def clipping(norm, adaptive=False):
    name = f"DifferentialPrivacyClientSide{'Adaptive' if adaptive else 'Fixed'}Clipping"
    params = {"noise_multiplier": 0.1, "initial_clipping_norm" if adaptive else "clipping_norm": norm}
    return {"clients": 2, "rounds": 1, "strategy": name, "strategy_params": params}


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_calibration_is_clipped_as_the_strategy_has_its_clients_clip(tmp_path, adaptive, monkeypatch):
    """Their updates are rounded as weights that travel as well, which is what takes the most of a short one."""
    training = {"shares": "delta", "local_steps": 1}
    plan = planning.make(scenario(training=training, federation=clipping(0.01, adaptive), attacks=[CHEAP], defenses=[]))
    folder = RunFolder.create(tmp_path / "run", plan.scenario)
    records = audits.simulate(plan, folder, simulation.Progress())
    seen, tried = [], Attempt("failed", Finding(), "not tried", 0.0, 0)
    monkeypatch.setattr(
        "fedsim.audit.attempt.attack", lambda own, planned, sent, *_: seen.append(sent[0][0]) or (tried, b"")
    )
    calibration.attack(plan, folder, 1, 0, plan.attacks[0], 0)
    sent = [folder.read_update(1, client) for client in (0, 1)]
    assert all(calibration._norm(update) == pytest.approx(0.01, rel=1e-3) for update in (*seen, *sent))
    (use,) = records[0]["defenses"]
    assert (use["name"], use["is_strategy"]) == (plan.scenario.federation.strategy, True)


def test_an_update_that_is_shorter_than_the_bound_is_sent_as_it_is(run):
    plan, folder = run
    weights = folder.read_global(1, 0)
    update = local_update(calibration._unprotected(plan, 0, 1, 0), 0, 1, weights).update
    assert calibration._as_sent(update, weights, 0.0) is update  # a gradient, which no strategy clips
    delta = dataclasses.replace(update, kind="delta")
    for name, tensor in calibration._as_sent(delta, weights, math.inf).tensors.items():
        assert torch.equal(tensor, (weights[name] + update.tensors[name]) - weights[name])


def test_a_failed_calibration_is_a_line_with_the_reason_and_is_made_again_by_hand(run):
    plan, folder = run
    broken = Attempt("failed", Finding(), "broken on purpose", 0.0, 1)
    line = calibration.calibrate(plan, folder, 1, 0, plan.attacks[0], lambda index: broken).as_json()
    assert (line["status"], line["message"]) == ("failed", "broken on purpose")
    # Four of eight: most of the trials cannot leak any more.
    assert [trial["status"] for trial in line["trials"]] == ["failed"] * 4
    sound = lines(folder)
    folder.calibrations.rewrite([line, sound["gradient_matching"]])
    audits.audit(plan, folder, simulation.Progress())
    again = lines(folder)["patch_embedding"]
    assert {**again, "seconds": 0} == {**sound["patch_embedding"], "seconds": 0}


def test_an_unprotected_update_that_overflows_is_a_failed_calibration(run):
    plan, folder = run
    raw = plan.scenario.resolved() | {"training": {"learning_rate": 1e30, "shares": "delta", "local_steps": 4}}
    wild = planning.make(parse(raw, "scenario"))
    found = calibration.attack(wild, folder, 1, 0, wild.attacks[0], 0)
    assert found.status == "failed"
    assert found.message.startswith("the unprotected update cannot be made: ")


def test_a_calibration_of_which_one_trial_fails_is_made_of_the_others(run):
    plan, folder = run
    good = functools.partial(calibration.attack, plan, folder, 1, 0, plan.attacks[0])
    broken = Attempt("failed", Finding(), "broken on purpose", 0.0, 1)
    line = calibration.calibrate(plan, folder, 1, 0, plan.attacks[0], lambda i: broken if i == 2 else good(i)).as_json()
    assert line["status"] == "found"
    assert [trial["status"] for trial in line["trials"]] == ["found", "found", "failed", *["found"] * 5]
    trials = [Trial.model_validate(trial) for trial in line["trials"]]
    found = updates_without_defense(trials)["images"]
    assert (found.leaking, found.trials, found.is_proof) == (7, 8, True)


def stored(folder, change):
    """Return what an audit makes of calibrations.jsonl with one line changed, as plain lines."""
    before = folder.calibrations.read()
    changed = copy.deepcopy(before)
    change(changed[0])
    folder.calibrations.rewrite(changed)
    return before


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("trials"),
        lambda line: line.pop("workload"),
        lambda line: line.update(grants=["batch_size", "labels", "normalization"]),
        lambda line: line["trials"].__setitem__(0, {**line["trials"][0], "status": "failed"}),
    ],
    ids=["no trials", "no workload", "other grants", "a failed trial"],
)
def test_a_calibration_of_an_earlier_version_or_of_other_grants_is_made_again(run, change):
    plan, folder = run
    before = stored(folder, change)
    assert folder.calibrations.read() != before
    audits.audit(plan, folder, simulation.Progress())
    again = folder.calibrations.read()
    assert [{**line, "seconds": 0} for line in again] == [{**line, "seconds": 0} for line in before]
