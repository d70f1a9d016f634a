"""Pictures in class sub-folders, the layout of torchvision's and Hugging Face's image folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data.listing import Listing, pools
from fedsim.data.source import Pools, Source
from fedsim.errors import ScenarioError, nearest

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Pictures in `path/<class>/`, at any depth below; classes are the sub-folders in alphabetical order.

    Args:
        path: folder of the class folders.
        test_path: the same for testing; None holds whole pictures of `path` out.
    """

    path: str
    test_path: str | None = None

    def load(self, seed: int) -> Pools:
        """Return the pools; pictures are decoded when they are read.

        Raises:
            ScenarioError: no such folder, a class folder without pictures, an unknown class in `test_path`.
        """
        names = _class_folders(Path(self.path), "data.path")
        train = _listing(Path(self.path), names, names, "data.path")
        test = None
        if self.test_path is not None:
            present = _class_folders(Path(self.test_path), "data.test_path")
            test = _listing(Path(self.test_path), present, names, "data.test_path")
        return pools(self, seed, train, test, names)


def _class_folders(root: Path, where: str) -> list[str]:
    if not root.is_dir():
        raise ScenarioError(where, f"no folder {root}.")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ScenarioError(where, f"{root} has no sub-folders. Expected one a class, with its pictures inside.")
    return names


def _listing(root: Path, present: Sequence[str], classes: Sequence[str], where: str) -> Listing:
    files: list[Path] = []
    labels: list[int] = []
    for name in present:
        if name not in classes:
            raise ScenarioError(where, f"class folder {root / name} is not in data.path.{nearest(name, classes)}")
        found = _pictures(root / name)
        if not found:
            raise ScenarioError(where, f"no picture in {root / name}. Expected {', '.join(sorted(_SUFFIXES))}.")
        files += found
        labels += [classes.index(name)] * len(found)
    return Listing(
        labels=np.asarray(labels),
        name=lambda number: str(files[number]),
        open=lambda numbers: lambda index: files[numbers[index]],
        where=where,
    )


def _pictures(root: Path) -> list[Path]:
    return sorted(
        Path(folder, file)
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if Path(file).suffix.lower() in _SUFFIXES and not file.startswith(".")
    )
