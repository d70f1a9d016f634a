"""Trajectories and progress of a whole run: from what an attack saves and tells to records, images and whoever watches."""

import io
import json
import math
import os
import threading

import audits
import pytest
import torch
from PIL import Image

from fedsim.audit import attempt
from fedsim.exchange import FRAMES, Finding, Trajectory, View
from fedsim.metrics.table import PSNR_CAP
from fedsim.metrics.trajectory import arranged, psnr_by_frame
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

FADES = {"name": "stubs:Fades"}
BATCH = {"batch_size": 2}
ONE = {"clients": 2, "rounds": 1}


@pytest.fixture
def simulate(tiny_plan, run_folder):
    """Return a function: parts of a scenario -> plan, folder and records of the whole run."""

    def run(name="run", on_running=None, **parts):
        parts = {"attacks": [FADES], "training": BATCH, "federation": ONE, **parts}
        plan = tiny_plan(**parts)
        folder = run_folder(plan, name)
        return plan, folder, audits.simulate(plan, folder, Progress(on_running=on_running))

    return run


def timeless(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# Trajectories


def test_a_record_holds_the_curves_of_the_trajectory_and_the_best_blind_control(simulate):
    plan, folder, records = simulate()
    for record in records:
        trajectory = attempt.read(plan, folder, View.of_update(1, record["client"]), plan.attacks[0]).finding.trajectory
        truth = plan.data.truth(record["client"], 1, plan.scenario.training)
        assert record["film"] == {
            "steps": [0, 1, 2, 3, 4],
            "losses": list(trajectory.losses),
            "psnr": list(psnr_by_frame(arranged(trajectory, truth.images), truth.images)),
            "control": record["film"]["control"],
            "shown": [0, 1, 2, 3, 4],
        }
        blind = {name: values["psnr"] for name, values in record["controls"].items() if "psnr" in values}
        assert blind[record["film"]["control"]["name"]] == record["film"]["control"]["value"] == max(blind.values())
        assert record["film"]["psnr"][-1] == pytest.approx(record["scores"]["psnr"]["value"])
        with Image.open(folder.path / record["artifacts"]["film"]) as picture:
            assert picture.size == (5 * 32 + 4 + 32, 2 * 32)


def test_the_image_of_a_trajectory_shows_its_frames_beside_the_originals(simulate):
    plan, folder, (record, _) = simulate()
    trajectory = attempt.read(plan, folder, View.of_update(1, 0), plan.attacks[0]).finding.trajectory
    truth = plan.data.truth(0, 1, plan.scenario.training)
    frames = arranged(trajectory, truth.images)
    with Image.open(io.BytesIO((folder.path / record["artifacts"]["film"]).read_bytes())) as picture:
        first = picture.crop((0, 0, 32, 32)).tobytes()
        original = picture.crop((164, 32, 196, 64)).tobytes()
    assert first == (frames[0, 0] * 255).round().byte().movedim(0, -1).numpy().tobytes()
    assert original == (truth.images[1] * 255).round().byte().movedim(0, -1).numpy().tobytes()


def test_the_control_is_known_where_the_audit_does_not_ask_for_psnr(simulate):
    _, _, with_psnr = simulate("with")
    _, _, without = simulate("without", audit={"metrics": ["ssim"]})
    assert [record["film"] for record in without] == [record["film"] for record in with_psnr]
    assert all("psnr" not in record["scores"] for record in without)


def test_a_trajectory_comes_back_from_the_stored_finding(simulate):
    plan, folder, records = simulate()
    (folder.path / "records.jsonl").unlink()
    assert audits.audit(plan, folder, Progress()) == records
    trajectory = attempt.read(plan, folder, View.of_update(1, 0), plan.attacks[0]).finding.trajectory
    assert trajectory.steps == (0, 1, 2, 3, 4) and trajectory.images.shape == (5, 2, 3, 32, 32)


def test_a_trajectory_of_many_frames_is_thinned_out_from_the_first_to_the_last(simulate):
    _, _, (record, _) = simulate(attacks=[{**FADES, "params": {"steps": 300, "pictures": 1}}], training={})
    steps = record["film"]["steps"]
    assert len(steps) == len(record["film"]["psnr"]) == FRAMES
    assert steps[0] == 0 and steps[-1] == 300
    assert len(record["film"]["shown"]) == 8 and set(record["film"]["shown"]) <= set(steps)
    assert len(json.dumps(record)) < 10_000


def test_attacks_without_a_trajectory_have_records_as_before(simulate):
    _, _, records = simulate(attacks=[{"name": "stubs:RaisesOn"}], federation={"clients": 3, "rounds": 1})
    assert [record["status"] for record in records] == ["found", "failed", "refused"]
    assert all("film" not in record and "film" not in record["artifacts"] for record in records)


GREY = torch.full((1, 3, 32, 32), 0.5)
FRAMES_OF_GREY = GREY.repeat(2, 1, 1, 1, 1)


def trajectory_of(images=FRAMES_OF_GREY, steps=(0, 1), losses=(1.0, 0.5)):
    return Trajectory(steps, images, losses)


@pytest.fixture
def claim(simulate, stubs, monkeypatch):
    """Return a function: a trajectory -> the record of an attack that returns it beside one grey image."""
    import stubs as module

    def run(trajectory, **finding):
        claimed = Finding(**{"images": GREY, **finding})
        # Past the type check of the constructor, which is active in these tests alone.
        object.__setattr__(claimed, "trajectory", trajectory)
        monkeypatch.setattr(module.Claims, "finding", claimed)
        return simulate(attacks=[{"name": "stubs:Claims"}], federation={"clients": 1, "rounds": 1}, training={})[2][0]

    return run


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (
            trajectory_of(FRAMES_OF_GREY * math.nan),
            "ValueError: the attack returned a trajectory whose pixels are not finite",
        ),
        (
            trajectory_of(FRAMES_OF_GREY[..., :16, :16]),
            "ValueError: the attack returned frames of shape (1, 3, 16, 16), not (1, 3, 32, 32)",
        ),
        (
            trajectory_of(FRAMES_OF_GREY.repeat(1, 2, 1, 1, 1)),
            "ValueError: the attack returned frames of shape (2, 3, 32, 32), not (1, 3, 32, 32)",
        ),
        (
            trajectory_of(steps=(0, 1, 2)),
            "ValueError: the attack returned 3 steps, 2 frames and 2 losses as a trajectory",
        ),
        (
            trajectory_of(losses=(0.0,)),
            "ValueError: the attack returned 2 steps, 2 frames and 1 losses as a trajectory",
        ),
        (
            trajectory_of(FRAMES_OF_GREY[:0], (), ()),
            "ValueError: the attack returned 0 steps, 0 frames and 0 losses as a trajectory",
        ),
        (
            trajectory_of(steps=(1, 1)),
            "ValueError: the attack returned a trajectory whose steps do not increase from 0",
        ),
        (
            trajectory_of(steps=(-1, 1)),
            "ValueError: the attack returned a trajectory whose steps do not increase from 0",
        ),
        ([GREY], "TypeError: the attack returned list, not a Trajectory"),
    ],
    ids=["NaN", "size", "count", "steps", "losses", "none", "equal", "negative", "a list"],
)
def test_a_trajectory_that_is_none_is_a_failed_attempt(claim, trajectory, message):
    record = claim(trajectory)
    assert record["status"] == "failed" and record["message"].startswith(message)
    assert "film" not in record


