"""timm models by name: presets, sizes, patches, gradients, and every refusal."""

import copy
import math
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer

from fedsim import models
from fedsim.errors import ScenarioError
from fedsim.models import PatchGrid, gradient_of, hub_weights, patch_grid, unfused_attention
from fedsim.presets import PRESETS
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator


def build(name="vit_nano", num_classes=10, image_size=32, seed=0, pretrained=False, **kwargs):
    return models.build(ModelPart(name=name, kwargs=kwargs, pretrained=pretrained), num_classes, image_size, seed)


def fixed(**kwargs):
    part = ModelPart(name="vit_nano", kwargs={"depth": 1, **kwargs}, position_embedding="sincos")
    return models.build_with_notes(part, 10, kwargs.get("img_size", 32), 0)


def refusal(*arguments, **named):
    with pytest.raises(ScenarioError) as caught:
        build(*arguments, **named)
    return str(caught.value)


def batch(model, count=2, seed=0):
    generator = torch_generator(seed, "batch")
    size = patch_grid(model).rows * patch_grid(model).patch
    images = torch.randn((count, 3, size, size), generator=generator)
    return images, torch.randint(model.num_classes, (count,), generator=generator)


# Building


@pytest.mark.parametrize("name", ["vit_nano", "vit_micro", "vit_mini"])
def test_a_preset_is_a_stock_timm_model_of_the_size_that_its_summary_states(name):
    model = build(name)
    assert type(model) is VisionTransformer
    assert not model.training
    parameters = sum(p.numel() for p in model.parameters())
    assert PRESETS[name].summary == f"{parameters / 1e6:.1f} M parameters, 32 px"
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    stock = timm.create_model(PRESETS[name].target, num_classes=10, **PRESETS[name].kwargs)
    assert [n for n, _ in stock.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_weights_are_a_function_of_the_seed_alone():
    first = build(seed=3).state_dict()
    torch.rand(5)
    again, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_building_leaves_the_global_generator_alone():
    with seeded(0, "test"):
        expected = torch.rand(())
    with seeded(0, "test"):
        build()
        assert torch.equal(torch.rand(()), expected)


def test_kwargs_change_a_preset_and_a_stock_model():
    assert patch_grid(build("vit_nano", patch_size=16)) == PatchGrid(16, 2, 2, 3)
    stock = build("vit_tiny_patch16_224", image_size=48, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    assert patch_grid(stock) == PatchGrid(16, 3, 3, 3)
    assert (stock.embed_dim, len(stock.blocks), stock.num_classes) == (24, 1, 3)


def test_kwargs_may_be_numbers_written_as_text():
    model = build(init_values="1e-4", drop_rate="0.25")
    assert model.blocks[0].ls1.gamma[0].item() == pytest.approx(1e-4)
    assert model.head_drop.p == 0.25


def test_other_vits_of_timm_are_vits_too():
    small = {"image_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    assert build("deit_tiny_distilled_patch16_224", **small)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert build("vit_tiny_patch16_224.augreg_in21k", **small).num_classes == 10
    pooled = build("vit_tiny_patch16_224", class_token=False, global_pool="avg", reg_tokens=2, **small)
    assert pooled(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "vit_nan"},
            "model.name: no model 'vit_nan'. Did you mean 'vit_nano'? Presets: vit_nano, vit_micro, ",
        ),
        ({"name": ""}, "model.name: no model ''. Presets: "),
        (
            {"name": "hf-hub:timm/vit_tiny_patch16_224"},
            "model.name: expected a name, or 'module:factory', got 'hf-hub:",
        ),
        ({"name": "resnet18", "depth": 3}, "model.kwargs: resnet18 cannot be built: TypeError: "),
        ({"name": "resnet18", "in_chans": 3}, "model.kwargs.in_chans: follows from the data; leave it out."),
        ({"name": "convnet", "depth": 3}, "model.kwargs.depth: unknown kwarg. Did you mean 'width'? Allowed: width."),
        ({"name": "convnet", "width": 0}, "model.name: "),
        ({"name": "no_such:Model"}, "model.name: cannot import 'no_such:Model': No module named 'no_such'."),
        ({"name": "math:pi"}, "model.name: math:pi is float, expected a function or a class."),
        ({"name": "builtins:dict"}, "model.name: "),
        ({"name": "torch.nn:Identity"}, "model.name: torch.nn:Identity returned a model without a parameter"),
        (
            {"name": "vit_tiny_patch16_224.augreg_in22k"},
            "model.name: no published weights 'vit_tiny_patch16_224.augreg_in22k'. Did you mean 'vit_tiny_patch16_2",
        ),
        ({"dept": 3}, "model.kwargs.dept: unknown kwarg. Did you mean 'depth'? Allowed: img_size, patch_size, "),
        ({"features_only": True}, "model.kwargs.features_only: unknown kwarg."),
        ({"checkpoint_path": "x"}, "model.kwargs.checkpoint_path: unknown kwarg."),
        ({"block_fn": "x"}, "model.kwargs.block_fn: unknown kwarg."),
        ({"in_chans": 1}, "model.kwargs.in_chans: follows from the data; leave it out."),
        ({"drop_path_rate": -0.1}, "model.kwargs.drop_path_rate: expected at least 0, got -0.1."),
        ({"drop_rate": "much"}, "model.kwargs.drop_rate: expected a number, got 'much'."),
        ({"class_token": "no"}, "model.kwargs.class_token: expected true or false, got 'no'."),
        ({"global_pool": "sum"}, "model.kwargs.global_pool: expected one of '', 'avg', "),
        ({"depth": 0}, "model.kwargs.depth: expected a whole number of at least 1, got 0."),
        ({"depth": True}, "model.kwargs.depth: expected a whole number of at least 1, got true."),
        ({"embed_dim": "64"}, "model.kwargs.embed_dim: expected a whole number of at least 1, got '64'."),
        ({"patch_size": [4, 8]}, "model.kwargs.patch_size: expected a whole number of at least 1, got [4, 8]."),
        ({"embed_dim": 63}, "model.kwargs.num_heads: 2 does not divide embed_dim 63."),
        ({"patch_size": 5}, "model.kwargs.patch_size: patches of 5 x 5 pixels do not divide images of 32 x 32."),
        ({"patch_size": 64}, "model.kwargs.patch_size: patches of 64 x 64 pixels do not divide"),
        ({"image_size": 40}, "model.kwargs.img_size: the model takes 32, data.image_size is 40. Make them equal."),
        ({"name": "vit_tiny_patch16_224", "image_size": 40}, "model.name: patches of 16 x 16 pixels do not divide"),
        ({"name": "vit_tiny_patch16_224", "image_size": 8}, "model.name: patches of 16 x 16 pixels do not divide"),
        (
            {"name": "vit_tiny_patch16_224", "embed_dim": 31},
            "model.kwargs: vit_tiny_patch16_224 cannot be built: Assert",
        ),
        ({"drop_rate": 2}, "model.kwargs: vit_nano cannot be built: ValueError: dropout probability"),
        ({"norm_layer": "no"}, "model.kwargs: vit_nano cannot be built: KeyError: 'no' (with {norm_layer: 'no'})."),
        ({"pos_embed": "no"}, "model.kwargs: vit_nano cannot be built: AssertionError (with {pos_embed: 'no'})."),
        ({"mlp_ratio": -1}, "model.kwargs: vit_nano cannot be built: RuntimeError: "),
        ({"pretrained": True}, "model.pretrained: there are no published weights for vit_nano. Give the path"),
        ({"pretrained": "/no/such/file"}, "model.pretrained: no weights file /no/such/file."),
    ],
)
def test_a_model_that_cannot_be_is_refused_at_its_path(arguments, message):
    found = refusal(**arguments)
    assert found.startswith(message)
    assert "\n" not in found


