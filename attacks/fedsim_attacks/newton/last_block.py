"""What the last block of a ViT has seen of every image of a batch, image by image, from the gradient of the batch.

Behind the last attention the loss sees the class token alone, so that every gradient there is a sum over images of outer
products, of which one factor is known, step by step back from the head inputs (`head.features`):

1. Head inputs and labels give the loss's gradient at what enters the last norm, times sigma, the norm's divisor.
2. grad(fc2) then gives the hidden units over sigma. What the MLP added is fc2 of them, which leaves what the MLP has seen, and
   so its hidden units once more. The sigma at which both agree is the true one.
3. The gradient before the MLP follows by the chain rule, and grad(proj) gives what attention returned. The rest of the stream
   is the class token that came in, and its norm gives the queries.
4. grad(values) and grad(keys) of every head give sums over the normed tokens: weighed by attention, and by the loss's
   gradient at the attention's logits.

These are 1 + 2 heads vectors of the model's width an image, in which no other image is mixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Labels
from fedsim.labels import distributions

_MOST = 1e4  # condition number beyond which float32 leaves less than three digits
_AGREE = 1e-2  # relative difference of the two findings of the hidden units
_SIGMAS, _NARROWED = 400, 4  # divisors that are tried at once, and how often around the best
_RANGE = (1e-3, 1e4)  # of them

Row = Float[Tensor, " _"]
Rows = Float[Tensor, "batch _"]
Heads = Float[Tensor, "head batch _"]
Summaries = Float[Tensor, "batch entry embed"]


@dataclass(frozen=True, eq=False)
class LastBlockFeatures:
    """What the last block has seen of each image.

    Args:
        model: a plain ViT.
        asked: the loss's gradient at what each head returns.
        seen: the class token, normed; the sums of tokens by attention, one a head; those by the gradient, one a head.
        weights: of these vectors, one over the squared length; zero where the gradient does not show it.
    """

    model: VisionTransformer
    asked: Heads
    seen: Summaries
    weights: Float[Tensor, "batch entry"]

    def of(self, images: Images) -> Summaries:
        """Return the same of images, differentiable."""
        block = cast(Block, self.model.blocks[-1])
        caught: list[Tensor] = []
        handle = block.norm1.register_forward_hook(lambda module, inputs, output: caught.append(output))
        try:
            self.model.forward_features(images)
        finally:
            handle.remove()
        return _summaries(cast(Attention, block.attn), caught[0], self.asked)

    def apart(self, images: Images) -> Float[Tensor, " batch"]:
        """Return the mean relative squared distance of each image from what was seen."""
        squares = (self.of(images) - self.seen).square().sum(2)
        return (self.weights * squares).sum(1) / (self.weights > 0).sum(1)


def read_last_block(
    model: nn.Module, gradients: Mapping[str, Tensor], labels: Labels, inputs: Rows
) -> LastBlockFeatures:
    """Return what the last block has seen of each image.

    Args:
        model: attacked.
        gradients: of the mean loss over the batch, by parameter.
        labels: of the images.
        inputs: of the classifier, in the order of the labels.

    Raises:
        AttackRefusedError: the model is no plain ViT that reads a class token; a gradient of the last block is missing; or
            the parts do not fit together, as with noise, wrong labels, or images that the block cannot tell apart.
    """
    parts = _Parts.of(model)
    targets = distributions(labels, parts.head.out_features).to(inputs).double()
    return _Reading(parts, gradients, targets).last_block(inputs.double())


class _Parts(NamedTuple):
    """Of a plain ViT, from the last block on, in the order in which a token passes them."""

    vit: VisionTransformer
    norm1: nn.LayerNorm
    qkv: nn.Linear
    heads: int
    proj: nn.Linear
    scale1: nn.Module
    norm2: nn.LayerNorm
    fc1: nn.Linear
    act: nn.Module
    fc2: nn.Linear
    scale2: nn.Module
    norm: nn.LayerNorm
    head: nn.Linear

    @staticmethod
    def of(model: nn.Module) -> _Parts:
        """Return the parts of a model; refuse one in which others take part, or others than these."""
        if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
            raise AttackRefusedError("the model is no plain ViT that reads its class token.")
        block = cast(Block, model.blocks[-1])
        attention, mlp = block.attn, block.mlp
        if type(block) is not Block or type(attention) is not Attention or type(mlp) is not Mlp:
            raise AttackRefusedError("the last block of the model is no plain one.")
        beside = (attention.q_norm, attention.k_norm, attention.norm, mlp.norm, model.fc_norm)
        if attention.gate is not None or not all(isinstance(module, nn.Identity) for module in beside):
            raise AttackRefusedError("the last block or the classifier has a norm or a gate beside the usual ones.")
        if isinstance(model.head, models.BottleneckedLinear):
            raise AttackRefusedError("the classifier is behind a bottleneck (model.precode).")
        norms = tuple(cast(nn.LayerNorm, norm) for norm in (block.norm1, block.norm2, model.norm))
        if not all(isinstance(norm, nn.LayerNorm) and norm.elementwise_affine for norm in norms):
            raise AttackRefusedError("the last block's norms are no layer norms with weights.")
        fc1, fc2, head = (cast(nn.Linear, layer) for layer in (mlp.fc1, mlp.fc2, model.head))
        first = (norms[0], attention.qkv, attention.num_heads, attention.proj, block.ls1)
        return _Parts(model, *first, norms[1], fc1, cast(nn.Module, mlp.act), fc2, block.ls2, norms[2], head)


@dataclass(frozen=True, eq=False)
class _Reading:
    """The last block, its gradient, and the labels' distributions; all is computed in float64."""

    parts: _Parts
    gradients: Mapping[str, Tensor]
    targets: Rows

    def last_block(self, inputs: Rows) -> LastBlockFeatures:
        """Return what the block has seen, from the head inputs."""
        parts = self.parts
        stream = self._before_mlp(inputs)
        slope = _scaled(parts.scale1, self._slope(stream))
        returned = _factor(slope, self._gradient("attn.proj.weight"))
        token = _normed(parts.norm1, stream - _scaled(parts.scale1, _linear(parts.proj, returned)))
        asked = _by_head(slope @ _double(parts.proj.weight), parts.heads)
        queries = _by_head(_linear(parts.qkv, token).chunk(3, 1)[0], parts.heads)
        keys, values = (_by_head(rows.T, parts.heads).mT for rows in self._gradient("attn.qkv.weight").chunk(3)[1:])
        by_attention = _factor(asked, values)
        # With no block before this one, the class token and its queries are the same in every image of a batch.
        by_slope = _factor(queries, keys) if _condition(queries) < _MOST else torch.zeros_like(by_attention)
        seen = torch.cat([token[None], by_attention, by_slope]).transpose(0, 1)
        squares = seen.square().sum(2)
        found = (asked, seen, torch.where(squares > 0, 1 / squares, 0.0))
        return LastBlockFeatures(parts.vit, *(rows.to(parts.head.weight) for rows in found))

    def _gradient(self, name: str) -> Tensor:
        found = self.gradients.get(f"blocks.{len(self.parts.vit.blocks) - 1}.{name}")
        if found is None:
            raise AttackRefusedError(f"the update holds no gradient of the last block's {name}.")
        return found.double()

    def _before_mlp(self, inputs: Rows) -> Rows:
        """Return the stream at the norm before the MLP, up to a constant in each row, which norms do not see."""
        norm, head = self.parts.norm, self.parts.head
        normed = (inputs - _double(norm.bias)) / _double(norm.weight)
        residuals = (_linear(head, inputs).softmax(1) - self.targets) / len(inputs)
        slope = residuals @ _double(head.weight) * _double(norm.weight)
        slope = slope - slope.mean(1, keepdim=True) - normed * (slope * normed).mean(1, keepdim=True)  # times sigma
        hidden = _factor(_scaled(self.parts.scale2, slope), self._gradient("mlp.fc2.weight"))  # over sigma
        before = normed - _scaled(self.parts.scale2, hidden @ _double(self.parts.fc2.weight).T)  # over sigma
        return torch.stack([self._agreeing(*rows) for rows in zip(before, hidden, strict=True)])

    def _agreeing(self, before: Row, hidden: Row) -> Row:
        """Return the stream of one image, from itself and the hidden units that it causes, both over sigma."""
        parts, (low, high) = self.parts, (math.log(end) for end in _RANGE)
        shift = _scaled(parts.scale2, _linear(parts.fc2, hidden.new_zeros(1, len(hidden))))
        for _ in range(_NARROWED):
            sigmas = torch.linspace(low, high, _SIGMAS, dtype=before.dtype, device=before.device).exp()[:, None]
            streams = sigmas * before - shift
            caused = parts.act(_linear(parts.fc1, _normed(parts.norm2, streams)))
            apart = (caused / sigmas - hidden).norm(dim=1) / hidden.norm()
            best = int(apart.argmin())
            low, high = (math.log(float(sigmas[near])) for near in (max(best - 1, 0), min(best + 1, _SIGMAS - 1)))
        if not apart[best] < _AGREE:
            raise AttackRefusedError("the parts of the last block's gradient do not fit together.")
        return streams[best]

    def _slope(self, stream: Rows) -> Rows:
        """Return the loss's gradient at the stream before the MLP."""
        parts, leaf = self.parts, stream.detach().requires_grad_()
        added = _linear(parts.fc2, parts.act(_linear(parts.fc1, _normed(parts.norm2, leaf))))
        logits = _linear(parts.head, _normed(parts.norm, leaf + _scaled(parts.scale2, added)))
        loss = -(self.targets * logits.log_softmax(1)).sum(1).mean()
        return torch.autograd.grad(loss, leaf)[0]


