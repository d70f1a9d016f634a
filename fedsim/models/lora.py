"""LoRA: frozen linear layers, each with a trained low-rank change beside it.

Paper: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. "LoRA: Low-Rank Adaptation of Large Language Models". ICLR 2022.
https://arxiv.org/abs/2106.09685

Idea: a layer with weight W returns W x + (alpha / r) B A x. W and all else is frozen; A (r x in) and B (out x r) are trained. B
starts at zero, so that the model starts as it was. With B = 0 the gradient of A is zero: in round 1 an update tells of dL/dW no
more than dL/dB = (alpha / r) (dL/dW) A^T.

Differs from the paper: queries, keys and values, which timm holds in one layer, share one A, as in peft. A is drawn as the
authors' loralib draws it (Kaiming uniform, a = sqrt 5); the paper says Gaussian. No dropout before A.

Needs: linear layers whose names match. Names are those of loralib: a layer keeps `weight` and `bias`, and gains `lora_A` and
`lora_B`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedsim.errors import ScenarioError, nearest
from fedsim.models.copying import copied
from fedsim.models.interface import ModelInterfaceError, head_names
from fedsim.models.trainable import listed, matches
from fedsim.scenario import LoRAPart
from fedsim.validation import shown

_WHERE = "model.lora"


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank change beside its frozen weight.

    Args:
        layer: whose weight and bias become this layer's.
        rank: rows of A, columns of B.
        alpha: the change is scaled by alpha / rank.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_A = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b + scale B A x."""
        change = nn.functional.linear(nn.functional.linear(input, self.lora_A), self.lora_B)
        return super().forward(input) + self.scale * change

    def merged(self) -> nn.Linear:
        """Return a plain layer that computes the same: its weight is W + scale B A."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device)
        with torch.no_grad():
            layer.weight.copy_(self.weight + self.scale * self.lora_B @ self.lora_A)
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.train(self.training)


def add_lora(model: nn.Module, part: LoRAPart) -> None:
    """Give every target a low-rank change and freeze all else, but for the classifier where the part says so; in place.

    A is drawn from torch's global generator.

    Args:
        model: with its weights.
        part: rank, scale and targets.

    Raises:
        ScenarioError: a pattern matches no linear layer, or the classifier; a rank that is no less than a layer's; there is no
            linear classifier to train.
    """
    heads = _heads(model, part)
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = [name for name in layers if matches(name, part.targets)]
    for pattern in part.targets:
        found = [name for name in layers if matches(name, [pattern])]
        where = f"{_WHERE}.targets"
        if not found:
            names = [name for name in layers if name not in heads]
            raise ScenarioError(
                where,
                f"{shown(pattern)} matches no linear layer of the model.{nearest(pattern, names)} "
                f"It has {listed(names) or 'none but its classifier'}.",
            )
        if within := [name for name in found if name in heads]:
            raise ScenarioError(
                where,
                f"{shown(pattern)} matches the classifier {within[0]}, which is trained whole or not at all. Leave it out, and "
                "set model.lora.train_head.",
            )
    for name in chosen:
        most = min(layers[name].in_features, layers[name].out_features)
        if part.rank >= most:
            raise ScenarioError(
                f"{_WHERE}.rank", f"expected less than {most}, the rank that {name} has itself, got {part.rank}."
            )
    model.requires_grad_(False)
    alpha = float(part.rank) if part.alpha is None else part.alpha
    for name in chosen:
        _replace(model, name, LoRALinear(layers[name], part.rank, alpha))
    if part.train_head:
        for name in heads:
            model.get_submodule(name).requires_grad_()


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of a model with every low-rank change added to its weight: the plain architecture, the same function."""
    plain = copied(model)
    for name, layer in list(_adapted(plain)):
        _replace(plain, name, layer.merged())
    return plain


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def _heads(model: nn.Module, part: LoRAPart) -> set[str]:
    """Return the names of the modules of the classifier."""
    try:
        return {names.weight.rpartition(".")[0] for names in head_names(model)}
    except ModelInterfaceError as error:
        if part.train_head:
            raise ScenarioError(f"{_WHERE}.train_head", f"{str(error).rstrip('.')}. Set it to false.") from None
        return set()


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)
