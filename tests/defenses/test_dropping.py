import copy

import pytest
import torch
from fedsim_defenses._dropping import attention_branches, dropped_attention, patch_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.models import PatchGrid, build
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.testing.fixtures import small_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Detached(nn.Module):
    """An attention whose output has no history."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **given: object) -> Tensor:
        return self.attention(x, **given).detach()


def draws(seed: int = 0) -> torch.Generator:
    return torch_generator(seed, "drops")


def pooled() -> nn.Module:
    """Return a ViT that classifies by the mean of its tokens; to a class token attention alone leads."""
    kwargs = {"class_token": False, "global_pool": "avg"}
    return build(ModelPart(name="vit_nano", kwargs=kwargs), 10, 32, 0)


def input_gradient(model: nn.Module) -> Tensor:
    images = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), torch.tensor([1, 2])), images)
    return gradient


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_keeping_all_attention_gives_the_plain_input_gradient_bit_for_bit() -> None:
    model = pooled()
    expected = input_gradient(model)
    with dropped_attention(model, 1.0, draws()):
        assert torch.equal(input_gradient(model), expected)


def test_dropping_all_attention_gives_the_input_gradient_of_a_model_with_detached_attention() -> None:
    model, detached = pooled(), pooled()
    for block in detached.blocks:
        block.attn = Detached(block.attn)
    with dropped_attention(model, 0.0, draws()):
        gated = input_gradient(model)
    assert torch.equal(gated, input_gradient(detached))
    assert bool(gated.any()) and not torch.allclose(gated, input_gradient(model))


def test_without_attention_nothing_reaches_the_image_from_the_class_token() -> None:
    model = small_model()
    with dropped_attention(model, 0.0, draws()):
        assert not input_gradient(model).any()


def test_each_block_is_dropped_alone_by_the_draws_of_the_generator() -> None:
    model, expected = pooled(), pooled()
    for block, draw in zip(
        expected.blocks, torch.stack([torch.rand((), generator=g) for g in [draws()] * 4]), strict=True
    ):
        if not draw < 0.5:
            block.attn = Detached(block.attn)
    assert 0 < sum(isinstance(block.attn, Detached) for block in expected.blocks) < 4
    with dropped_attention(model, 0.5, draws()):
        assert torch.equal(input_gradient(model), input_gradient(expected))


def test_the_forward_pass_is_the_same_and_without_a_graph_nothing_is_drawn() -> None:
    model, generator = small_model(), draws()
    before = generator.get_state()
    with torch.no_grad():
        expected = model(IMAGES)
        with dropped_attention(model, 0.0, generator):
            assert torch.equal(model(IMAGES), expected)
    assert torch.equal(generator.get_state(), before)
    with dropped_attention(model, 0.0, generator):
        assert torch.equal(model(IMAGES), expected)


def test_no_hook_remains_also_after_an_exception() -> None:
    model = small_model()
    with pytest.raises(RuntimeError, match="planted"), dropped_attention(model, 0.5, draws()):
        assert hooks_of(model) == 4
        raise RuntimeError("planted")
    assert hooks_of(model) == 0
    copy.deepcopy(model)


def test_a_model_without_blocks_has_no_attention() -> None:
    assert attention_branches(build(ModelPart(name="convnet"), 10, 32, 0)) == ()
    assert len(attention_branches(small_model())) == 4


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    patch=st.integers(1, 4),
    keep=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_mask_zeroes_the_rounded_down_share_of_whole_patches(
    rows: int, columns: int, patch: int, keep: float, seed: int
) -> None:
    mask = patch_masks(PatchGrid(patch, rows, columns, 3), keep, draws(seed), torch.device("cpu"))()
    assert mask.shape == (rows * patch, columns * patch)
    cells = mask.reshape(rows, patch, columns, patch).permute(0, 2, 1, 3).reshape(rows * columns, -1)
    assert all(len(cell.unique()) == 1 for cell in cells)
    tenths = round(10 * 2 * (1 - keep))  # every share above is a multiple of a twentieth
    assert int((~cells[:, 0]).sum()) == rows * columns * tenths // 20


def test_masks_are_drawn_anew_and_hit_every_patch_alike() -> None:
    draw = patch_masks(PatchGrid(1, 4, 4, 3), 0.75, draws(), torch.device("cpu"))
    masks = torch.stack([draw() for _ in range(2000)])
    share = (~masks).float().mean(0)
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 2000) ** 0.5
