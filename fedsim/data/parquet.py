"""Local parquet files in Hugging Face's image layout: a column of {bytes, path}, a column of class numbers."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.data.listing import Encoded, Listing, check_column, code_labels, pools
from fedsim.data.source import Pools, Source
from fedsim.errors import ScenarioError


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Pictures in parquet files; the class names come from the schema where it has them.

    Args:
        path: a file, or a folder with train*.parquet and, for testing, test*.parquet.
        test_path: a file, or a folder with test*.parquet; None takes those in `path`, else holds pictures out.
        image_column: column of structs with `bytes`, or of bytes.
        label_column: column of whole numbers.
    """

    path: str
    test_path: str | None = None
    image_column: str = "img"
    label_column: str = "label"

    def load(self, seed: int) -> Pools:
        """Return the pools; the chosen rows are held encoded and decoded when they are read.

        Raises:
            ScenarioError: a file is missing, damaged or no parquet file, or lacks a column.
        """
        train = _Files.open(_find(Path(self.path), "train", "data.path"), "data.path")
        tested = self._test_files()
        sets = [train] if tested is None else [train, tested]
        for files in sets:
            files.check(self.image_column, self.label_column)
        columns = [files.read_labels(self.label_column) for files in sets]
        coded, names = code_labels(columns, train.class_names(self.label_column), "data.label_column")
        listings = [files.listing(labels, self.image_column) for files, labels in zip(sets, coded, strict=True)]
        return pools(self, seed, listings[0], listings[1] if tested else None, names)

    def _test_files(self) -> _Files | None:
        if self.test_path is not None:
            return _Files.open(_find(Path(self.test_path), "test", "data.test_path"), "data.test_path")
        beside = sorted(Path(self.path).glob("test*.parquet"))
        return _Files.open(beside, "data.path") if beside else None


def _find(path: Path, split: str, where: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ScenarioError(where, f"no file or folder {path}.")
    found = sorted(path.glob(f"{split}*.parquet"))
    if not found:
        raise ScenarioError(where, f"no {split}*.parquet in {path}.")
    return found


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ScenarioError(where, f"{path} is truncated, damaged or no parquet file ({reason}).") from None


@dataclass(frozen=True)
class _Files:
    paths: Sequence[Path]
    tables: Sequence[pq.ParquetFile]
    where: str

    @staticmethod
    def open(paths: Sequence[Path], where: str) -> _Files:
        tables = []
        for path in paths:
            with _reading(path, where):
                tables.append(pq.ParquetFile(path))
        return _Files(paths, tables, where)

    def check(self, image_column: str, label_column: str) -> None:
        for path, table in zip(self.paths, self.tables, strict=True):
            schema = table.schema_arrow
            check_column(image_column, schema.names, "data.image_column", str(path))
            check_column(label_column, schema.names, "data.label_column", str(path))
            kind = schema.field(image_column).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                raise ScenarioError(
                    "data.image_column", f"column {image_column!r} of {path} holds {kind}, not encoded pictures."
                )

    def read_labels(self, column: str) -> np.ndarray:
        parts = []
        for path, table in zip(self.paths, self.tables, strict=True):
            with _reading(path, self.where):
                parts.append(table.read(columns=[column]).column(column).to_numpy())
        return np.concatenate(parts)

    def class_names(self, column: str) -> list[str] | None:
        stored = (self.tables[0].schema_arrow.metadata or {}).get(b"huggingface")
        if stored is None:
            return None
        names = json.loads(stored).get("info", {}).get("features", {}).get(column, {}).get("names")
        return [str(name) for name in names] if names else None

    def listing(self, labels: np.ndarray, column: str) -> Listing:
        starts = [0, *accumulate(table.metadata.num_rows for table in self.tables)]

        def name(number: int) -> str:
            file = bisect.bisect_right(starts, number) - 1
            return f"{self.paths[file]}, row {number - starts[file]},"

        return Listing(labels, name, lambda numbers: self._gather(numbers, column), self.where)

    def _gather(self, numbers: Sequence[int], column: str) -> Callable[[int], Encoded]:
        """Read the rows `numbers`, ascending, one row group after the other."""
        wanted, first, parts = np.asarray(numbers), 0, []
        for path, table in zip(self.paths, self.tables, strict=True):
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                rows = wanted[(wanted >= first) & (wanted < first + count)] - first
                first += count
                if len(rows):
                    with _reading(path, self.where):
                        parts.append(_encoded(table.read_row_group(group, columns=[column]).column(column)).take(rows))
        stored = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
        return lambda index: stored[index].as_py() or b""


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_struct(column.type):
        return column
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
