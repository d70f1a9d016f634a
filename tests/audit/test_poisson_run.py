"""An audit of clients that draw their batches by Poisson sampling: some updates are of no image at all."""

import audits
import pytest

from fedsim.audit import calibration
from fedsim.audit.noise import adds_noise
from fedsim.audit.partners import Partners
from fedsim.metrics import likeness
from fedsim.recording.run_folder import RunFolder
from fedsim.simulation import Progress

POISSON = {"batch_size": 1, "sampling": "poisson"}


@pytest.fixture
def plan(tiny_plan):
    return tiny_plan(
        training=POISSON,
        federation={"clients": 3, "rounds": 2},
        threat={"grants": ["batch_size", "labels", "normalization", "defenses"]},
        defenses=[{"name": "dp_sgd", "clients": [0]}, {"name": "stubs:Halves", "clients": [1]}],
        attacks=[{"name": "stubs:Guess"}, {"name": "patch_embedding"}],
    )


def used(plan, round, client):
    return plan.data.images_used(client, round, plan.scenario.training)


def test_updates_of_no_image_are_refused_and_all_others_are_audited(plan, run_folder):
    folder = run_folder(plan)
    records = audits.simulate(plan, folder, Progress())
    # Of two clients with a defense each attack is run told of it and not.
    assert len(records) == 2 * (3 + 2) * 2
    drawn = {(record["round"], record["client"]): used(plan, record["round"], record["client"]) for record in records}
    assert 0 in drawn.values()
    assert len(set(drawn.values())) > 1
    for record in records:
        count = drawn[record["round"], record["client"]]
        if count:
            assert record["status"] in ("found", "refused")
            assert record["attack"]["name"] != "stubs:Guess" or record["scores"]["label_recall"]["value"] is not None
        else:
            assert (record["status"], record["scores"]) == ("refused", {})
            assert record["message"] == "Poisson sampling drew no image, so there is nothing to find"
            if record["attack"]["name"] == "patch_embedding":
                assert record["inapplicable"] == [
                    "no image is behind the update: Poisson sampling drew none in this round"
                ]
    for line in RunFolder.open(folder.path).calibrations.read():
        assert line["status"] in ("found", "refused")


def test_a_workload_under_poisson_sampling_is_the_same_in_any_round(tiny_plan):
    plan = tiny_plan(training={"shares": "delta", "batch_size": 4, "local_steps": 3, "sampling": "poisson"})
    held = len(plan.data.partition[0])
    assert plan.workload_of(0) == (round(held * (1 - (1 - 4 / held) ** 3)), 4, 3)
    setting = plan.setting_of(0, 1)
    sizes = [len(step) for step in plan.data.client_inputs(0, 1, plan.scenario.training)]
    assert (setting.batch_size, setting.steps) == (max(sizes), 3)


def test_a_calibration_is_of_an_update_with_images(plan):
    for index in range(12):
        own = calibration._unprotected(plan, 2, 1, index)
        assert own.data.images_used(0, 1, plan.scenario.training)
        assert len(own.data.partition[0]) == len(plan.data.partition[2])


def test_noise_is_seen_also_where_a_round_draws_no_image(tiny_plan):
    for params, expected in (({"hook": "step"}, True), ({"hook": "step", "first": 99}, False)):
        plan = tiny_plan(
            training=POISSON, defenses=[{"name": "stubs:Shaken", "clients": [0], "params": params}], attacks=[]
        )
        empty = next(round for round in range(1, 50) if not used(plan, round, 0))
        assert adds_noise(plan, plan.defenses[0], 0, empty) == expected


def test_dp_sgd_counts_as_noise_only_with_noise(tiny_plan):
    for noise in (0.0, 1.0):
        defense = {"name": "dp_sgd", "clients": [0], "params": {"noise_multiplier": noise}}
        plan = tiny_plan(training=POISSON, defenses=[defense], attacks=[])
        assert adds_noise(plan, plan.defenses[0], 0, 1) == bool(noise)


def test_a_client_without_images_is_no_control(plan):
    for round in range(1, 20):
        for client in (0, 1, 2):
            others = [other for other in (0, 1, 2) if other != client]
            partner = Partners(plan).of(round, client, [0, 1, 2])
            assert used(plan, round, partner) or not any(used(plan, round, other) for other in others)


def test_no_image_is_like_none(plan):
    images = plan.data.pools.train.read([0, 1]).images
    some, none = likeness.thumbnails(images), likeness.thumbnails(images[:0])
    assert likeness.alike(some, none) == likeness.alike(none, some) == 0
