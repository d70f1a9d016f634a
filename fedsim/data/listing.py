"""Stored pictures, read when needed: what the sources that read files have in common."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fedsim.data.source import Pool, Pools, Source
from fedsim.errors import ScenarioError, nearest
from fedsim.seeds import numpy_generator

Encoded = bytes | Path | Image.Image
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises


@dataclass(frozen=True)
class Listing:
    """Labeled pictures in the order of the files, not yet read.

    Args:
        labels: class number of every picture.
        name: number -> what an error message calls the picture, its file first.
        open: numbers -> reader of the first, second, ... of these; reads what must be read as a whole, once.
        where: YAML path of the parameter that named the files.
    """

    labels: np.ndarray
    name: Callable[[int], str]
    open: Callable[[Sequence[int]], Callable[[int], Encoded]]
    where: str

    def pool(self, numbers: np.ndarray, size: int | None) -> Pool:
        """Return the named pictures as a pool; size None keeps theirs, which must be that of the first."""
        chosen = [int(number) for number in numbers]
        read = self.open(chosen)

        def picture(index: int) -> np.ndarray:
            name = self.name(chosen[index])
            return _fit(_decode(read(index), name, self.where), size)

        def fetch(indices: Sequence[int]) -> Tensor:
            pictures = [picture(index) for index in indices]
            for index, found in zip(indices, pictures, strict=True):
                if found.shape != shape:
                    raise ScenarioError(
                        "data.image_size",
                        f"{self.name(chosen[index])} has {found.shape[1]}x{found.shape[0]} pixels, "
                        f"{self.name(chosen[0])} has {shape[1]}x{shape[0]}. Give a size to bring all pictures to.",
                    )
            return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

        shape = (size, size, 3) if size else picture(0).shape
        return Pool(torch.from_numpy(self.labels[chosen].astype(np.int64)), fetch)


def pools(source: Source, seed: int, train: Listing, test: Listing | None, class_names: Sequence[str]) -> Pools:
    """Divide listings into the three pools, each with the classes in proportion as far as their counts allow.

    The auxiliary pictures, and the test pictures where there is no test listing, are held out of the training listing:
    an eighth at most, and `test_samples` (a quarter at most) or a tenth.

    Raises:
        ScenarioError: too few pictures to divide.
    """
    order = spread(train.labels, numpy_generator(seed, "hold out"))
    if len(order) < 3 or (test is not None and not len(test.labels)):
        raise ScenarioError(
            train.where,
            f"{len(order)} training and {len(test.labels) if test else 'no'} test pictures; "
            "at least 3 to train on are needed, and 1 to test on where a test set is given.",
        )
    held = min(source.auxiliary_samples, max(1, len(order) // 8))
    auxiliary, rest = order[:held], order[held:]
    if test is None:
        count = min(source.test_samples or len(order) // 10 or 1, len(order) // 4 or 1)
        test, tested, rest = train, rest[:count], rest[count:]
    else:
        tested = spread(test.labels, numpy_generator(seed, "test"))[: source.test_samples]
    return Pools(
        train=train.pool(np.sort(rest[: source.samples]), source.image_size),
        test=test.pool(np.sort(tested), source.image_size),
        auxiliary=train.pool(np.sort(auxiliary), source.image_size),
        class_names=tuple(class_names),
    )


def spread(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all sample numbers in a random order of which every beginning holds the classes in proportion."""
    order = generator.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    share = (place + 0.5) / np.repeat(counts, counts)
    # Samples of different classes at the same share are taken in the random order that `by_class` points into.
    return order[by_class[np.lexsort((by_class, share))]]


def code_labels(
    values: Sequence[np.ndarray], names: Sequence[str] | None, where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return class numbers and class names for the label columns of the training and the test set.

    Args:
        values: the columns.
        names: class names in label order; None takes the integers that occur, in ascending order.
        where: YAML path of the parameter that named the column.

    Raises:
        ScenarioError: labels that are not integers, missing, or outside the names.
    """
    for column in values:
        if column.dtype.kind not in "iu":
            raise ScenarioError(where, f"the labels are not whole numbers, or some are missing (type {column.dtype}).")
    found = np.unique(np.concatenate(values))
    if names is None:
        return [np.searchsorted(found, column) for column in values], tuple(str(value) for value in found)
    outside = found[(found < 0) | (found >= len(names))]
    if len(outside):
        raise ScenarioError(where, f"label {outside[0]} is outside the {len(names)} classes, so 0 to {len(names) - 1}.")
    return [column.astype(np.int64) for column in values], tuple(names)


def check_column(given: str, columns: Sequence[str], where: str, table: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
        ScenarioError: names the nearest match and the columns.
    """
    if given not in columns:
        raise ScenarioError(
            where, f"no column {given!r} in {table}.{nearest(given, columns)} Columns: {', '.join(columns) or 'none'}."
        )


def _decode(encoded: Encoded, name: str, where: str) -> Image.Image:
    try:
        if isinstance(encoded, Image.Image):
            return _in_color(encoded)
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return _in_color(image)
    except UnidentifiedImageError:
        reason = "unknown format"
    except _DAMAGED as error:
        reason = str(error)
    raise ScenarioError(where, f"{name} is no readable picture ({reason}). Mend or remove it.")


def _in_color(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError("more than 8 bits a channel; convert it to 8")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    """Resize the shorter side to `size` and cut the center square; pictures of that size keep every pixel."""
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
