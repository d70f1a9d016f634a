"""Runs whose clients smooth labels and mix images, from training to the report."""

import json
import shutil

import audits
import pytest
import torch
from PIL import Image

from fedsim.federation.engine import train
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import render
from fedsim.simulation import Progress

pytestmark = pytest.mark.usefixtures("without_report")

RECIPE = {"label_smoothing": 0.1, "mixup": 0.4, "mode": "eval"}
METRICS = ["psnr", "ssim", "label_recall", "soft_label_error", "feature_error"]
HEAD = {"name": "stubs:ReadsHead"}


@pytest.fixture
def simulate(tiny_plan, run_folder):
    """Return a function: name, parts of a scenario -> plan, folder and records of the whole run."""

    def run(name="run", attacks=(HEAD,), metrics=METRICS, training=RECIPE, **parts):
        audit = {"processes": 0, "metrics": list(metrics)}
        plan = tiny_plan(attacks=list(attacks), audit=audit, training=training, **parts)
        folder = run_folder(plan, name)
        return plan, folder, audits.simulate(plan, folder, Progress())

    return run


def values(record):
    return {name: score["value"] for name, score in record["scores"].items()}


def test_a_soft_run_is_scored_and_reported_beside_its_controls(simulate):
    attacks = [HEAD, {"name": "stubs:Guess"}]
    _, folder, records = simulate(attacks=attacks, defenses=[{"name": "mjp", "clients": [2]}])
    for record in records[::2]:
        if record["client"] == 2:
            continue  # its images were shuffled, so its head inputs are others
        found, controls = values(record), record["controls"]
        assert list(found) == METRICS[2:]
        assert found["label_recall"] == 1.0 and found["soft_label_error"] < 1e-5 and found["feature_error"] < 1e-3
        assert {name for name, scores in controls.items() if "soft_label_error" in scores} == {
            "wrong_update", "prior", "uniform"
        }  # fmt: skip
        assert {name for name, scores in controls.items() if "feature_error" in scores} == {
            "dataset_mean", "wrong_update"
        }  # fmt: skip
        assert min(scores.get("soft_label_error", 1) for scores in controls.values()) > 0.05
        assert min(scores.get("feature_error", 1) for scores in controls.values()) > 0.01
        for score in record["scores"].values():
            assert len(score["per_example"]) == 1
    size = render(folder.path).stat().st_size
    text = (folder.path / "report.md").read_text()
    assert size > 10_000
    assert "| soft labels, Soft-label error | 0.0000" in text and "| features, Feature error | 0.000" in text
    assert "- Label smoothing: 0.1" in text and "- Mixup alpha: 0.4" in text
    assert "They are the blends of two images" in text


def test_the_originals_beside_reconstructions_are_what_was_trained_on(simulate):
    plan, folder, records = simulate(attacks=[{"name": "stubs:Guess"}], federation={"rounds": 1})
    truth = plan.data.truth(0, 1, plan.scenario.training)
    with Image.open(folder.path / records[0]["artifacts"]["originals"]) as picture:
        shown = torch.tensor(list(picture.tobytes())).reshape(32, 32, 3).permute(2, 0, 1) / 255
    assert float((shown - truth.images[0]).abs().max()) <= 0.5 / 255 + 1e-6
    pool = plan.data.pools.train
    assert not any(torch.equal(truth.images[0], pool.read([i]).images[0]) for i in plan.data.partition[0])


def test_the_images_of_an_augmented_run_leak_as_they_were_trained_on(simulate):
    recipe = {"augment": ["flip", "crop"], "mode": "eval"}
    plan, folder, records = simulate(
        attacks=["patch_embedding"], metrics=["psnr"], training=recipe, federation={"clients": 4, "rounds": 2}
    )
    assert len(records) == 8 and all(values(record)["psnr"] > 60 for record in records)
    changed = [
        not torch.equal(
            plan.data.truth(client, 1, plan.scenario.training).images, plan.data.pools.train.read([one.sample]).images
        )
        for client in range(4)
        for one in plan.data.client_inputs(client, 1, plan.scenario.training)[0]
    ]
    assert any(changed)
    render(folder.path)
    text = (folder.path / "report.md").read_text()
    assert "- Augmentation: flip, crop" in text and "They are mirrored or shifted as the client trained" in text


def test_two_inline_runs_of_a_soft_scenario_capture_the_same_bytes(tiny_plan, run_folder):
    plan = tiny_plan(training={"batch_size": 2, "label_smoothing": 0.1, "mixup": 0.4})
    folders = [run_folder(plan, name) for name in "ab"]
    for folder in folders:
        train(plan, folder)
    first, second = (
        {
            (round, client): folder.read_update(round, client).tensors
            for round in (1, 2)
            for client in folder.captured(round)
        }
        for folder in folders
    )
    assert len(first) == 6
    for place, tensors in first.items():
        assert all(torch.equal(tensor, second[place][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("recipe", [{"mode": "eval"}, {"label_smoothing": 0.3}, {"mixup": 1.0}], ids=str)
def test_hard_and_soft_truths_are_met_by_a_division_of_the_heads_gradient(simulate, recipe):
    _, _, records = simulate(training=recipe, federation={"rounds": 1})
    for record in records:
        assert values(record)["soft_label_error"] < 1e-5 and values(record)["feature_error"] < 1e-3


def test_dropout_makes_features_unavailable_with_the_reason_and_labels_not(simulate):
    model = {"name": "vit_nano", "kwargs": {"depth": 1, "drop_rate": 0.5}}
    _, _, records = simulate(training={"mode": "train"}, model=model, federation={"rounds": 1})
    for record in records:
        assert record["scores"]["feature_error"]["value"] is None
        assert "drawn by dropout or the like" in record["scores"]["feature_error"]["unavailable"]
        assert not any("feature_error" in scores for scores in record["controls"].values())
        assert record["scores"]["soft_label_error"]["value"] is not None


def test_features_of_a_model_with_two_classifiers_are_unavailable(simulate):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
    model = {"name": "deit_tiny_distilled_patch16_224", "kwargs": kwargs}
    _, _, records = simulate(model=model, federation={"rounds": 1})
    for record in records:
        assert "two classifiers" in record["scores"]["feature_error"]["unavailable"]


def test_answering_several_times_is_a_caution(simulate):
    _, _, records = simulate(attacks=[{**HEAD, "params": {"copies": 3}}], federation={"rounds": 1})
    expected = [f"3 {what} were returned for 1 originals; " for what in ("soft labels", "features")]
    assert [any(c.startswith(text) for c in records[0]["cautions"]) for text in expected] == [True, True]


def test_a_folder_without_the_new_settings_and_metrics_renders_as_before(simulate, tmp_path):
    """The records of an older fedsim: fields that it did not know are absent."""
    _, folder, _ = simulate(attacks=[{"name": "stubs:Guess"}], metrics=METRICS[:3], training={})
    old = shutil.copytree(folder.path, tmp_path / "old")
    text = (old / "scenario.yaml").read_text()
    assert "label_smoothing: 0.0\n" in text
    (old / "scenario.yaml").write_text(text.replace("  label_smoothing: 0.0\n", ""))
    render(old)
    report = (old / "report.md").read_text()
    assert "Label smoothing:" not in report and "Mixup alpha:" not in report
    (folder.path / "records.jsonl").unlink()
    (old / "records.jsonl").unlink()
    again = [audits.audit(planning.of(one.scenario()), one, Progress()) for one in (folder, RunFolder.open(old))]
    assert json.dumps(again[0]) == json.dumps(again[1])