def test_a_trajectory_without_images_is_a_failed_attempt(claim):
    record = claim(trajectory_of(), images=None)
    assert record["status"] == "failed" and "a trajectory, but no images" in record["message"]


def test_losses_that_are_not_finite_are_recorded_as_unknown(claim):
    record = claim(trajectory_of(losses=(math.inf, math.nan)))
    assert record["status"] == "found" and record["film"]["losses"] == [None, None]


def test_a_trajectory_of_no_images_has_no_curve(claim):
    record = claim(trajectory_of(FRAMES_OF_GREY[:, :0]), images=GREY[:0])
    assert record["status"] == "found" and "film" not in record


def test_frames_are_clamped_to_pixels(claim):
    record = claim(trajectory_of(torch.stack([GREY - 9, GREY])))
    grey = PSNR_CAP > record["film"]["psnr"][1] == pytest.approx(record["controls"]["grey"]["psnr"])
    assert grey and record["film"]["psnr"][0] > 0


# Progress


def test_whoever_watches_hears_where_an_attack_stands_and_that_it_has_ended(simulate):
    heard = []
    simulate(on_running=heard.append, attacks=[FADES, {"name": "stubs:Guess"}])
    assert heard[-1] == () and all(len(running) <= 1 for running in heard)
    told = [one for running in heard for one in running]
    assert {(one.view.round, one.view.client, one.attack) for one in told} == {
        (1, 0, "stubs:Fades"),
        (1, 1, "stubs:Fades"),
    }
    assert {one.step[:2] for one in told} >= {(0, 4)}


def test_results_are_the_same_whether_anybody_watches_or_not(simulate, monkeypatch):
    heard = []
    _, alone, expected = simulate("alone")
    monkeypatch.setattr("fedsim.audit.attack_process.listening", _every_step)
    _, watched, records = simulate("watched", on_running=heard.append)
    assert len(heard) == 2 * (5 + 1), "every step, and the end"
    assert timeless(records) == timeless(expected)
    for path in alone.path.rglob("artifacts/**/*.png"):
        assert path.read_bytes() == (watched.path / path.relative_to(alone.path)).read_bytes()


def _every_step(sink):
    from fedsim.progress import listening

    return listening(sink, interval=0.0)


def test_a_display_that_fails_ends_the_audit_and_leaves_the_finding(simulate, tiny_plan, run_folder):
    def fails(running):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        simulate(on_running=fails)
    plan, folder, records = simulate("alone")
    broken = run_folder(plan, "unused").path.with_name("run")
    name = records[0]["artifacts"]["finding"]
    assert attempt.read(plan, type(folder)(broken), View.of_update(1, 0), plan.attacks[0]).status == "found"
    assert (broken / name).is_file()


@pytest.mark.slow
def test_steps_arrive_from_a_worker_while_its_attack_runs(simulate, tmp_path, quick_workers):
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    heard = []

    def hear(running):
        heard.append(running)
        # The attack waits for this, so that its step must have come while it ran.
        if len(heard) == 1:
            answer.write_text("go on")

    attack = {"name": "stubs:TellsAndWaits", "params": {"answer": str(answer)}}
    federation = {"clients": 1, "rounds": 1}
    _, _, (record,) = simulate(on_running=hear, attacks=[attack], federation=federation, audit={"processes": 1})
    assert record["status"] == "found"
    assert heard == [((View.of_update(1, 0), "stubs:TellsAndWaits", (1, 4, 0.5, None)),), ()]
    assert "steps" not in {thread.name for thread in threading.enumerate()}
