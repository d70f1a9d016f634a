"""Weights from a local file: what is taken over, and what is refused."""

import sys
import zipfile

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


class Linear(torch.nn.Module):
    """A classifier without a backbone."""

    def __init__(self, num_classes):
        super().__init__()
        self.last = torch.nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, images):
        return self.last(images.flatten(1))


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
        lambda weights: weights.pop("cls_token"),
        lambda weights: weights.pop("patch_embed.proj.weight"),
        lambda weights: weights.update({"norm.bias": torch.zeros(3)}),
        lambda weights: weights.update({"blocks.4.norm1.bias": torch.zeros(64)}),
        lambda weights: weights.update({"blocks.0.ls1.gamma": torch.zeros(64)}),
        lambda weights: weights.update({"reg_token": torch.zeros(1, 2, 64)}),
        lambda weights: weights.update({"norm_pre.weight": torch.zeros(64)}),
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("blocks.3.")],
    ],
)
def test_the_weights_of_another_model_are_refused(change, stored, trained):
    change(trained)
    save_file(trained, stored)
    assert refusal(stored).startswith(f"model.pretrained: {stored} does not hold the weights of this model: ")


def noted(path, content, num_classes=10, first_block="standard", **kwargs):
    """Return the state of a model built with stored content, and its notes without the beginning that all share."""
    torch.save(content, path)
    part = ModelPart(name="vit_nano", kwargs=kwargs, pretrained=str(path), first_block=first_block)
    built = models.build_with_notes(part, num_classes, 32, 0)
    start = f"model.pretrained: {path.name}: "
    assert all(note.startswith(start) for note in built.notes)
    return built.model.state_dict(), [note.removeprefix(start) for note in built.notes]


def backbone_of(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}


def assert_backbone(loaded, trained, fresh=("head.",)):
    drawn = build().state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, (drawn if name.startswith(fresh) else trained)[name]), name


HEADLESS = "the backbone is loaded, the head is fresh (head: the file has none)."
WRAPPERS = {
    "bare": (lambda w: w, None),
    "data parallel": (lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}, None),
    "lightning": (lambda w: {"state_dict": {f"net.{k}": v for k, v in w.items()}, "epoch": 3}, "net.*"),
    "encoder": (lambda w: {f"encoder.{k}": v for k, v in w.items()}, "encoder.*"),
    "DINO": (
        lambda w: {
            "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in w.items()},
            "teacher": {f"backbone.{k}": v for k, v in w.items()},
            "epoch": 3,
        },
        "teacher.backbone.*",
    ),
    "I-JEPA": (
        lambda w: {
            "encoder": {f"module.{k}": v for k, v in w.items()},
            "target_encoder": {f"module.{k}": torch.zeros_like(v) for k, v in w.items()},
        },
        "encoder.module.*",
    ),
    "MoCo": (
        lambda w: {
            "state_dict": {f"module.base_encoder.{k}": v for k, v in w.items()}
            | {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in w.items()}
        },
        "base_encoder.*",
    ),
    "a wider teacher": (
        lambda w: {
            "student": dict(w),
            "teacher": {"patch_embed.proj.weight": torch.zeros(128, 3, 8, 8)},
        },
        "student.*",
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_backbone_without_a_head_is_loaded_from_any_wrapper_and_the_head_is_fresh(name, tmp_path, trained):
    wrap, place = WRAPPERS[name]
    loaded, notes = noted(tmp_path / "weights.pth", wrap(backbone_of(trained)))
    assert_backbone(loaded, trained)
    assert notes[:2] == [HEADLESS] + ([f"taken are the tensors {place}."] if place else [])


def test_weights_that_fit_whole_are_loaded_without_a_note(tmp_path, trained):
    loaded, notes = noted(tmp_path / "weights.pth", trained)
    assert_backbone(loaded, trained, fresh=("no name",))
    assert notes == []


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder_q."])
def test_a_cnn_is_loaded_from_any_wrapper(prefix, tmp_path):
    other = build(name="test_resnet", seed=5).state_dict()
    content = {f"{prefix}{name}": tensor for name, tensor in other.items()}
    if "encoder" in prefix:
        content |= {f"module.encoder_k.{name}": torch.zeros_like(tensor) for name, tensor in other.items()}
    torch.save({"epoch": 1, "state_dict": content}, tmp_path / "weights.pth")
    loaded = build(str(tmp_path / "weights.pth"), name="test_resnet").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in other.items())


