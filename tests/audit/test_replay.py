"""What clients really trained on: found by doing their work again, and part of records and verdicts."""

import json
from dataclasses import replace
from pathlib import Path

import audits
import pytest
import torch

from fedsim import simulation
from fedsim.audit import replay
from fedsim.federation import training
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import overview, reading
from fedsim.report.summaries import by_client
from fedsim.scenario import parse
from fedsim.verdicts.judge import Judge

STUBS = "stubs:Rearranges"
CHANGES = [
    {"how": "mirrors"},
    {"how": "shuffles", "hook": "step"},
    {"how": "turns"},
    {"how": "shuffles", "source": "fresh"},
    {"how": "renames"},
]
UNCHANGED, PLAIN = len(CHANGES), len(CHANGES) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run in which one client a change trains on other inputs, one on its own through a hook, and one without any."""
    raw = {
        "name": "rearranged",
        "engine": "inline",
        "data": {"name": "shapes", "samples": 70, "test_samples": 8, "auxiliary_samples": 24},
        "model": "vit_nano",
        "federation": {"clients": PLAIN + 1, "rounds": 1},
        "training": {"batch_size": 1},
        "defenses": [
            *({"name": STUBS, "clients": [client], "params": params} for client, params in enumerate(CHANGES)),
            {"name": "stubs:Notes", "clients": [UNCHANGED]},
        ],
        "attacks": ["patch_embedding", "label_count"],
        "audit": {"processes": 0, "calibrate": "none"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "stubs")
        plan = planning.make(parse(raw, "scenario"))
        made = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", plan.scenario)
        audits.simulate(plan, made, simulation.Progress())
    return made.path


@pytest.fixture(scope="module")
def records(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {(line["attack"]["name"], line["client"]): line for line in lines}


@pytest.fixture(scope="module")
def verdicts(folder):
    found = reading.read(folder)
    lines = overview.entries(by_client(found.records, Judge.of(found)))
    return {(line.client, line.kind): line for line in lines}


def value(record, metric):
    return record["scores"][metric]["value"]


@pytest.mark.parametrize(("client", "metric"), [(0, "psnr@trained"), (1, "psnr@trained"), (2, "psnr@trained")])
def test_images_that_a_defense_changed_leak_where_the_attack_finds_them_changed(records, verdicts, client, metric):
    record = records["patch_embedding", client]
    assert record["trained_on"] == {"inputs": 1, "other_pictures": True, "other_labels": False}
    assert value(record, "psnr") < 30 < 60 < value(record, metric)
    assert set(record["scores"]) >= {"psnr@trained", "psnr@patches", "psnr@trained+patches", "ssim@trained"}
    assert verdicts[client, "images"].verdict == "leaks"


@pytest.mark.parametrize("client", [1, 3])
def test_patches_that_were_shuffled_are_found_though_no_image_is(records, verdicts, client):
    record = records["patch_embedding", client]
    assert value(record, "psnr") < 30 < 60 < value(record, "psnr@patches")
    assert verdicts[client, "images"].verdict == "leaks"


def test_every_view_stands_beside_controls_that_are_arranged_alike(records):
    controls = records["patch_embedding", 1]["controls"]
    assert set(controls) >= {"grey", "own_mean", "dataset_mean", "wrong_update"}
    assert all({"psnr", "psnr@trained", "psnr@patches"} <= set(controls[name]) for name in ("grey", "wrong_update"))
    # The best places flatter another client's patches as well, and grey has no places.
    assert controls["wrong_update"]["psnr@patches"] > controls["wrong_update"]["psnr"]
    assert controls["grey"]["psnr@patches"] == pytest.approx(controls["grey"]["psnr"])


def test_what_cannot_be_drawn_again_is_told_and_never_resisted(records, verdicts):
    assert records["patch_embedding", 3]["trained_on"] == {
        "unknown": "its local work gives another update when it is done again with the same draws"
    }
    assert "psnr@trained" not in records["patch_embedding", 3]["scores"]
    assert verdicts[3, "labels"].verdict in ("inconclusive", "leaks")


def test_labels_that_a_defense_renamed_leak_where_the_attack_finds_them_renamed(records, verdicts):
    record = records["label_count", 4]
    assert record["trained_on"] == {"inputs": 1, "other_pictures": False, "other_labels": True}
    assert (value(record, "label_recall"), value(record, "label_recall@trained")) == (0.0, 1.0)
    assert "psnr@trained" not in records["patch_embedding", 4]["scores"]


def test_a_hook_that_changes_nothing_leaves_no_view_of_what_was_trained_on(records):
    record = records["patch_embedding", UNCHANGED]
    assert record["trained_on"] == {"inputs": 1, "other_pictures": False, "other_labels": False}
    assert {name for name in record["scores"] if "@" in name} == {"psnr@patches", "ssim@patches"}


def test_a_client_without_a_defense_has_no_views(records):
    record = records["patch_embedding", PLAIN]
    assert "trained_on" not in record and not any("@" in name for name in record["scores"])


# Doing a client's work again


def replayed(tiny_plan, run_folder, defenses, client=1, round=1, **training_part):
    plan = tiny_plan(
        defenses=defenses, training=training_part, federation={"clients": 3, "rounds": 2, **FEDPROX}, attacks=[]
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, simulation.Progress())
    own = plan.data.truth(client, round, plan.scenario.training)
    return plan, own, replay.trained_on(plan, RunFolder(folder.path), client, round, own)


FEDPROX = {"strategy": "FedProx", "strategy_params": {"proximal_mu": 0.5}}
EPOCHS = {"shares": "delta", "local_epochs": 2, "batch_size": 4, "learning_rate": 0.05}


def test_epochs_with_a_proximal_term_noise_and_a_state_are_done_again_to_the_bit(tiny_plan, run_folder):
    defenses = [
        {"name": STUBS, "params": {"how": "shuffles"}},
        {"name": "stubs:Halves"},
        {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}},
    ]
    _, own, found = replayed(tiny_plan, run_folder, defenses, round=2, **EPOCHS)
    # Each of two epochs shuffles every image anew.
    assert len(found.truth.images) == 2 * len(own.images)
    assert found.has_other_images and not torch.equal(found.truth.images[: len(own.images)], own.images)
    assert sorted(found.truth.labels.tolist()) == sorted([*own.labels.tolist()] * 2)


@pytest.mark.parametrize("hook", ["batch", "step", "model"])
@pytest.mark.parametrize(
    "part", [{"batch_size": 4}, EPOCHS, {**EPOCHS, "accumulate": 3}], ids=["gradient", "epochs", "micro-batches"]
)
def test_mirrored_images_are_those_that_reached_the_model(tiny_plan, run_folder, part, hook):
    _, own, found = replayed(tiny_plan, run_folder, [{"name": STUBS, "params": {"hook": hook}}], **part)
    assert torch.allclose(found.truth.images, own.images.flip(-1), atol=1e-6)
    assert torch.equal(found.truth.labels, own.labels)


def test_augmented_images_are_drawn_again_and_are_the_clients_own(tiny_plan, run_folder):
    part = {**EPOCHS, "augment": ["flip", "crop"]}
    plan, own, found = replayed(tiny_plan, run_folder, ["stubs:Notes"], **part)
    assert not found.has_other_images and not found.has_other_labels
    assert torch.allclose(found.truth.images, own.images, atol=1e-6) and found.truth.pictures == own.pictures == 16
    assert len(own.images) > 16
    stored = plan.data.pools.train.read(plan.data.partition[1]).images
    assert not all(any(torch.equal(image, one) for one in stored) for image in own.images)


def test_a_image_that_a_defense_leaves_out_was_not_trained_on(tiny_plan, run_folder):
    _, own, found = replayed(tiny_plan, run_folder, [{"name": STUBS, "params": {"how": "drops"}}], batch_size=4)
    assert found.has_other_images and found.has_other_labels
    assert torch.allclose(found.truth.images, own.images[:1], atol=1e-6)


def test_a_image_that_is_used_twice_is_one(tiny_plan, run_folder):
    _, own, found = replayed(tiny_plan, run_folder, [{"name": STUBS, "params": {"how": "repeats"}}], batch_size=4)
    assert not found.has_other_images and not found.has_other_labels
    assert len(found.truth.images) == len(own.images)


def test_a_recipe_that_computes_the_gradient_itself_trains_on_what_it_is_given(tiny_plan, run_folder):
    _, own, found = replayed(tiny_plan, run_folder, [{"name": STUBS, "params": {"hook": "step"}}, "stubs:Recipe"])
    assert torch.allclose(found.truth.images, own.images.flip(-1), atol=1e-6)


def test_a_client_whose_defenses_touch_the_update_alone_is_not_done_again(tiny_plan, run_folder, monkeypatch):
    monkeypatch.setattr(replay.training, "carry_out", lambda run, mu: pytest.fail("done again"))
    plan = tiny_plan(defenses=["stubs:Scales"])
    own = plan.data.truth(0, 1, plan.scenario.training)
    assert replay.trained_on(plan, run_folder(plan), 0, 1, own) is None


def test_too_many_inputs_are_not_compared(tiny_plan, run_folder, monkeypatch):
    monkeypatch.setattr(replay, "_MOST_VALUES", 3 * 32 * 32)
    with pytest.raises(replay.NotReproducedError, match="trained on more than 4 inputs"):
        replayed(tiny_plan, run_folder, [{"name": STUBS}], batch_size=4)


def test_clipping_on_the_way_is_no_other_update_and_another_image_is(tiny_plan):
    plan = tiny_plan(training={"shares": "delta"})
    weights = plan.initial_weights()
    update = training.local_update(plan, 0, 1, weights).update
    clipped = replace(update, tensors={name: 0.25 * tensor for name, tensor in update.tensors.items()})
    other = training.local_update(plan, 1, 1, weights).update
    assert replay._is_same(update, clipped, weights)
    assert not replay._is_same(update, other, weights)
