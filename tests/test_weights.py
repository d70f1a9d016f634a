"""Weights from a local file: what is taken over, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from fedsim import models
from fedsim.errors import ScenarioError
from fedsim.scenario import ModelPart


def build(pretrained=False, num_classes=10, seed=0, name="vit_nano", image_size=32, **kwargs):
    return models.build(ModelPart(name=name, kwargs=kwargs, pretrained=pretrained), num_classes, image_size, seed)


def refusal(path, **named):
    with pytest.raises(ScenarioError) as caught:
        build(str(path), **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def trained():
    return build(seed=5).state_dict()


@pytest.fixture
def stored(tmp_path, trained):
    path = tmp_path / "weights.safetensors"
    save_file(trained, path)
    return path


def test_a_safetensors_file_gives_the_model_its_weights(stored, trained):
    loaded = build(str(stored)).state_dict()
    assert list(loaded) == list(trained)
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
def test_a_torch_file_does_too_bare_or_as_a_checkpoint(wrap, tmp_path, trained):
    torch.save(wrap(trained), tmp_path / "weights.pth")
    loaded = build(str(tmp_path / "weights.pth")).state_dict()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_the_name_of_the_model_does_not_matter_to_a_file(stored, trained):
    stock = build(str(stored), name="vit_tiny_patch16_224", patch_size=8, embed_dim=64, depth=4, num_heads=2)
    assert torch.equal(stock.state_dict()["pos_embed"], trained["pos_embed"])


def test_a_head_for_other_classes_stays_fresh_and_all_else_is_taken(stored, trained):
    loaded, fresh = build(str(stored), num_classes=3).state_dict(), build(num_classes=3).state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, (fresh if name.startswith("head.") else trained)[name]), name


def test_a_position_table_of_another_grid_is_resampled(stored, trained):
    loaded = build(str(stored), image_size=64, img_size=64).state_dict()
    assert loaded["pos_embed"].shape == (1, 65, 64)
    torch.testing.assert_close(loaded["pos_embed"].mean(), trained["pos_embed"].mean(), atol=2e-3, rtol=0)
    assert torch.equal(loaded["norm.weight"], trained["norm.weight"])


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("norm.bias"),
        lambda weights: weights.pop("head.bias"),
        lambda weights: weights.update(extra=torch.zeros(2)),
        lambda weights: weights.update({"norm.bias": torch.zeros(3)}),
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("blocks.3.")],
    ],
)
def test_the_weights_of_another_model_are_refused(change, stored, trained):
    change(trained)
    save_file(trained, stored)
    assert refusal(stored).startswith(f"model.pretrained: {stored} does not hold the weights of this model: ")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"model.pretrained: {tmp_path / name} ")


def test_a_file_cut_short_is_refused(stored):
    stored.write_bytes(stored.read_bytes()[:-1])
    assert "is damaged or no weights file" in refusal(stored)


def test_weights_that_are_not_finite_are_refused(stored, trained):
    trained["norm.bias"][0] = torch.nan
    save_file(trained, stored)
    assert refusal(stored) == f"model.pretrained: {stored} holds weights that are not finite."


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        assert refusal(path) == f"model.pretrained: no weights file {path}. Give a .safetensors or .pth file."


class Executes:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"head.weight": Executes(str(tmp_path / "executed"))}, tmp_path / "weights.pth")
    assert refusal(tmp_path / "weights.pth").startswith(f"model.pretrained: {tmp_path / 'weights.pth'} ")
    assert not (tmp_path / "executed").exists()
