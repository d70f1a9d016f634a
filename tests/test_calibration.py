"""Calibrations: the auditor's own unprotected updates, the lines they leave, and when an attack needs one."""

import functools
import json

import pytest
import torch

from fedsim import calibration, simulation
from fedsim import plan as planning
from fedsim.attempt import Attempt
from fedsim.exchange import Finding
from fedsim.recording import RunFolder
from fedsim.scenario import parse
from fedsim.training import local_update

CHEAP = {"name": "patch_embedding"}
DEAR = {"name": "gradient_matching", "params": {"steps": 2}}


def scenario(**changes):
    raw = {
        "name": "calibrated",
        "engine": "inline",
        "data": {"name": "shapes", "samples": 24, "test_samples": 8, "auxiliary_samples": 8},
        "model": "vit_nano",
        "federation": {"clients": 2, "rounds": 1},
        "defenses": [{"name": "partial_sharing", "clients": [1], "params": {"hidden": ["head.*"]}}],
        "attacks": [CHEAP, DEAR],
        "audit": {"processes": 0},
    }
    return parse(raw | changes, "scenario")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = planning.make(scenario())
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", plan.scenario)
    simulation.simulate(plan, folder, simulation.Progress())
    return plan, folder


def lines(folder):
    return {line["attack"]["name"]: line for line in folder.calibrations.read()}


def test_a_cheap_attack_is_calibrated_on_eight_pictures_and_a_dear_one_on_one_update(run):
    _, folder = run
    found = lines(folder)
    assert (found["patch_embedding"]["updates"], found["patch_embedding"]["pictures"]) == (8, 1)
    assert found["patch_embedding"]["scores"]["psnr"]["value"] > 40
    assert len(found["patch_embedding"]["scores"]["psnr"]["per_example"]) == 8
    assert found["gradient_matching"]["updates"] == 1


def test_the_same_calibration_is_the_same_line(run):
    plan, folder = run
    for planned in plan.attacks:
        again = made(plan, folder, planned)
        stored = lines(folder)[planned.info.name]
        assert {**again, "seconds": 0} == {**json.loads(json.dumps(stored)), "seconds": 0}


def made(plan, folder, planned):
    attack = functools.partial(calibration.attack, plan, folder, 1, 0, planned)
    return calibration.calibrate(plan, folder, 1, 0, planned, attack)


def test_an_audit_again_leaves_calibrations_alone_and_makes_missing_ones(run):
    plan, folder = run
    before = folder.calibrations.path.read_bytes()
    simulation.audit(plan, folder, simulation.Progress())
    assert folder.calibrations.path.read_bytes() == before
    kept = [line for line in folder.calibrations.read() if line["attack"]["name"] != "patch_embedding"]
    folder.calibrations.rewrite(kept)
    simulation.audit(plan, folder, simulation.Progress())
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
        ("auto", [record(client=1)], True),
        ("auto", [record(client=1, defenses=("mask",), inapplicable=("it is made for 1 picture",))], False),
        ("auto", [record(status="failed")], False),
    ],
)
def test_a_dear_attack_is_calibrated_where_a_verdict_hangs_on_it(choice, records, asked):
    audit = {"processes": 0, "calibrate": choice}
    plan = planning.make(scenario(attacks=[CHEAP, DEAR], audit=audit))
    cheap, dear = plan.attacks
    assert calibration.is_called_for(plan, dear, records) == asked
    assert calibration.is_called_for(plan, cheap, records)


def test_an_unprotected_client_that_leaks_makes_the_calibration_of_pictures_needless():
    plan = planning.make(scenario(attacks=[{**DEAR, "params": {"steps": 2, "optimize_labels": False}}]))
    labels = {"label_recall": {"value": 1.0, "per_example": [1.0], "worse": "higher"}}
    both = [
        {**one, "scores": one["scores"] | labels, "controls": {"grey": {"psnr": 12.0}, "chance": {"label_recall": 0.1}}}
        for one in (LEAK, NO_LEAK)
    ]
    assert not calibration.is_called_for(plan, plan.attacks[0], both)


def test_the_auditors_own_client_carries_no_defense_and_has_the_recipe_of_the_clients(run):
    plan, folder = run
    own = calibration._unprotected(plan, 12, 1, 0)
    assert own.defenses_of(0) == () and plan.defenses_of(1) != ()
    assert own.setting_of(0, 1) == plan.setting_of(0, 1)
    update = local_update(own, 0, 1, folder.read_global(1, 0)).update
    assert all(tensor.abs().sum() > 0 for name, tensor in update.tensors.items() if name.startswith("head."))


def test_the_auditors_pictures_are_never_those_that_an_attack_is_granted(run):
    plan, _ = run
    own = calibration._unprotected(plan, 12, 1, 0)
    truth = own.data.truth(0, 1, plan.scenario.training).images
    granted = plan.data.pools.auxiliary.read(range(len(plan.data.pools.auxiliary))).images
    assert not any(torch.equal(picture, other) for picture in truth for other in granted)


def test_a_failed_calibration_is_a_line_with_the_reason_and_is_made_again_by_hand(run):
    plan, folder = run
    broken = Attempt("failed", Finding(), "broken on purpose", 0.0, 1)
    line = calibration.calibrate(plan, folder, 1, 0, plan.attacks[0], lambda index: broken)
    assert (line["status"], line["message"]) == ("failed", "broken on purpose")
    assert "scores" not in line
    sound = lines(folder)
    folder.calibrations.rewrite([line, sound["gradient_matching"]])
    simulation.audit(plan, folder, simulation.Progress())
    again = lines(folder)["patch_embedding"]
    assert {**again, "seconds": 0} == {**sound["patch_embedding"], "seconds": 0}


def test_an_unprotected_update_that_overflows_is_a_failed_calibration(run):
    plan, folder = run
    raw = plan.scenario.resolved() | {"training": {"learning_rate": 1e30, "shares": "delta", "local_steps": 4}}
    wild = planning.make(parse(raw, "scenario"))
    found = calibration.attack(wild, folder, 1, 0, wild.attacks[0], 0)
    assert found.status == "failed"
    assert found.message.startswith("the unprotected update cannot be made: ")
