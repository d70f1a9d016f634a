"""timm's Vision Transformers: kwargs and sizes checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer, is_model_in_modules
from torch import nn

from fedsim.coercion import coerce
from fedsim.errors import ScenarioError, nearest
from fedsim.models.first_block import make_april
from fedsim.models.weights import in_one_line
from fedsim.scenario import ModelPart
from fedsim.validation import shown

Size = tuple[int, int]
"""Height and width of the images."""

_MODULES = ("vision_transformer", "deit")
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
_MOST_BLOCKS = 500
_MOST_PARAMETERS = 4e9  # 16 GB; the largest ViT of timm has 1.8e9
_FOLLOWING = ("num_classes", "in_chans")
# Of every Vision Transformer, with their types. Layers go by name; classes, devices and number types are no YAML values.
KWARGS: Mapping[str, Any] = MappingProxyType(
    {
        name: str | None if name.endswith("_layer") else parameter.annotation
        for name, parameter in inspect.signature(VisionTransformer).parameters.items()
        if name not in (*_FOLLOWING, "embed_layer", "block_fn", "mlp_layer", "device", "dtype")
    }
)


def is_vit(name: str) -> bool:
    """Return whether a timm name is that of a Vision Transformer with the parameter names of timm's plain one."""
    return bool(timm.is_model(name)) and bool(is_model_in_modules(name, _MODULES))


def checked_kwargs(given: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return kwargs in the types of timm's signature, checked, for images of a size.

    Args:
        given: kwargs, those of a preset among them; 1e-4 is text in YAML, and timm does not check.
        size: height and width of the images.

    Raises:
        ScenarioError: kwargs that a Vision Transformer does not take, or sizes that do not fit.
    """
    kwargs = {}
    for key, value in given.items():
        where = f"model.kwargs.{key}"
        if key in _FOLLOWING:
            raise ScenarioError(where, "follows from the data; leave it out.")
        if key not in KWARGS:
            raise ScenarioError(where, f"unknown kwarg.{nearest(key, KWARGS)} Allowed: {', '.join(KWARGS)}.")
        kwargs[key] = value if key in _SIZES else coerce(value, KWARGS[key], where)
        if key.endswith("_rate") and kwargs[key] < 0:
            raise ScenarioError(where, f"expected at least 0, got {shown(value)}.")
    if kwargs.get("weight_init") == "skip":
        raise ScenarioError("model.kwargs.weight_init", "skip leaves tokens and positions uninitialized. Leave it out.")
    kwargs.setdefault("img_size", size[0] if size[0] == size[1] else size)
    _check_sizes(kwargs, size)
    return kwargs


def create(part: ModelPart, name: str, kwargs: Mapping[str, Any], num_classes: int, size: Size) -> VisionTransformer:
    """Build a Vision Transformer, its weights drawn from torch's global generator.

    Args:
        part: what the scenario says of it.
        name: timm's.
        kwargs: from `checked_kwargs`.
        num_classes: outputs of the head.
        size: height and width of the images.

    Raises:
        ScenarioError: it cannot be built with these kwargs, or its patches do not divide the images.
    """
    model = _create(part, name, kwargs, num_classes)
    _check_patches(part, model, size)
    if part.first_block == "april":
        make_april(model)
    return model


@torch.no_grad()
def fix_positions(model: nn.Module, is_loaded: bool) -> tuple[str, ...]:
    """Exchange a learned position table for a fixed one of sines and cosines of rows and columns, in place.

    A quarter of the width each are sines and cosines of a patch's row, and of its column, at frequencies 10000^(-k / quarter).
    Rows of class and register tokens are zero.

    Args:
        model: of the scenario.
        is_loaded: whether its weights come from a file.

    Returns:
        What its user should know, one sentence each.

    Raises:
        ScenarioError: the model has no learned table, or one that is too narrow or of an odd grid.

    Source: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), ICCV 2021,
    https://arxiv.org/abs/2104.02057; the order of the channels is timm's
    """
    where, table = "model.position_embedding", getattr(model, "pos_embed", None)
    if not isinstance(model, VisionTransformer) or not isinstance(table, nn.Parameter):
        raise ScenarioError(
            where, "sincos takes the place of a learned position table, and this model has none. Leave it out."
        )
    width = table.shape[-1]
    if width % 4:
        raise ScenarioError(where, f"sincos divides the width by four, and {width} is no multiple. Change embed_dim.")
    rows = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), width)
    fixed = nn.functional.pad(rows, (0, 0, table.shape[1] - len(rows), 0))[None]
    is_changed = is_loaded and not torch.allclose(table, fixed, atol=1e-4)
    model.pos_embed = nn.Parameter(fixed, requires_grad=False)
    return (
        (f"{where}: the table of the loaded weights is exchanged for one of sines and cosines.",) if is_changed else ()
    )


def _check_sizes(kwargs: Mapping[str, Any], size: Size) -> None:
    for key in _SIZES:
        value = kwargs.get(key, 1)
        is_pair = key == "img_size" and isinstance(value, list | tuple) and len(value) == 2
        for one in value if is_pair else (value,):
            if isinstance(one, bool) or not isinstance(one, int) or one < 1:
                raise ScenarioError(f"model.kwargs.{key}", f"expected a whole number of at least 1, got {shown(one)}.")
    stated = kwargs["img_size"]
    if (tuple(stated) if isinstance(stated, list | tuple) else (stated, stated)) != size:
        given = size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}"
        raise ScenarioError(
            "model.kwargs.img_size", f"the model takes {shown(stated)}, data.image_size is {given}. Make them equal."
        )
    _check_memory(kwargs, size)
    if "embed_dim" in kwargs and "num_heads" in kwargs and kwargs["embed_dim"] % kwargs["num_heads"]:
        raise ScenarioError(
            "model.kwargs.num_heads", f"{kwargs['num_heads']} does not divide embed_dim {kwargs['embed_dim']}."
        )


def _check_memory(kwargs: Mapping[str, Any], size: Size) -> None:
    """Refuse sizes that no memory holds, before any is taken; what is not given is estimated as a small ViT has it."""
    depth, width, tokens = (
        kwargs.get(key, size) for key, size in (("depth", 12), ("embed_dim", 192), ("reg_tokens", 0))
    )
    if depth > _MOST_BLOCKS:
        raise ScenarioError("model.kwargs.depth", f"expected at most {_MOST_BLOCKS}, got {depth}.")
    patch = kwargs.get("patch_size", 16)
    rows = (size[0] // patch) * (size[1] // patch) + tokens + 3 * patch**2
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
            name, num_classes=num_classes, **kwargs
        )
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, ArithmeticError, MemoryError) as error:
        reason = f"{part.name} cannot be built: {in_one_line(error)}"
        raise ScenarioError("model.kwargs", f"{reason} (with {shown(part.kwargs)}).") from None
    return model


def _check_patches(part: ModelPart, model: VisionTransformer, size: Size) -> None:
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ScenarioError(
            "model.name", f"{part.name} has a {type(model.patch_embed).__name__}. Choose a ViT that cuts plain patches."
        )
    height, width = model.patch_embed.patch_size
    if height != width or size[0] % height or size[1] % width:
        where = "model.kwargs.patch_size" if "patch_size" in part.kwargs else "model.name"
        raise ScenarioError(
            where,
            f"patches of {height} x {width} pixels do not divide images of {size[0]} x {size[1]}. Change "
            "data.image_size or model.kwargs.patch_size.",
        )