def test_a_model_of_the_hub_is_fetched_and_its_head_fits_the_data(monkeypatch, tmp_path):
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    published = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=1000, **small).state_dict()
    torch.save(published, tmp_path / "published.pth")
    repository = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    monkeypatch.setattr(hub_weights, "fetch", {repository: tmp_path / "published.pth"}.__getitem__)
    part = ModelPart(name="vit_tiny_patch16_224", kwargs=small, pretrained=True)
    model, notes = models.build_with_notes(part, 10, 32, 0)
    assert torch.equal(model.pos_embed, published["pos_embed"])
    assert notes == (
        f"model.pretrained: {repository}: the backbone is loaded, the head is fresh (head: head.weight is 1000 x 24 in the "
        "file, 10 x 24 in the model).",
    )
    deeper = ModelPart(name="vit_tiny_patch16_224", kwargs={**small, "depth": 2}, pretrained=True)
    with pytest.raises(ScenarioError, match=r"it lacks blocks\.1\.\* of the backbone"):
        models.build(deeper, 10, 32, 0)


def test_a_model_nobody_has_published_weights_of_is_refused_at_once():
    assert refusal("vit_small_patch16_18x2_224", image_size=32, pretrained=True) == (
        "model.pretrained: there are no published weights for vit_small_patch16_18x2_224. Give the path of a weights file."
    )


