import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from fedsim_attacks.update.class_token import keep_class_token_only
from timm.models.vision_transformer import ResPostBlock
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.models import gradient_of, unfused_attention
from fedsim.seeds import seeded

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    with seeded(0, "class token"):
        model = timm.create_model(name, **{**SMALL, **changes})
        for parameter in model.parameters():  # scales of layers and classifiers start at values that would hide a fault
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes",
    [{}, {"init_values": 0.1}, {"qk_norm": True}, {"reg_tokens": 2}, {"no_embed_class": True}, {"fc_norm": True}],
    ids=lambda changes: ", ".join(changes) or "plain",
)
@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradients_stay_what_they_are(changes: dict[str, Any], fused: bool) -> None:
    model, labels = vit(**changes), torch.tensor([0, 3, 4])
    short = copy.deepcopy(model)
    assert keep_class_token_only(short)
    with torch.no_grad():
        torch.testing.assert_close(short(pictures()), model(pictures()))
    wanted = gradient_of(model, pictures(), labels)
    if fused:
        found = gradient_of(short, pictures(), labels)
    else:
        with unfused_attention(short):
            found = gradient_of(short, pictures(), labels)
    assert list(found) == list(wanted)
    whole = float(torch.cat([gradient.flatten() for gradient in wanted.values()]).norm())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * whole, msg=name)


def test_the_projection_and_the_mlp_of_the_last_block_are_saved() -> None:
    model = vit()
    short = copy.deepcopy(model)
    keep_class_token_only(short)
    with torch.no_grad(), FlopCounterMode(display=False) as before:
        model(pictures())
    with torch.no_grad(), FlopCounterMode(display=False) as after:
        short(pictures())
    saved = 1 - after.get_total_flops() / before.get_total_flops()
    assert 0.6 / SMALL["depth"] < saved < 0.75 / SMALL["depth"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: vit(global_pool="avg", class_token=False, fc_norm=False),
        lambda: vit(global_pool="map", class_token=False),
        lambda: vit("deit_tiny_distilled_patch16_224"),
        lambda: vit(block_fn=ResPostBlock, init_values=0.1),
        lambda: timm.create_model("resnet18", num_classes=5),
    ],
    ids=["mean token", "attention pool", "two classifiers", "other block", "no ViT"],
)
def test_models_whose_other_tokens_may_count_are_left_alone(build: Callable[[], nn.Module]) -> None:
    model = build()
    assert not keep_class_token_only(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
