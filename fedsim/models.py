"""timm Vision Transformers by name, and the few facts about them that attacks and defenses need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim.errors import ScenarioError, nearest
from fedsim.exchange import Images, Normalization
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded

Patches = Tensor  # (batch, patch, values): values in the order channel, row, column of the projection's kernel


class Preset(NamedTuple):
    """A stock timm model with kwargs that make it train on two CPU cores."""

    timm_name: str
    kwargs: Mapping[str, Any]
    summary: str


_STOCK = "vit_tiny_patch16_224"
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "vit_nano": Preset(
            _STOCK,
            {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2},
            "0.2 M parameters, 32 px",
        ),
        "vit_micro": Preset(
            _STOCK,
            {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
            "0.5 M parameters, 32 px",
        ),
        "vit_mini": Preset(
            _STOCK,
            {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3},
            "1.8 M parameters, 32 px",
        ),
    }
)


@dataclass(frozen=True)
class PatchGrid:
    """How a ViT cuts a picture.

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
        """Patches in a picture."""
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
        """Return the pictures whose patches these are; the inverse of `cut`."""
        p, n = self.patch, len(patches)
        grid = patches.reshape(n, self.rows, self.columns, self.channels, p, p)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, self.channels, self.rows * p, self.columns * p)


def patch_grid(model: nn.Module) -> PatchGrid:
    """Return the patch grid of a timm ViT."""
    embed = model.patch_embed
    rows, columns = embed.grid_size  # type: ignore[union-attr,misc]
    return PatchGrid(embed.patch_size[0], rows, columns, embed.proj.in_channels)  # type: ignore[union-attr,index,arg-type]


def normalization(model: nn.Module) -> Normalization:
    """Return the input normalization that timm states for a model."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return Normalization(tuple(config["mean"]), tuple(config["std"]))


def build(part: ModelPart, num_classes: int, image_size: int, seed: int) -> VisionTransformer:
    """Build the scenario's model with weights that depend on the seed alone.

    Raises:
        ScenarioError: no such model, not a ViT, kwargs it does not take, sizes that do not fit, weights not to be had.
    """
    name, kwargs = part.name, dict(part.kwargs)
    if name in PRESETS:
        name, kwargs = PRESETS[name].timm_name, {**PRESETS[name].kwargs, **kwargs}
    elif not timm.is_model(name):
        known = [*PRESETS, *timm.list_models("*vit*")]
        raise ScenarioError(
            "model.name", f"no model {name!r}.{nearest(name, known)} Presets: {', '.join(PRESETS)}; or any timm ViT."
        )
    kwargs.setdefault("img_size", image_size)
    _check_sizes(kwargs, image_size)
    with seeded(seed, "model"):
        model = _create(name, kwargs, num_classes, part.pretrained)
    if not isinstance(model, VisionTransformer):
        raise ScenarioError("model.name", f"{name!r} is a {type(model).__name__}, not a timm VisionTransformer.")
    return model.eval()


def _check_sizes(kwargs: Mapping[str, Any], image_size: int) -> None:
    for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
        value = kwargs.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScenarioError(f"model.kwargs.{key}", f"expected a whole number of at least 1, got {value!r}.")
    if kwargs["img_size"] != image_size:
        raise ScenarioError(
            "model.kwargs.img_size", f"{kwargs['img_size']} does not fit data.image_size {image_size}. Make them equal."
        )
    patch = kwargs.get("patch_size")
    if patch is not None and image_size % patch:
        raise ScenarioError("model.kwargs.patch_size", f"{patch} does not divide the image size {image_size}.")
    if "embed_dim" in kwargs and "num_heads" in kwargs and kwargs["embed_dim"] % kwargs["num_heads"]:
        raise ScenarioError(
            "model.kwargs.num_heads", f"{kwargs['num_heads']} does not divide embed_dim {kwargs['embed_dim']}."
        )


def _create(name: str, kwargs: dict[str, Any], num_classes: int, pretrained: bool | str) -> nn.Module:
    extra: dict[str, Any] = {"num_classes": num_classes, **kwargs}
    if "num_classes" in kwargs:
        raise ScenarioError("model.kwargs.num_classes", "follows from the data; leave it out.")
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise ScenarioError("model.pretrained", f"no weights file {pretrained}. Give a .safetensors or .pth file.")
        extra["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **extra)
    except TypeError as error:
        raise ScenarioError("model.kwargs", f"{name} does not take these: {error}.") from None
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        where = "model.pretrained" if pretrained else "model.kwargs"
        raise ScenarioError(where, f"{name} cannot be built: {type(error).__name__}: {error}") from None


class HeadNames(NamedTuple):
    """Parameter names of one linear classifier; `bias` is None where it has none."""

    weight: str
    bias: str | None


def head_names(model: nn.Module) -> tuple[HeadNames, ...]:
    """Return the names of a timm ViT's classifier: one entry, or two whose logits a distilled ViT averages."""
    heads = model.get_classifier()  # type: ignore[operator]
    modules = {id(module): name for name, module in model.named_modules()}
    found = []
    for head in heads if isinstance(heads, tuple | list) else (heads,):
        name = modules[id(head)]
        found.append(HeadNames(f"{name}.weight", None if head.bias is None else f"{name}.bias"))
    return tuple(found)


def prefix_rows(model: nn.Module) -> int:
    """Return how many rows of `pos_embed` precede those of the patches (class, distillation, register tokens)."""
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)  # type: ignore[call-overload]


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
    """Return the gradient of the mean cross-entropy by parameter name; the model's own `.grad` stays untouched.

    Parameters that the loss does not reach have a zero gradient.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = nn.functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, gradients, strict=True)}