def test_the_normalization_is_what_timm_states():
    found = models.normalization(build())
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.std == (0.5, 0.5, 0.5)


# Patches

GRIDS = st.builds(PatchGrid, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@settings(deadline=None)
@given(grid=GRIDS, count=st.integers(1, 3), seed=st.integers(0, 9))
def test_joining_what_was_cut_gives_the_images_back(grid, count, seed):
    shape = (count, grid.channels, grid.rows * grid.patch, grid.columns * grid.patch)
    images = torch.rand(shape, generator=torch_generator(seed, "images"))
    patches = grid.cut(images)
    assert patches.shape == (count, grid.count, grid.values)
    assert torch.equal(grid.join(patches), images)
    first = images[:, :, : grid.patch, : grid.patch]
    assert torch.equal(patches[:, 0], first.reshape(count, -1))


@pytest.mark.parametrize("name", ["vit_nano", "vit_micro"])
def test_patches_are_what_the_projection_multiplies(name):
    model = build(name)
    images, _ = batch(model)
    kernel = model.patch_embed.proj.weight.flatten(1)
    found = patch_grid(model).cut(images) @ kernel.T + model.patch_embed.proj.bias
    torch.testing.assert_close(found, model.patch_embed(images), rtol=1e-4, atol=1e-5)


# First block


def april(**kwargs):
    part = ModelPart(name="vit_nano", kwargs=kwargs, first_block="april")
    return models.build(part, 10, 32, 0)


def test_the_april_block_is_attention_then_mlp_without_first_norm_and_residuals():
    altered, stock = april(init_values=0.5), build(init_values=0.5)
    block, tokens = stock.blocks[0], torch.randn((2, 17, 64), generator=torch_generator(0, "tokens"))
    expected = block.ls2(block.mlp(block.norm2(block.ls1(block.attn(tokens)))))
    assert torch.equal(altered.blocks[0](tokens), expected)
    assert torch.equal(altered.blocks[1](tokens), stock.blocks[1](tokens))


def test_the_april_model_has_the_stock_model_s_weights_but_those_of_the_first_norm():
    altered, stock = april().state_dict(), build().state_dict()
    assert stock.keys() - altered.keys() == {"blocks.0.norm1.weight", "blocks.0.norm1.bias"}
    assert all(torch.equal(tensor, stock[name]) for name, tensor in altered.items())


def test_every_parameter_of_the_april_model_has_a_gradient():
    model = april()
    assert all(gradient.any() for gradient in gradient_of(model, *batch(model)).values())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_the_april_model_are_whole_and_independent(duplicate):
    model = april()
    copied, (images, _) = duplicate(model), batch(model)
    assert torch.equal(copied(images), model(images))
    before = model(images)
    copied.load_state_dict(build(seed=1).state_dict())
    assert not torch.equal(copied(images), before)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("source", [build, april])
def test_the_april_model_takes_a_file_of_a_stock_model_and_its_own(source, tmp_path):
    weights = source().state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    part = ModelPart(name="vit_nano", first_block="april", pretrained=str(tmp_path / "weights.pth"))
    loaded = models.build(part, 10, 32, seed=9).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())


def test_a_file_of_the_april_model_is_no_stock_model(tmp_path):
    torch.save(april().state_dict(), tmp_path / "weights.pth")
    assert "does not hold the weights of this model" in refusal(pretrained=str(tmp_path / "weights.pth"))


def test_the_april_model_works_in_functional_calls_and_per_sample():
    model = april()
    images, labels = batch(model, 3)
    weights = dict(model.named_parameters())

    def loss(given, image, label):
        logits = torch.func.functional_call(model, given, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    with unfused_attention(model):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
    for name, expected in gradient_of(model, images, labels).items():
        torch.testing.assert_close(each[name].mean(0), expected, rtol=1e-3, atol=1e-5)


def test_only_timm_s_plain_block_can_be_altered():
    part = ModelPart(name="vit_small_patch16_18x2_224", first_block="april")
    part = part.model_copy(update={"kwargs": {"embed_dim": 24, "depth": 1, "num_heads": 2}})
    with pytest.raises(
        ScenarioError, match=r"model\.first_block: april alters timm's plain block; this model begins with"
    ):
        models.build(part, 10, 32, 0)


# Attention and gradients


@pytest.mark.parametrize("raises", [False, True])
def test_attention_is_unfused_inside_and_as_before_afterwards(raises):
    model = build()
    switched = [block.attn for block in model.blocks]
    switched[0].fused_attn = False
    before = [module.fused_attn for module in switched]
    try:
        with unfused_attention(model):
            assert not any(module.fused_attn for module in switched)
            if raises:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [module.fused_attn for module in switched] == before
    assert any(before)


def test_unfused_attention_computes_the_same_and_has_a_second_derivative():
    model = build()
    images, labels = batch(model)
    fused = model(images)
    with unfused_attention(model):
        torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-5)
        images.requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        (gradient,) = torch.autograd.grad(loss, [model.patch_embed.proj.weight], create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), [images])
    assert second.abs().sum() > 0


