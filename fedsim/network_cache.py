"""Trained networks in the user's cache folder: `$FEDSIM_CACHE`, or `fedsim` in `$XDG_CACHE_HOME` or in `~/.cache`.

The cache saves time and decides nothing: what is missing or damaged is trained again, and a folder that cannot be written
to is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


def load(network: nn.Module, kind: str, key: str) -> bool:
    """Fill the network's weights from the cache, and return whether they were there, whole.

    Args:
        network: of the architecture that was stored.
        kind: the folder inside the cache.
        key: of all that the weights are a function of.
    """
    file = _file(kind, key)
    try:
        if file is None or not file.is_file():
            return False
        with safe_open(file, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}
            header = stored.metadata() or {}
    except (SafetensorError, OSError):
        return False
    own = network.state_dict()
    alike = {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in own.items()}
    if not alike or header.get("sha256") != _digest(weights):
        return False
    network.load_state_dict(weights)
    return True


def store(network: nn.Module, kind: str, key: str) -> None:
    """Write the network's weights, a whole file or nothing; see `load`."""
    weights, file = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, _file(kind, key)
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        number, aside = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(number, "wb") as opened:
                opened.write(save(weights, metadata={"sha256": _digest(weights)}))
            Path(aside).replace(file)
        finally:
            Path(aside).unlink(missing_ok=True)


def _file(kind: str, key: str) -> Path | None:
    """Return the place of one network, or None for a user without a home."""
    own, shared = os.environ.get("FEDSIM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "fedsim"
    except RuntimeError:
        return None
    return folder / kind / f"{key}.safetensors"


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
