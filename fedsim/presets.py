"""Small models by a name of their own: stock timm models with kwargs, and the network of the first attacks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A model with kwargs that make it train on two CPU cores.

    Args:
        target: timm's name, or a "module:factory".
        kwargs: of that.
        summary: one line for people.
    """

    target: str
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
        "convnet": Preset(
            "fedsim.models.convnet:ConvNet", {}, "LeNet of the first gradient inversions, any size of images"
        ),
    }
)