def test_what_a_cnn_lacks_in_a_wrapper_is_named(tmp_path):
    content = {f"backbone.{name}": tensor for name, tensor in build(name="test_resnet").state_dict().items()}
    del content["backbone.layer1.0.conv1.weight"]
    torch.save(content, tmp_path / "weights.pth")
    assert "it lacks layer1.0.*. " in refusal(tmp_path / "weights.pth", name="test_resnet")


@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_model_that_is_a_classifier_alone_is_loaded(prefix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_linear", sys.modules[__name__])
    saved = Linear(10).state_dict()
    torch.save({f"{prefix}{name}": tensor for name, tensor in saved.items()}, tmp_path / "weights.pth")
    loaded = build(str(tmp_path / "weights.pth"), name="my_linear:Linear").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())


def test_two_networks_of_which_none_is_known_to_be_the_one_are_refused(tmp_path, trained):
    weights = {f"{side}.{name}": tensor for side in ("left", "right") for name, tensor in trained.items()}
    torch.save(weights, tmp_path / "weights.pth")
    assert refusal(tmp_path / "weights.pth").endswith(
        "holds several Vision Transformers: left.*, right.*. Save the one that you mean on its own."
    )


def test_decoder_mask_token_and_projection_are_left_out_and_said(tmp_path, trained):
    others = {
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_blocks.0.norm1.weight": torch.zeros(32),
        "decoder_blocks.0.norm1.bias": torch.zeros(32),
        "head.mlp.0.weight": torch.zeros(32, 64),
    }
    loaded, notes = noted(tmp_path / "weights.pth", {"model": {**others, **backbone_of(trained)}})
    assert_backbone(loaded, trained)
    assert notes[0] == HEADLESS
    told = notes[1].removeprefix("left out: ").removesuffix(".")
    assert set(told.split(", ")) == {"mask_token", "decoder_pos_embed", "decoder_blocks.0.*", "head.mlp.*"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}, "1000 x 64 in the file, 10 x 64 in"),
        ({"head.weight": torch.zeros(10, 64)}, "head: the file has no head.bias"),
    ],
)
def test_a_head_that_does_not_fit_is_replaced_whole_and_said(change, reason, tmp_path, trained):
    loaded, notes = noted(tmp_path / "weights.pth", backbone_of(trained) | change)
    assert_backbone(loaded, trained)
    assert notes[0].startswith("the backbone is loaded, the head is fresh (head: ")
    assert reason in notes[0]


def test_the_norm_after_pooling_belongs_to_the_head(tmp_path, trained):
    loaded, notes = noted(tmp_path / "weights.pth", backbone_of(trained), global_pool="avg")
    assert_backbone(
        loaded, trained | {f"fc_norm.{n}": v for n, v in (("weight", torch.ones(64)), ("bias", torch.zeros(64)))}
    )
    assert notes == [
        "the backbone is loaded, the head is fresh (fc_norm: the file has none; head: the file has none).",
        "left out: norm.weight, norm.bias.",
    ]


def test_a_pooled_backbone_is_no_backbone_of_a_class_token_and_the_way_out_is_said(tmp_path):
    torch.save(build(global_pool="avg").state_dict(), tmp_path / "weights.pth")
    message = refusal(tmp_path / "weights.pth")
    assert message.endswith("it pools its tokens. Set model.kwargs.global_pool: avg.")
    assert_backbone(
        build(str(tmp_path / "weights.pth"), global_pool="avg").state_dict(), torch.load(tmp_path / "weights.pth"), ()
    )


def test_a_shallower_model_does_not_take_some_of_the_blocks(stored):
    message = refusal(stored, depth=2)
    assert message.endswith(
        "its backbone has blocks.2.*, blocks.3.*, the model's has not. Set model.name and model.kwargs as for the model "
        "that it was saved from."
    )


def test_tensors_in_another_naming_are_refused_with_their_names(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2), "bn1.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    message = refusal(tmp_path / "weights.pth")
    assert message.endswith(
        "it has no patch_embed.proj.weight, but conv1.weight, bn1.weight. Rename its tensors as timm does."
    )


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {}])
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    assert "does not hold the weights of this model: " in refusal(tmp_path / "weights.pth")


