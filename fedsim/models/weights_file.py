"""Weights files as data: nothing in one is executed, and nothing in one is larger than the file.

Files of torch are pickles inside of archives. Only tensors and plain containers are unpickled (`weights_only`), and an archive
that would grow when it is read, which torch never writes, is refused before anything is allocated.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from timm.models import load_state_dict
from torch import Tensor


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file of safetensors or torch, as timm reads it.

    Raises:
        UnpicklingError: it is no data alone, or would take more memory than the file has bytes.
        Exception: whatever timm, torch and safetensors raise on a damaged file, an OSError or a RuntimeError among them.
    """
    size = path.stat().st_size
    _check_archive(path, size)
    content: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    for tensor in _tensors(content):
        if tensor.nbytes > size:
            raise UnpicklingError(f"a tensor of {tensor.nbytes} bytes in a file of {size}")
    return content


def _check_archive(path: Path, size: int) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnpicklingError("its archive is compressed, as torch.save never writes it")
    if sum(entry.file_size for entry in entries) > size:
        raise UnpicklingError("its archive states more bytes than the file has")


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