@settings(deadline=None, max_examples=5)
@given(count=st.integers(1, 4), seed=st.integers(0, 9))
def test_the_gradient_is_that_of_autograd(count, seed):
    model = build(seed=seed)
    images, labels = batch(model, count, seed)
    found = gradient_of(model, images, labels)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(images), labels))
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert list(found) == list(expected)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_gradient():
    model = build()
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    found = gradient_of(model, *batch(model))
    assert torch.equal(found["idle"], torch.zeros(3))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_head_inputs_are_what_the_classifiers_get(name):
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_pool": "token"}
    model = models.build(ModelPart(name=name, kwargs=kwargs), 5, 16, 0)
    images = torch.randn(37, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = models.head_inputs(model, images)
    heads = [model.get_submodule(names.weight.removesuffix(".weight")) for names in models.head_names(model)]
    assert [len(rows) for rows in inputs] == [37] * len(heads)
    assert not any(head._forward_pre_hooks for head in heads)
    with torch.no_grad():
        logits = torch.stack([head(rows) for head, rows in zip(heads, inputs, strict=True)]).mean(0)
        torch.testing.assert_close(logits, model(images))


def test_head_inputs_leave_no_hook_where_the_model_fails():
    model = models.build(ModelPart(name="vit_nano"), 5, 32, 0)
    with pytest.raises(AssertionError):
        models.head_inputs(model, torch.zeros(1, 3, 8, 8))
    assert not model.head._forward_pre_hooks


# Fixed positions


@pytest.mark.parametrize("kwargs", [{}, {"img_size": (16, 32)}, {"class_token": False, "global_pool": "avg"}])
def test_fixed_positions_are_sines_and_cosines_of_row_and_column(kwargs):
    model, _ = fixed(**kwargs)
    rows, columns = model.patch_embed.grid_size
    width, prefix = model.embed_dim, model.pos_embed.shape[1] - rows * columns
    assert not model.pos_embed[0, :prefix].any()
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        bands = [10_000 ** (-k / (width // 4)) for k in range(width // 4)]
        expected = [f(at * band) for f in (math.sin, math.cos) for at in (row, column) for band in bands]
        torch.testing.assert_close(model.pos_embed[0, prefix + place], torch.tensor(expected), atol=1e-5, rtol=0)


def test_fixed_positions_are_neither_trained_nor_sent_and_leave_other_weights_alone():
    model, plain = fixed()[0], build(depth=1)
    assert "pos_embed" not in models.shared_state(model) and "pos_embed" not in models.trained(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    changed = [n for n, tensor in plain.state_dict().items() if not torch.equal(tensor, model.state_dict()[n])]
    assert changed == ["pos_embed"]
    assert "learned position embedding" not in models.facts(model)


def test_fixed_positions_take_the_place_of_those_in_a_weights_file_and_that_is_told(tmp_path):
    for name, source in (("other", build(depth=1)), ("same", fixed()[0])):
        torch.save(source.state_dict(), tmp_path / f"{name}.pth")
        part = ModelPart(
            name="vit_nano", kwargs={"depth": 1}, position_embedding="sincos", pretrained=str(tmp_path / f"{name}.pth")
        )
        model, notes = models.build_with_notes(part, 10, 32, 0)
        assert torch.equal(model.pos_embed, fixed()[0].pos_embed)
        assert any("exchanged for one of sines and cosines" in note for note in notes) == (name == "other")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"name": "convnet"}, "sincos takes the place of a learned position table, and this model has none"),
        ({"name": "vit_nano", "kwargs": {"pos_embed": "none"}}, "this model has none. Leave it out."),
        ({"name": "vit_nano", "kwargs": {"embed_dim": 66}}, "divides the width by four, and 66 is no multiple"),
    ],
)
def test_fixed_positions_are_refused_where_they_have_no_place(part, says):
    with pytest.raises(ScenarioError) as caught:
        models.build(ModelPart(position_embedding="sincos", **part), 10, 32, 0)
    assert str(caught.value).startswith("model.position_embedding: ") and says in str(caught.value)
