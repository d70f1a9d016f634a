"""Stored images, read when needed: what the sources that read files have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsim.data.decoding import Encoded, conversions, decode
from fedsim.errors import ScenarioError, nearest
from fedsim.seeds import numpy_generator
from fedsim.source import Pool, Pools, Source


@dataclass(frozen=True)
class Listing:
    """Labeled images in the order of the files, not yet read.

    Args:
        labels: class number of every image; negative where it has none.
        name: number -> what an error message calls the image, its file first.
        open: numbers -> reader of the first, second, ... of these; reads what must be read as a whole, once. The
            reader raises a ValueError for an image that is not there.
        where: YAML path of the parameter that named the files.
    """

    labels: np.ndarray
    name: Callable[[int], str]
    open: Callable[[Sequence[int]], Callable[[int], Encoded]]
    where: str

    def pool(self, numbers: np.ndarray, size: int | None) -> Pool:
        """Return the named images as a pool; size None keeps theirs, which must be that of the first."""
        chosen = [int(number) for number in numbers]
        read = self.open(chosen)

        def picture(index: int) -> np.ndarray:
            return _fit(decode(lambda: read(index), self.name(chosen[index]), self.where), size)

        def changes(index: int) -> tuple[str, ...]:
            return conversions(lambda: read(index), self.name(chosen[index]), self.where)

        def fetch(indices: Sequence[int]) -> Tensor:
            pictures = [picture(index) for index in indices]
            for index, found in zip(indices, pictures, strict=True):
                if found.shape != shape:
                    raise ScenarioError(
                        "data.image_size",
                        f"{self.name(chosen[index])} has {found.shape[1]}x{found.shape[0]} pixels, "
                        f"{self.name(chosen[0])} has {shape[1]}x{shape[0]}. Give a size to bring all images to.",
                    )
            return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

        shape = (size, size, 3) if size else picture(0).shape
        return Pool(torch.from_numpy(self.labels[chosen].astype(np.int64)), fetch, changes)


def pools(
    source: Source,
    seed: int,
    train: Listing,
    test: Listing | None,
    class_names: Sequence[str],
    notes: Sequence[str] = (),
) -> Pools:
    """Divide listings into the three pools, each with the classes in proportion as far as their counts allow.

    The auxiliary images, and the test images where there is no test listing, are held out of the training listing:
    an eighth at most, and `test_samples` (a quarter at most) or a tenth. Images without a label are left out, and the
    notes say so.

    Raises:
        ScenarioError: too few labeled images to divide.
    """
    notes = [*notes, *_unlabeled(train, "training")]
    order = _spread_labeled(train, numpy_generator(seed, "hold out"))
    if len(order) < 3 or (test is not None and not len(test.labels)):
        raise ScenarioError(
            train.where,
            f"{len(order)} training images with a label and {len(test.labels) if test else 'no'} test images; at least 3 "
            "to train on are needed, and 1 to test on where a test set is given.",
        )
    held = min(source.auxiliary_samples, max(1, len(order) // 8))
    auxiliary, rest = order[:held], order[held:]
    if test is None:
        count = min(source.test_samples or len(order) // 10 or 1, len(order) // 4 or 1)
        test, tested, rest = train, rest[:count], rest[count:]
    else:
        tested = _spread_labeled(test, numpy_generator(seed, "test"))[: source.test_samples]
        if not len(tested):
            raise ScenarioError(
                test.where,
                f"none of the {len(test.labels)} test images has a label. Give a test set with labels, or none: then "
                "images of the training set are held out for testing.",
            )
        notes += _unlabeled(test, "test")
    return Pools(
        train=train.pool(np.sort(rest[: source.samples]), source.image_size),
        test=test.pool(np.sort(tested), source.image_size),
        auxiliary=train.pool(np.sort(auxiliary), source.image_size),
        class_names=tuple(class_names),
        notes=tuple(notes),
    )


def _unlabeled(listing: Listing, split: str) -> list[str]:
    count = int((listing.labels < 0).sum())
    if not count:
        return []
    return [f"{listing.where}: {count} of {len(listing.labels)} {split} images have no label and are left out."]


def _spread_labeled(listing: Listing, generator: np.random.Generator) -> np.ndarray:
    labeled = np.flatnonzero(listing.labels >= 0)
    return np.asarray(labeled[spread(listing.labels[labeled], generator)])


def spread(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all sample numbers in a random order of which every beginning holds the classes in proportion."""
    order = generator.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    _, starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    share = (place + 0.5) / np.repeat(counts, counts)
    # Samples of different classes at the same share are taken in the random order that `by_class` points into.
    return order[by_class[np.lexsort((by_class, share))]]


def check_column(given: str, columns: Sequence[str], where: str, table: str) -> None:
    """Refuse a column that the table does not have.

    Raises:
        ScenarioError: names the nearest match and the columns.
    """
    if given not in columns:
        raise ScenarioError(
            where, f"no column {given!r} in {table}.{nearest(given, columns)} Columns: {', '.join(columns) or 'none'}."
        )


def _fit(image: Image.Image, size: int | None) -> np.ndarray:
    """Resize the shorter side to `size` and cut the center square; images of that size keep every pixel."""
    if size is not None and image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
