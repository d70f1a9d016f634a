"""timm Vision Transformers by name, and the few facts about them that attacks and defenses need."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer, is_model_in_modules
from torch import Tensor, nn

from fedsim import weights
from fedsim.coercion import coerce
from fedsim.errors import ScenarioError, nearest
from fedsim.exchange import Images, Normalization
from fedsim.faults import shown
from fedsim.first_block import make_april
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded
from fedsim.weights import in_one_line

Features = Float[Tensor, "batch embed"]
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

_CHUNK = 32  # pictures in one forward pass, so that memory does not grow with their number
_VIT_MODULES = ("vision_transformer", "deit")
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
_MOST_BLOCKS = 500
_MOST_PARAMETERS = 4e9  # 16 GB; the largest ViT of timm has 1.8e9
_FOLLOWING = ("num_classes", "in_chans")
# Layers go by name; classes, devices and number types are no YAML values.
_KWARGS: Mapping[str, Any] = MappingProxyType(
    {
        name: str | None if name.endswith("_layer") else parameter.annotation
        for name, parameter in inspect.signature(VisionTransformer).parameters.items()
        if name not in (*_FOLLOWING, "embed_layer", "block_fn", "mlp_layer", "device", "dtype")
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
        ScenarioError: no such model, not a ViT, kwargs it does not take, sizes that do not fit, weights not to be had, a
            first block that cannot be altered.
    """
    name, given = part.name, _checked_kwargs(part.kwargs)
    if name in PRESETS:
        name, given = PRESETS[name].timm_name, {**PRESETS[name].kwargs, **given}
        if part.pretrained is True:
            raise ScenarioError(
                "model.pretrained", f"there are no published weights for {part.name}. Give the path of a weights file."
            )
    elif not timm.is_model(name):
        known = [*PRESETS, *timm.list_models("*vit*")]
        raise ScenarioError(
            "model.name", f"no model {name!r}.{nearest(name, known)} Presets: {', '.join(PRESETS)}; or any timm ViT."
        )
    elif "." in name and name not in (tagged := timm.list_pretrained()):
        raise ScenarioError("model.name", f"no published weights {name!r}.{nearest(name, tagged)}")
    elif not is_model_in_modules(name, _VIT_MODULES):
        raise ScenarioError("model.name", f"{name!r} is none of timm's VisionTransformers. Try vit_tiny_patch16_224.")
    given.setdefault("img_size", image_size)
    _check_sizes(given, image_size)
    with seeded(seed, "model"):
        model = _create(part, name, given, num_classes)
    _check_patches(part, model, image_size)
    if part.first_block == "april":
        make_april(model)
    if isinstance(part.pretrained, str):
        weights.load(model, Path(part.pretrained))
    return model.eval()


def _checked_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return kwargs in the types of timm's signature; 1e-4 is text in YAML, and timm does not check."""
    kwargs = {}
    for key, value in given.items():
        where = f"model.kwargs.{key}"
        if key in _FOLLOWING:
            raise ScenarioError(where, "follows from the data; leave it out.")
        if key not in _KWARGS:
            raise ScenarioError(where, f"unknown kwarg.{nearest(key, _KWARGS)} Allowed: {', '.join(_KWARGS)}.")
        kwargs[key] = value if key in _SIZES else coerce(value, _KWARGS[key], where)
    return kwargs


def _check_sizes(kwargs: Mapping[str, Any], image_size: int) -> None:
    for key in _SIZES:
        value = kwargs.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScenarioError(f"model.kwargs.{key}", f"expected a whole number of at least 1, got {shown(value)}.")
    if kwargs["img_size"] != image_size:
        raise ScenarioError(
            "model.kwargs.img_size",
            f"the model takes {kwargs['img_size']}, data.image_size is {image_size}. Make them equal.",
        )
    _check_memory(kwargs, image_size)
    if "embed_dim" in kwargs and "num_heads" in kwargs and kwargs["embed_dim"] % kwargs["num_heads"]:
        raise ScenarioError(
            "model.kwargs.num_heads", f"{kwargs['num_heads']} does not divide embed_dim {kwargs['embed_dim']}."
        )


def _check_memory(kwargs: Mapping[str, Any], image_size: int) -> None:
    """Refuse sizes that no memory holds, before any is taken; what is not given is estimated as a small ViT has it."""
    depth, width, tokens = (
        kwargs.get(key, size) for key, size in (("depth", 12), ("embed_dim", 192), ("reg_tokens", 0))
    )
    if depth > _MOST_BLOCKS:
        raise ScenarioError("model.kwargs.depth", f"expected at most {_MOST_BLOCKS}, got {depth}.")
    patch = kwargs.get("patch_size", 16)
    rows = (image_size // patch) ** 2 + tokens + 3 * patch**2
    parameters = depth * (4 + 2 * kwargs.get("mlp_ratio", 4.0)) * width**2 + rows * width
    if parameters > _MOST_PARAMETERS:
        raise ScenarioError(
            "model.kwargs",
            f"a model of about {parameters:.1g} parameters, and {_MOST_PARAMETERS:.0e} are allowed. "
            "Make embed_dim, depth, mlp_ratio or reg_tokens smaller, or patch_size larger.",
        )


def _create(part: ModelPart, name: str, kwargs: Mapping[str, Any], num_classes: int) -> VisionTransformer:
    try:
        model: VisionTransformer = timm.create_model(  # type: ignore[assignment]
            name, pretrained=part.pretrained is True, num_classes=num_classes, **kwargs
        )
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        reason = f"{part.name} cannot be built: {in_one_line(error)}"
        if part.pretrained is True:
            raise ScenarioError("model.pretrained", f"{reason}. Without a network, give a weights file.") from None
        raise ScenarioError("model.kwargs", f"{reason} (with {shown(part.kwargs)}).") from None
    return model


def _check_patches(part: ModelPart, model: VisionTransformer, image_size: int) -> None:
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ScenarioError(
            "model.name", f"{part.name} has a {type(model.patch_embed).__name__}. Choose a ViT that cuts plain patches."
        )
    height, width = model.patch_embed.patch_size
    if height != width or image_size % height:
        where = "model.kwargs.patch_size" if "patch_size" in part.kwargs else "model.name"
        raise ScenarioError(
            where,
            f"patches of {height} x {width} pixels do not divide pictures of {image_size} x {image_size}. Change "
            "data.image_size or model.kwargs.patch_size.",
        )


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
    count: int = model.num_prefix_tokens  # type: ignore[assignment]
    return 0 if model.no_embed_class else count


@torch.no_grad()
def head_inputs(model: nn.Module, images: Images) -> tuple[Features, ...]:
    """Return what reaches each linear classifier of a timm ViT, one row a picture, in the order of `head_names`.

    Args:
        model: in the mode it is in; left as it is.
        images: normalized model input.
    """
    modules = [model.get_submodule(names.weight.rpartition(".")[0]) for names in head_names(model)]
    caught: list[list[Tensor]] = [[] for _ in modules]
    with contextlib.ExitStack() as hooks:
        for module, rows in zip(modules, caught, strict=True):
            handle = module.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0]))
            hooks.callback(handle.remove)
        for part in torch.split(images, _CHUNK):
            model(part)
    return tuple(torch.cat(rows) for rows in caught)


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