def test_a_resampled_position_table_is_said(tmp_path, trained):
    torch.save(trained, tmp_path / "weights.pth")
    part = ModelPart(name="vit_nano", kwargs={"img_size": 64}, pretrained=str(tmp_path / "weights.pth"))
    assert models.build_with_notes(part, 10, 64, 0).notes == (
        "model.pretrained: weights.pth: pos_embed is adapted from 1 x 17 x 64 to 1 x 65 x 64.",
    )


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
    none = tmp_path / "none.pth"
    assert refusal(none) == f"model.pretrained: no weights file {none}. Give a .safetensors or .pth file."
    assert refusal(tmp_path) == (
        f"model.pretrained: {tmp_path} is a folder, and no run. Give a .safetensors or .pth file, or a run folder."
    )


class Executes:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"head.weight": Executes(str(tmp_path / "executed"))}, tmp_path / "weights.pth")
    assert refusal(tmp_path / "weights.pth").startswith(f"model.pretrained: {tmp_path / 'weights.pth'} ")
    assert not (tmp_path / "executed").exists()


def summed(path, **kwargs):
    pretrained = {"file": str(path), "patches": "summed"}
    return build(pretrained, name="vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2, **kwargs)


@pytest.fixture
def large(tmp_path):
    """The file of a model of patches of 16 pixels on images of 128, and the model."""
    part = ModelPart(name="vit_tiny_patch16_224", kwargs={"embed_dim": 32, "depth": 1, "num_heads": 2})
    model = models.build(part, 10, 128, 1)
    save_file(model.state_dict(), tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors", model


def test_a_summed_kernel_gives_the_tokens_of_the_large_one_on_enlarged_pixels(large):
    path, model = large
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    enlarged = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    small = summed(path, patch_size=4)
    torch.testing.assert_close(small.patch_embed(images), model.patch_embed(enlarged))
    # Both have 8 x 8 patches, so the whole models agree.
    torch.testing.assert_close(small(images), model(enlarged), atol=1e-5, rtol=1e-4)
    resampled = build(str(path), name="vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2, patch_size=4)
    assert not torch.allclose(resampled.patch_embed.proj.weight, small.patch_embed.proj.weight, atol=1e-3)


def test_a_summed_start_resizes_the_position_table_bilinearly(large):
    path, model = large
    small = summed(path, patch_size=8)
    grid = model.pos_embed[:, 1:].reshape(8, 8, 32)
    # Half of a grid of even sides: each row is the mean of a block of 2 x 2.
    expected = grid.reshape(4, 2, 4, 2, 32).mean((1, 3)).reshape(16, 32)
    torch.testing.assert_close(small.pos_embed[0, 1:], expected)
    assert torch.equal(small.pos_embed[:, :1], model.pos_embed[:, :1])


def test_patches_of_equal_size_leave_nothing_to_sum(large):
    path, model = large
    small = summed(path, patch_size=16, image_size=128)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"patch_size": 32, "image_size": 64}, "its patches of 16 x 16 pixels are no multiple of the model's 32 x 32"),
        ({"patch_size": 6, "image_size": 36}, "its patches of 16 x 16 pixels are no multiple of the model's 6 x 6"),
    ],
)
def test_patches_that_cannot_be_summed_are_refused(given, says, large):
    with pytest.raises(ScenarioError, match=says):
        summed(large[0], **given)


def test_patches_are_summed_of_vision_transformers_alone(large):
    with pytest.raises(ScenarioError, match=r"model\.pretrained\.patches: summed, and a .* has no patches"):
        build({"file": str(large[0]), "patches": "summed"}, name="convnet")
    with pytest.raises(ScenarioError, match="there are no published weights for vit_nano"):
        build({"patches": "summed"})


# Files of somebody else


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path, trained):
    torch.save({**trained, "zeros": torch.zeros(2**20)}, tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "weights.pth") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    assert refusal(tmp_path / "small.pth").endswith("its archive is compressed, as torch.save never writes it.")


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path, trained):
    torch.save({**trained, "pos_embed": torch.zeros(1).expand(1, 10**9, 64)}, tmp_path / "weights.pth")
    assert "a tensor of 256000000000 bytes in a file of" in refusal(tmp_path / "weights.pth")