def _summaries(attention: Attention, tokens: Float[Tensor, "batch token embed"], asked: Heads) -> Summaries:
    found = attention.qkv(tokens).view(*tokens.shape[:2], 3, attention.num_heads, -1)
    query, keys, values = found[:, 0, 0], found[:, :, 1], found[:, :, 2]
    shares = (attention.scale * torch.einsum("bhd,bthd->bht", query, keys)).softmax(2)
    gains = torch.einsum("hbd,bthd->bht", asked, values)
    slopes = attention.scale * shares * (gains - (shares * gains).sum(2, keepdim=True))
    summed = torch.einsum("bkt,bte->bke", torch.cat([shares, slopes], 1), tokens)
    return torch.cat([tokens[:, :1], summed], 1)


def _factor(known: Tensor, total: Tensor) -> Tensor:
    """Return X of known^T X = total, for one system or several."""
    if not _condition(known) < _MOST:
        raise AttackRefusedError("the last block does not tell the images of this batch apart.")
    found: Tensor = torch.linalg.pinv(known.mT) @ total
    return found


def _condition(rows: Tensor) -> float:
    values = torch.linalg.svdvals(rows)
    return float((values[..., 0] / values[..., -1]).max())


def _by_head(rows: Rows, heads: int) -> Heads:
    return rows.view(len(rows), heads, -1).transpose(0, 1)


def _double(weight: Tensor) -> Tensor:
    return weight.detach().double()


def _linear(layer: nn.Linear, rows: Rows) -> Rows:
    bias = None if layer.bias is None else _double(layer.bias)
    return nn.functional.linear(rows, _double(layer.weight), bias)


def _normed(norm: nn.LayerNorm, rows: Rows) -> Rows:
    return nn.functional.layer_norm(rows, norm.normalized_shape, _double(norm.weight), _double(norm.bias), norm.eps)


def _scaled(scale: nn.Module, rows: Tensor) -> Tensor:
    """Return what a layer scale, or none, makes of rows."""
    return _double(scale.gamma) * rows if isinstance(scale, LayerScale) else rows
