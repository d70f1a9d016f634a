"""Any torch model: its own BatchNorm statistics travel, frozen parts stay, and what it lacks is named."""

import json

import audits
import pytest
import timm
import torch
from torch import nn

from fedsim import models
from fedsim.audit import replay
from fedsim.audit.threat import ThreatModel
from fedsim.errors import ScenarioError
from fedsim.federation.accuracy import evaluate
from fedsim.federation.training import local_update
from fedsim.models import ModelInterfaceError
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart
from fedsim.simulation import Progress

RESNET = {"name": "resnet18", "kwargs": {}}
DELTA = {"shares": "delta", "batch_size": 4, "local_steps": 2, "mode": "train"}


class Tiny(nn.Module):
    """A convolution with BatchNorm, a frozen scale, a count, and a linear layer that no method names."""

    def __init__(self, num_classes, in_chans, width=6):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 5, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.full((), 2.0), requires_grad=False)
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.last = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.last(self.scale * torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Headless(nn.Module):
    """Classifies by a convolution."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 8)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Make this module importable by the name that the scenarios use."""
    monkeypatch.setitem(__import__("sys").modules, "my_models", __import__("sys").modules[__name__])


TINY = {"name": "my_models:Tiny", "kwargs": {"width": 5}}


# What travels


def test_trained_parameters_and_floating_point_buffers_travel_in_the_models_order():
    model = models.build(ModelPart(**TINY), 10, 32, 0)
    names = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert list(models.shared_state(model)) == [*names, "last.weight", "last.bias"]
    assert models.shared_buffers(model) == ("norm.running_mean", "norm.running_var")
    assert all(
        tensor.data_ptr() == model.state_dict()[n].data_ptr() for n, tensor in models.shared_state(model).items()
    )


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_a_client_sends_the_statistics_of_its_own_batches(tiny_plan, shares):
    plan = tiny_plan(model=TINY, training={"shares": shares, "batch_size": 4, "mode": "train"})
    weights = plan.initial_weights()
    found = local_update(plan, 1, 1, weights).update
    assert list(found.tensors) == list(models.trained(plan.model()))
    batch = plan.data.read(plan.data.client_inputs(1, 1, plan.scenario.training)[0], plan.scenario.training)
    model = plan.model(weights).train()
    model(plan.normalization.normalize(batch.images))
    torch.testing.assert_close(found.buffers["norm.running_mean"], model.norm.running_mean)
    torch.testing.assert_close(found.buffers["norm.running_var"], model.norm.running_var)
    assert not torch.equal(found.buffers["norm.running_var"], weights["norm.running_var"])


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_statistics_are_averaged_and_evaluated_captured_and_shown_to_attacks(tiny_plan, run_folder, shares):
    plan = tiny_plan(
        model=TINY, training={"shares": shares, "batch_size": 4, "mode": "train"}, federation={"rounds": 2}, attacks=[]
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    first = [folder.read_update(1, client) for client in range(3)]
    expected = torch.stack([update.buffers["norm.running_mean"] for update in first])
    counts = torch.tensor([update.num_examples for update in first])
    mean = (expected * counts[:, None]).sum(0) / counts.sum()
    sent = folder.read_global(2, 0)
    torch.testing.assert_close(sent["norm.running_mean"], mean)
    assert RunFolder.open(folder.path).rounds.read()[1]["accuracy"] == evaluate(plan, sent)[0]
    seen = ThreatModel(plan).observe(first[1], folder.read_global(1, 1))
    assert torch.equal(seen.update.buffers["norm.running_mean"], expected[1])
    assert list(seen.update.tensors) == list(models.trained(plan.model()))
    model = ThreatModel(plan).observe(folder.read_update(2, 1), sent).model()
    torch.testing.assert_close(model.norm.running_mean, mean)


def test_frozen_parameters_stay_and_are_told(tiny_plan):
    plan = tiny_plan(model=TINY, training=DELTA)
    assert any("1 frozen parameters, which do not travel" in note for note in plan.notes)
    assert float(plan.model(plan.initial_weights()).scale) == 2.0


def test_a_guarantee_is_refused_where_buffers_travel(tiny_scenario):
    from fedsim.planning import preparation as planning

    noise = {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 1.0}}
    with pytest.raises(
        ScenarioError, match=r"defenses\.0: dp_noise guarantees privacy for the parameters, and my_models:Tiny"
    ):
        planning.make(tiny_scenario(model=TINY, training=DELTA, defenses=[noise]))
    # Without noise nothing is guaranteed, so nothing is refused.
    planning.make(tiny_scenario(model=TINY, training=DELTA, defenses=[{**noise, "params": {"clip_norm": 1.0}}]))


# What attacks ask for


def test_the_classifier_is_what_timm_names_else_the_last_linear_layer():
    assert [h.weight for h in models.head_names(models.build(ModelPart(**TINY), 10, 32, 0))] == ["last.weight"]
    assert [h.weight for h in models.head_names(models.build(ModelPart(**RESNET), 10, 32, 0))] == ["fc.weight"]
    headless = models.build(ModelPart(name="my_models:Headless"), 10, 32, 0)
    with pytest.raises(ModelInterfaceError, match=r"Headless has no linear classifier\."):
        models.head_names(headless)
    assert models.facts(headless) == frozenset()


@pytest.mark.parametrize("ask", [models.patch_grid, models.prefix_rows])
def test_what_a_cnn_lacks_is_named(ask):
    with pytest.raises(ModelInterfaceError, match=r"ConvNet (does not cut|has no learned position embedding)"):
        ask(models.build(ModelPart(name="convnet"), 10, 32, 0))


def test_a_model_of_ones_own_has_the_normalization_that_the_scenario_states():
    plain = models.build(ModelPart(**TINY), 10, 32, 0)
    assert models.normalization(plain).mean == (0.5, 0.5, 0.5)
    stated = ModelPart(**TINY, normalization={"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]})
    assert models.normalization(models.build(stated, 10, 32, 0)).std == (1.0, 2.0, 3.0)
    grey = ModelPart(**TINY, normalization={"mean": [0.1], "std": [1]})
    with pytest.raises(ScenarioError, match=r"model\.normalization: images of 3 channels do not fit my_models:Tiny"):
        models.build(grey, 10, 32, 0)
    assert models.normalization(models.build(grey, 10, 32, 0, channels=1)).mean == (0.1,)


def test_a_weights_file_of_a_cnn_is_loaded_but_for_a_head_of_another_size(tmp_path):
    source = timm.create_model("resnet18", num_classes=7)
    torch.save({"state_dict": {f"module.{n}": t for n, t in source.state_dict().items()}}, tmp_path / "weights.pth")
    model, notes = models.build_with_notes(
        ModelPart(name="resnet18", pretrained=str(tmp_path / "weights.pth")), 10, 32, 0
    )
    assert torch.equal(model.layer4[1].bn2.weight, source.layer4[1].bn2.weight)
    assert (
        "the backbone is loaded, the head is fresh (the file holds no fc.weight, fc.bias of" in notes[0]
        and model.fc.out_features == 10
    )
    del (state := source.state_dict())["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ScenarioError, match=r"does not hold the weights of this model: it lacks layer1\.0\.\*"):
        models.build(ModelPart(name="resnet18", pretrained=str(tmp_path / "other.pth")), 10, 32, 0)


def test_what_a_cnn_trained_on_is_found_out_behind_a_defense_that_changes_images(tiny_plan, run_folder):
    plan = tiny_plan(
        model={"name": "convnet", "kwargs": {}},
        defenses=["stubs:Rearranges"],
        federation={"rounds": 1},
        training={"batch_size": 1},
        attacks=["label_count"],
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    own = plan.data.truth(1, 1, plan.scenario.training)
    found = replay.trained_on(plan, folder, 1, 1, own)
    assert found.has_other_images and not found.has_other_labels
    torch.testing.assert_close(found.truth.images, own.images.flip(-1), atol=1e-5, rtol=0)


# Rectangles


def test_a_vit_takes_rectangular_images():
    model = models.build(ModelPart(name="vit_nano", kwargs={"img_size": [32, 16]}), 10, (32, 16), 0)
    grid = models.patch_grid(model)
    assert (grid.rows, grid.columns) == (4, 2) and model(torch.zeros(2, 3, 32, 16)).shape == (2, 10)
    with pytest.raises(ScenarioError, match="patches of 16 x 16 pixels do not divide images of 32 x 24"):
        models.build(ModelPart(name="vit_tiny_patch16_224"), 10, (32, 24), 0)


# A federation


def test_a_resnet_learns_in_a_federation_by_the_aggregated_statistics(tiny_plan, run_folder):
    plan = tiny_plan(
        model={"name": "test_resnet", "kwargs": {}},
        data={"name": "shapes", "samples": 240, "test_samples": 100, "auxiliary_samples": 20, "classes": 4},
        federation={"clients": 4, "rounds": 3},
        training={"shares": "delta", "batch_size": 10, "local_epochs": 2, "learning_rate": 0.1, "mode": "train"},
        attacks=[],
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    accuracies = [line["accuracy"] for line in folder.rounds.read()]
    assert accuracies[0] <= 0.5 and accuracies[-1] >= 0.8
    # By the statistics that the server started from, the same weights know nothing: those that travelled are what counts.
    weights = folder.read_global(3, 0)
    initial = plan.initial_weights()
    stale = {name: initial[name] if name in plan.buffers else tensor for name, tensor in weights.items()}
    assert evaluate(plan, stale)[0] < evaluate(plan, weights)[0] - 0.2


def test_attacks_on_a_resnet_find_its_labels_and_refuse_what_it_lacks(tiny_plan, run_folder):
    plan = tiny_plan(
        model={"name": "test_resnet", "kwargs": {}},
        federation={"rounds": 1},
        training={"batch_size": 4, "mode": "train"},
        attacks=["label_count", "patch_embedding"],
        audit={"metrics": ["psnr", "label_recall"]},
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    records = [json.loads(line) for line in (folder.path / "records.jsonl").read_text().splitlines()]
    for record in records:
        if record["attack"]["name"] == "patch_embedding":
            assert record["status"] == "refused" and "no learned position embedding" in record["message"]
            assert any("learned position embedding" in text for text in record["inapplicable"])
        else:
            assert record["scores"]["label_recall"]["value"] == 1.0
