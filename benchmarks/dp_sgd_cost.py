"""What a step of DP-SGD costs beside the plain one, by the way in which gradients of single images are computed.

    python benchmarks/dp_sgd_cost.py
    python benchmarks/dp_sgd_cost.py --widths 96 192 --batch 32 --depth 4

Prints, for each width of a ViT with images of 32 pixels and patches of 4, the seconds of the plain step (forward, backward) and
the times of that which others take: the defense's own (`torch.func`), Opacus' hooks, and Opacus' ghost clipping. The latter two
need a sampler for position embedding and class token, which are bare parameters of the model; see `Prefix`. Least
processor time of several runs, one thread. Clipping is part of each; noise, which costs the same everywhere, is not.
"""

from __future__ import annotations

import argparse
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fedsim_defenses._per_image import clipped_sum
from opacus import GradSampleModule
from opacus.grad_sample import register_grad_sampler
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim.seeds import seeded, torch_generator, torch_threads

CLIP = 1.0
CLASSES = 10


class Prefix(nn.Module):
    """Class token and position embedding of a ViT as a layer of their own, for which Opacus can have a rule."""

    def __init__(self, token: Tensor, position: Tensor) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(token.detach().clone()), nn.Parameter(position.detach().clone())

    def forward(self, patches: Tensor) -> Tensor:
        """Return the tokens of the first block."""
        return torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.position


@register_grad_sampler(Prefix)
def prefix_gradients(layer: Prefix, activations: Any, backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the gradients of each image from those at the layer's output (batch, token, embed)."""
    return {layer.token: backprops[:, :1].unsqueeze(1), layer.position: backprops.unsqueeze(1)}


def vit(width: int, depth: int) -> VisionTransformer:
    """Return an untrained ViT for images of 32 pixels."""
    with seeded(0, "model"):
        return VisionTransformer(
            img_size=32, patch_size=4, embed_dim=width, depth=depth, num_heads=width // 32, num_classes=CLASSES
        )


def for_opacus(model: VisionTransformer) -> VisionTransformer:
    """Move the bare parameters of a model into a layer of their own, in place."""
    model.prefix = Prefix(model.cls_token, model.pos_embed)
    del model._parameters["cls_token"], model._parameters["pos_embed"]
    model.cls_token = model.pos_embed = None
    model._pos_embed = types.MethodType(lambda own, patches: own.pos_drop(own.prefix(patches)), model)
    return model


def steps(width: int, depth: int, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    """Return each way to take a step on a batch, by its name."""
    plain, own, hooked = vit(width, depth), vit(width, depth), GradSampleModule(for_opacus(vit(width, depth)))
    ghost = GradSampleModuleFastGradientClipping(
        for_opacus(vit(width, depth)), max_grad_norm=CLIP, use_ghost_clipping=True
    )

    def take_plain() -> None:
        plain.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()

    def take_hooked() -> list[Tensor]:
        for parameter in hooked.parameters():
            parameter.grad = parameter.grad_sample = None
        (nn.functional.cross_entropy(hooked(images), labels)).backward()
        each = [parameter.grad_sample for parameter in hooked.parameters()]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in each]).norm(dim=0)
        factors = (CLIP / norms).clamp(max=1)
        return [torch.tensordot(factors, gradient, dims=1) for gradient in each]

    def take_ghost() -> None:
        losses = nn.functional.cross_entropy(ghost(images), labels, reduction="none")
        ghost.zero_grad()
        losses.mean().backward(retain_graph=True)
        factors = ghost.get_clipping_coef()
        ghost.zero_grad()
        ghost.disable_hooks()
        (factors * losses).sum().backward()
        ghost.enable_hooks()
        for parameter in ghost.parameters():
            parameter._norm_sample = None

    return {
        "plain": take_plain,
        "torch.func": lambda: clipped_sum(own, images, labels, CLIP),
        "hooks": take_hooked,
        "ghost": take_ghost,
    }


def seconds(ways: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the least processor time of a step by each way; the ways take turns, so that drift of the machine cancels."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 1):  # the first one warms up
        for name, take in ways.items():
            started = time.process_time()
            take()
            found[name].append(time.process_time() - started)
    return {name: min(times[1:]) for name, times in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 192], help="multiples of 32")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    draws = torch_generator(0, "batch")
    images = torch.randn(options.batch, 3, 32, 32, generator=draws)
    labels = torch.randint(CLASSES, (options.batch,), generator=draws)
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus' hooks, of the layer whose input has no gradient
        for width in options.widths:
            found = seconds(steps(width, options.depth, images, labels), options.runs)
            plain = found.pop("plain")
            ratios = ", ".join(f"{name} {own / plain:.2f}" for name, own in found.items())
            print(f"width {width}: plain {plain:.3f} s; times of that: {ratios}")


if __name__ == "__main__":
    main()
