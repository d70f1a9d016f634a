"""Images in class sub-folders, the layout of torchvision's and Hugging Face's image folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data.listing import Listing, pools
from fedsim.data.splits import Child, divide, split_of
from fedsim.errors import ScenarioError, nearest
from fedsim.source import Pools, Source

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_LEFT_BY_TOOLS = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found"})


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """Images in `path/<class>/`, at any depth below; classes are the sub-folders in alphabetical order.

    Where `path` holds train/ and test/ (or val/, validation/) with the class folders inside, it is these that are used.

    Args:
        path: folder of the class folders, or of the splits.
        test_path: folder of the class folders for testing; None takes the test split in `path`, else holds images out.
    """

    path: str
    test_path: str | None = None

    def load(self, seed: int) -> Pools:
        """Return the pools; images are decoded when they are read.

        Raises:
            ScenarioError: no such folder, a class folder without images, a class that training lacks, or folders that
                look like splits although it is not clear which to use.
        """
        root, notes = Path(self.path), list[str]()
        tested = None if self.test_path is None else (Path(self.test_path), "data.test_path")
        children = [_child(folder) for folder in _folders(root, "data.path")]
        if splits := divide(children, "data.path", wants_test=tested is None):
            root, notes = splits.train, list(splits.notes)
            tested = (splits.test, "data.path") if splits.test else tested
        names = [folder.name for folder in _folders(root, "data.path")]
        train = _listing(root, names, root, "data.path", notes)
        test = None
        if tested is not None:
            if tested[0].is_dir() and root.resolve() in (tested[0].resolve(), *tested[0].resolve().parents):
                raise ScenarioError(tested[1], f"{tested[0]} lies in {root}, which is trained on. Give another folder.")
            test = _listing(tested[0], names, root, tested[1], notes)
        return pools(self, seed, train, test, names, notes)


def _folders(root: Path, where: str) -> list[Path]:
    if not root.is_dir():
        raise ScenarioError(where, f"no folder {root}.")
    found = sorted(entry for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    if not found:
        raise ScenarioError(where, f"{root} has no sub-folders. Expected one a class, with its images inside.")
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BY_TOOLS


def _child(folder: Path) -> Child:
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)]
    filled = frozenset(entry.name for entry in inner if _has_images(entry))
    return Child(folder, filled, bool(filled) or _has_images(folder))


def _listing(root: Path, classes: Sequence[str], train: Path, where: str, notes: list[str]) -> Listing:
    """Return the images in class folders; adds to the notes what a user may believe to be used, and is not."""
    files: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for folder in _folders(root, where):
        if folder.name not in classes:
            raise ScenarioError(
                where, f"class folder {folder} is not in {train}, which is trained on.{nearest(folder.name, classes)}"
            )
        inside = sorted(_files(folder))
        found = [file for file in inside if _is_image(file)]
        if not found:
            raise ScenarioError(where, f"no image in {folder}. Expected {', '.join(sorted(_SUFFIXES))}.")
        others.update(file.suffix.lower() or "no suffix" for file in inside if not _is_image(file))
        files += found
        labels += [classes.index(folder.name)] * len(found)
    if loose := sum(_is_image(entry) for entry in root.iterdir() if entry.is_file()):
        notes.append(f"{where}: left out, being in no class folder: {loose} in {root} itself.")
    if others:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in others.most_common(5))
        notes.append(f"{where}: files in {root} that are not read as images: {kinds}.")
    if inner := {one for file in files if split_of(one := file.relative_to(root).parts[1])}:
        names = ", ".join(sorted(inner))
        notes.append(f"{where}: {names} inside class folders of {root}: all images of a class are taken together.")
    return Listing(
        labels=np.asarray(labels),
        name=lambda number: str(files[number]),
        open=lambda numbers: lambda index: files[numbers[index]],
        where=where,
    )


def _has_images(folder: Path) -> bool:
    return any(_is_image(file) for file in _files(folder))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _files(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, inner, files in os.walk(root, onerror=fail, followlinks=True):
        # A link may lead back to a folder above it.
        seen.add(os.path.realpath(folder))
        inner[:] = [name for name in inner if not _is_hidden(name) and os.path.realpath(Path(folder, name)) not in seen]
        yield from (Path(folder, file) for file in files if not file.startswith("."))
