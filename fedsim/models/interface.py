"""What attacks, defenses and the simulator ask of a model: its classifier, its patches, what of it travels.

Everything here works on any torch module, and names what a module lacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from fedsim.applicability import ModelFact
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Normalization
from fedsim.models.first_block import AprilBlock
from fedsim.models.precode import BottleneckedLinear, training_loss

Features = Float[Tensor, "batch embed"]
Patches = Tensor  # (batch, patch, values): values in the order channel, row, column of the projection's kernel

_CHUNK = 32  # images in one forward pass, so that memory does not grow with their number


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what of a model travels between server and clients, sharing memory with it, in the order of its state dict.

    These are the parameters that are trained and the floating-point buffers, such as BatchNorm's running statistics. Frozen
    parameters, whole-number buffers (BatchNorm counts its batches, and timm's layers do not read the count) and buffers that
    the state dict leaves out stay as the model was built.
    """
    floats = {name for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    travelling = floats.union(trained(model))
    state: dict[str, Tensor] = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name in travelling}


def shared_buffers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the buffers that travel; see `shared_state`."""
    parameters = {name for name, _ in model.named_parameters()}
    return tuple(name for name in shared_state(model) if name not in parameters)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class ModelInterfaceError(AttackRefusedError):
    """An attack or a defense asked a model for something that it does not have."""

    def __init__(self, model: nn.Module, lack: str) -> None:
        super().__init__(f"{type(model).__name__} {lack}.")


@dataclass(frozen=True)
class PatchGrid:
    """How a ViT cuts an image.

    Args:
        patch: side of a patch in pixels.
        rows: patches from top to bottom.
        columns: patches from left to right.
        channels: color channels.
    """

    patch: int
    rows: int
    columns: int
    channels: int

    @property
    def count(self) -> int:
        """Patches in an image."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.patch**2

    def cut(self, images: Images) -> Patches:
        """Return patches (batch, patch, values), values laid out as the rows of the flattened projection kernel."""
        p = self.patch
        grid = images.reshape(len(images), self.channels, self.rows, p, self.columns, p)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(len(images), self.count, self.values)

    def join(self, patches: Patches) -> Images:
        """Return the images whose patches these are; the inverse of `cut`."""
        p, n = self.patch, len(patches)
        grid = patches.reshape(n, self.rows, self.columns, self.channels, p, p)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, self.channels, self.rows * p, self.columns * p)


def patch_grid(model: nn.Module) -> PatchGrid:
    """Return the patch grid of a timm ViT.

    Raises:
        ModelInterfaceError: the model does not cut images into square patches.
    """
    embed: Any = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed):
        raise ModelInterfaceError(model, "does not cut images into patches")
    rows, columns = embed.grid_size
    return PatchGrid(embed.patch_size[0], rows, columns, embed.proj.in_channels)


