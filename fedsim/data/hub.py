"""Image data sets of the Hugging Face hub; needs a network, or a data set that is in the local cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fedsim.data.class_labels import code_labels
from fedsim.data.decoding import Encoded, stored
from fedsim.data.listing import Listing, check_column, pools
from fedsim.errors import ScenarioError
from fedsim.source import Pools, Source


@dataclass(frozen=True, kw_only=True)
class Hub(Source):
    """A data set of the hub, by name.

    Args:
        dataset: its name on the hub.
        subset: its configuration, where it has several.
        image_column: column of images.
        label_column: column of class numbers, text or booleans.
        train_split: split that the clients train on.
        test_split: split for testing; None holds images of the training split out.
    """

    dataset: str = "uoft-cs/cifar10"
    subset: str | None = None
    image_column: str = "img"
    label_column: str = "label"
    train_split: str = "train"
    test_split: str | None = "test"

    def load(self, seed: int) -> Pools:
        """Return the pools; images stay memory-mapped in the hub's cache and are decoded when they are read.

        Raises:
            ScenarioError: the hub or the data set cannot be reached, or it lacks a split or a column.
        """
        splits = [split for split in (self.train_split, self.test_split) if split is not None]
        tables = [self._table(split) for split in splits]
        columns = [_column(table, self.label_column) for table in tables]
        names = getattr(tables[0].features[self.label_column], "names", None)
        coded, class_names = code_labels(columns, names, "data.label_column")
        listings = [
            Listing(labels, _namer(f"{self.dataset} {split}"), _opener(table, self.image_column), "data.dataset")
            for table, labels, split in zip(tables, coded, splits, strict=True)
        ]
        return pools(self, seed, listings[0], listings[1] if self.test_split is not None else None, class_names)

    def _table(self, split: str) -> Any:
        import datasets

        try:
            table = datasets.load_dataset(self.dataset, self.subset, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise ScenarioError(
                "data.dataset",
                f"cannot load split {split!r} of {self.dataset!r} from the hub: {' '.join(str(error).split())} "
                "Without a network, give local files: --set data.name=parquet --set data.path=...",
            ) from None
        check_column(self.image_column, table.column_names, "data.image_column", self.dataset)
        check_column(self.label_column, table.column_names, "data.label_column", self.dataset)
        if not isinstance(table.features[self.image_column], datasets.Image):
            raise ScenarioError(
                "data.image_column", f"column {self.image_column!r} of {self.dataset} is no image column."
            )
        return table.cast_column(self.image_column, datasets.Image(decode=False))


def _namer(table: str) -> Callable[[int], str]:
    return lambda number: f"{table}, row {number},"


def _column(table: Any, name: str) -> pa.ChunkedArray:
    return table.select_columns([name]).with_format("arrow")[:].column(name)


def _opener(table: Any, column: str) -> Callable[[Sequence[int]], Callable[[int], Encoded]]:
    def read(number: int) -> Encoded:
        row = table[number][column] or {}
        return stored(row.get("bytes"), row.get("path"), None)

    return lambda numbers: lambda index: read(numbers[index])
