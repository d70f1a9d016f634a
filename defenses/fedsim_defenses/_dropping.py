"""What ARD and PRM leave out while an adversarial image is made: attention in the backward pass, and parts of the perturbation.

Mo, Wu, Wang, Guo, Wang. "When Adversarial Training Meets Vision Transformers: Recipes from Training to Architecture". NeurIPS
2022. https://arxiv.org/abs/2210.07540
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedsim.models import PatchGrid
from fedsim_defenses._evasion import Mask


def attention_branches(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the attention of each block of a Vision Transformer; none of a model without."""
    found = (getattr(module, "attn", None) for module in model.modules())
    return tuple(attention for attention in found if isinstance(attention, nn.Module))


@contextlib.contextmanager
def dropped_attention(model: nn.Module, keep: float, generator: torch.Generator) -> Iterator[None]:
    """Let the backward pass go through the attention of each block with probability `keep` alone; nothing stays on the model.

    The draws are made in each forward pass that records a graph, one a block, the same for all images. Values do not change:
    dL/dx = dL/dy + b J^T dL/dy with b from {0, 1}, and what bypasses the attention is left alone.

    Args:
        model: a Vision Transformer with residual connections around its attention.
        keep: probability that a block keeps it.
        generator: of the draws.
    """

    def gate(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        drawn = torch.rand((), generator=generator, device=generator.device)
        return output if float(drawn) < keep else output.detach()

    with contextlib.ExitStack() as hooks:
        for attention in attention_branches(model):
            hooks.callback(attention.register_forward_hook(gate).remove)
        yield


def patch_masks(grid: PatchGrid, keep: float, generator: torch.Generator, device: torch.device) -> Callable[[], Mask]:
    """Return what draws a mask over the pixels: of P patches, floor(P (1 - keep)) are false, uniformly without replacement.

    Args:
        grid: how the model cuts images.
        keep: share of the patches that are true.
        generator: of the draws.
        device: of the mask.
    """
    count = int(grid.count * (1 - keep) + 1e-9)  # the product of a count and a share may fall short of a whole number

    def draw() -> Mask:
        kept = torch.ones(grid.count, dtype=torch.bool)
        kept[torch.randperm(grid.count, generator=generator, device=generator.device)[:count].cpu()] = False
        side = grid.patch
        rows = kept.reshape(grid.rows, grid.columns).repeat_interleave(side, 0).repeat_interleave(side, 1)
        return rows.to(device)

    return draw
