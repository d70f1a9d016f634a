from typing import Any

import pytest
import torch
from descent_cases import SIDE, pictures, tiny
from fedsim_attacks.newton.last_block import LastBlockFeatures, read_last_block
from torch import nn
from vit_cases import gradient

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages
from fedsim.labels import distributions, smooth
from fedsim.seeds import seeded


def vit(**changes: Any) -> nn.Module:
    """Return a ViT in which no weight has a value that would hide a fault, such as zero or one."""
    model = tiny(**{"depth": 2, **changes})
    with seeded(0, "last block"), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def truth(model: nn.Module, batch: LabeledImages) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the true images, normalized, and their head inputs."""
    images = models.normalization(model).normalize(batch.images)
    with torch.no_grad():
        (inputs,) = models.head_inputs(model, images)
    return images, inputs


def separated(model: nn.Module, batch: LabeledImages) -> LastBlockFeatures:
    return read_last_block(model, gradient(model, batch).tensors, batch.labels, truth(model, batch)[1])


@torch.no_grad()
def apart(block: LastBlockFeatures, images: torch.Tensor) -> torch.Tensor:
    return block.apart(images)


@pytest.mark.parametrize(
    "changes",
    [{}, {"init_values": 0.1}, {"reg_tokens": 2}, {"no_embed_class": True}, {"qkv_bias": False}, {"depth": 4}],
    ids=lambda changes: ", ".join(changes) or "plain",
)
@pytest.mark.parametrize("rows", [(0,), (0, 1, 2, 3)], ids=["one image", "four images"])
def test_the_last_block_has_seen_the_true_images(changes: dict[str, Any], rows: tuple[int, ...]) -> None:
    model, batch = vit(**changes), pictures(*rows)
    block = separated(model, batch)
    assert (block.weights > 0).all()
    assert float(apart(block, truth(model, batch)[0]).max()) < 1e-3**2


def test_what_it_has_seen_of_a_image_is_of_no_other() -> None:
    model, batch = vit(), pictures(0, 1, 2)
    block, (images, _) = separated(model, batch), truth(model, batch)
    assert float(apart(block, images[[1, 2, 0]]).min()) > 0.1
    mixed = apart(block, images[[0, 2, 1]])
    assert float(mixed[0]) < 1e-6 and float(mixed[1:].min()) > 0.1


def test_soft_labels_are_those_of_the_loss() -> None:
    model, batch = vit(), pictures(0, 1)
    images, inputs = truth(model, batch)
    labels = smooth(distributions(batch.labels, 10), 0.1)
    tensors = models.gradient_of(model, images, labels)
    assert float(apart(read_last_block(model, tensors, labels, inputs), images).max()) < 1e-6
    with pytest.raises(AttackRefusedError, match="fit together"):
        read_last_block(model, tensors, batch.labels, inputs)


def test_without_a_block_before_it_the_keys_of_a_batch_are_left_out() -> None:
    model, batch = vit(depth=1), pictures(0, 1)
    block, heads = separated(model, batch), 3
    assert (block.weights[:, : 1 + heads] > 0).all()
    assert not block.weights[:, 1 + heads :].any()
    assert float(apart(block, truth(model, batch)[0]).max()) < 1e-6
    assert (separated(model, pictures(0)).weights > 0).all()


def test_it_is_differentiable_where_it_looks() -> None:
    model, batch = vit(), pictures(0)
    leaf = torch.zeros(1, 3, SIDE, SIDE, requires_grad=True)
    (slope,) = torch.autograd.grad(separated(model, batch).apart(leaf).sum(), leaf)
    assert slope.isfinite().all() and slope.any()


def test_what_does_not_fit_together_is_refused() -> None:
    model, batch = vit(), pictures(0, 1)
    tensors, (_, inputs) = gradient(model, batch).tensors, truth(model, batch)
    noisy = {name: g + g.std() * torch.randn(g.shape) for name, g in tensors.items()}
    without = {name: g for name, g in tensors.items() if "blocks.1.mlp.fc2" not in name}
    twice = torch.tensor([0, 0])
    for given, labels, seen, reason in (
        (noisy, batch.labels, inputs, "fit together"),
        (tensors, batch.labels, inputs.flip(0), "fit together"),
        (tensors, batch.labels[twice], inputs[twice], "apart"),
        (without, batch.labels, inputs, r"mlp\.fc2\.weight"),
    ):
        with pytest.raises(AttackRefusedError, match=reason):
            read_last_block(model, given, labels, seen)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "class token"),
        ({"qk_norm": True}, "norm or a gate"),
        ({"fc_norm": True}, "norm"),
    ],
    ids=["average", "norm of queries", "norm before the classifier"],
)
def test_models_that_it_cannot_read_are_refused(changes: dict[str, Any], reason: str) -> None:
    model, batch = vit(**changes), pictures(0)
    with pytest.raises(AttackRefusedError, match=reason):
        separated(model, batch)