def normalization(model: nn.Module) -> Normalization:
    """Return the input normalization that timm states for a model."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return Normalization(tuple(config["mean"]), tuple(config["std"]))


class HeadNames(NamedTuple):
    """Parameter names of one linear classifier; `bias` is None where it has none."""

    weight: str
    bias: str | None


def head_names(model: nn.Module) -> tuple[HeadNames, ...]:
    """Return the names of the linear classifier: one entry, or two whose logits a distilled ViT averages.

    timm's models say which module it is; of any other it is the last linear layer.

    Raises:
        ModelInterfaceError: there is none.
    """
    stated = getattr(model, "get_classifier", None)
    if callable(stated):
        heads = stated()
    else:
        heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    modules = {id(module): name for name, module in model.named_modules()}
    found = []
    for head in heads if isinstance(heads, tuple | list) else (heads,):
        if not isinstance(head, nn.Linear):
            raise ModelInterfaceError(model, f"has no linear classifier, but a {type(head).__name__}")
        name = modules[id(head)]
        found.append(HeadNames(f"{name}.weight", None if head.bias is None else f"{name}.bias"))
    if not found:
        raise ModelInterfaceError(model, "has no linear classifier")
    return tuple(found)


def prefix_rows(model: nn.Module) -> int:
    """Return how many rows of `pos_embed` precede those of the patches (class, distillation, register tokens).

    Raises:
        ModelInterfaceError: the model has no learned position embedding that is added to its tokens.
    """
    if not isinstance(getattr(model, "pos_embed", None), Tensor) or not hasattr(model, "num_prefix_tokens"):
        raise ModelInterfaceError(model, "has no learned position embedding that is added to its tokens")
    count: int = model.num_prefix_tokens  # type: ignore[assignment]
    return 0 if model.no_embed_class else count


@torch.no_grad()
def head_inputs(model: nn.Module, images: Images) -> tuple[Features, ...]:
    """Return what reaches each linear classifier, one row an image, in the order of `head_names`.

    Behind a bottleneck (`model.precode`) that is what the bottleneck gives.

    Args:
        model: in the mode it is in; left as it is.
        images: normalized model input.
    """
    with catching_head_inputs(model) as caught:
        for part in torch.split(images, _CHUNK):
            model(part)
    return tuple(torch.cat(rows) for rows in caught)


@contextlib.contextmanager
def catching_head_inputs(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Give a list for each linear classifier, to which each pass of the model appends what reaches it; see `head_inputs`."""
    modules = [model.get_submodule(names.weight.rpartition(".")[0]) for names in head_names(model)]
    caught: list[list[Tensor]] = [[] for _ in modules]
    with contextlib.ExitStack() as hooks:
        for module, rows in zip(modules, caught, strict=True):
            if isinstance(module, BottleneckedLinear):
                handle = module.bottleneck.register_forward_hook(
                    lambda _, inputs, output, rows=rows: rows.append(output)
                )
            else:
                handle = module.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0]))
            hooks.callback(handle.remove)
        yield caught


@contextlib.contextmanager
def unfused_attention(model: nn.Module) -> Iterator[None]:
    """Switch fused attention off on this instance, and back afterwards: fused kernels have no double backward."""
    modules = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in modules]
    for module in modules:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.fused_attn = value


def gradient_of(model: nn.Module, images: Images, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of what a local step minimizes by trained parameter's name; the model's own `.grad` stays untouched.

    Parameters that the loss does not reach have a zero gradient.
    """
    names, parameters = zip(*trained(model).items(), strict=True)
    loss = training_loss(model, model(images), labels)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, gradients, strict=True)}


def facts(model: nn.Module) -> frozenset[ModelFact]:
    """Return what holds of a model among the things that attacks may ask of one, and is trained, so that updates tell of it."""
    return frozenset(fact for fact, read in _read_by(model).items() if all(tensor.requires_grad for tensor in read))


def frozen_facts(model: nn.Module) -> frozenset[ModelFact]:
    """Return what a model has among the things that attacks may ask of one, and does not train."""
    return frozenset(_read_by(model)) - facts(model)


def _read_by(model: nn.Module) -> dict[ModelFact, list[Tensor]]:
    """Return each fact that the architecture meets -> the parameters that attacks on it read."""
    found: dict[ModelFact, list[Tensor]] = {}
    try:
        heads = [model.get_submodule(names.weight.rpartition(".")[0]) for names in head_names(model)]
    except ModelInterfaceError:
        heads = []
    if heads and all(isinstance(head, nn.Linear) and head.out_features > 1 for head in heads):
        found["linear classifier"] = [head.get_parameter("weight") for head in heads]
    positions, embed = getattr(model, "pos_embed", None), getattr(model, "patch_embed", None)
    if isinstance(positions, nn.Parameter):
        found["learned position embedding"] = [positions]
    if isinstance(embed, PatchEmbed) and isinstance(embed.norm, nn.Identity):
        found["patch projection"] = [embed.get_parameter("proj.weight")]
    blocks = [module for module in model.modules() if isinstance(module, AprilBlock)]
    if blocks:
        found["APRIL first block"] = [p for b in blocks for n, p in b.attn.named_parameters() if n == "qkv.weight"]
    return found
