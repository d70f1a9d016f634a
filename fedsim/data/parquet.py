"""Local parquet files in Hugging Face's image layout: a column of {bytes, path}, a column of labels."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.data.class_labels import code_labels
from fedsim.data.decoding import Encoded, stored
from fedsim.data.listing import Listing, check_column, pools
from fedsim.data.splits import Split, split_of
from fedsim.errors import ScenarioError
from fedsim.source import Pools, Source


@dataclass(frozen=True, kw_only=True)
class Parquet(Source):
    """Images in parquet files; the class names come from the schema where it has them.

    Args:
        path: a file, or a folder with train*.parquet or train/*.parquet; for testing, the same of test or validation.
        test_path: a file or such a folder for testing; None takes the test files in `path`, else holds images out.
        image_column: column of encoded images, of paths relative to the file, or of structs of `bytes` and `path`.
        label_column: column of whole numbers, text or booleans.
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
        train = _Files.open(_training_files(Path(self.path)), "data.path")
        tested, notes = self._test_files()
        sets = [train] if tested is None else [train, tested]
        for files in sets:
            files.check(self.image_column, self.label_column)
        columns = [files.read_labels(self.label_column) for files in sets]
        coded, names = code_labels(columns, _class_names(sets, self.label_column), "data.label_column")
        listings = [files.listing(labels, self.image_column) for files, labels in zip(sets, coded, strict=True)]
        return pools(self, seed, listings[0], listings[1] if tested else None, names, notes)

    def _test_files(self) -> tuple[_Files | None, list[str]]:
        where = "data.path" if self.test_path is None else "data.test_path"
        path = Path(self.path if self.test_path is None else self.test_path)
        if self.test_path is not None and path.is_file():
            return _Files.open([path], where), []
        if not path.is_dir():
            if self.test_path is None:
                return None, []
            raise ScenarioError(where, f"no file or folder {path}.")
        tests, validations = _files_of(path, "test"), _files_of(path, "validation")
        notes = [f"{where}: the test files in {path} are used for testing, the validation files are not used."]
        if validations and not tests:
            notes = [f"{where}: the validation files in {path} are used for testing."]
        if found := tests or validations:
            return _Files.open(found, where), notes if validations else []
        if self.test_path is None:
            return None, []
        raise _none_of("test", path, where)


def _training_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ScenarioError("data.path", f"no file or folder {path}.")
    found = _files_of(path, "train")
    if not found:
        raise _none_of("train", path, "data.path")
    return found


def _none_of(split: Split, folder: Path, where: str) -> ScenarioError:
    places = sorted({str(file.parent) for file in folder.rglob("*.parquet")})[:3]
    advice = f" There are parquet files in {', '.join(places)}; give a file or another folder." if places else ""
    return ScenarioError(where, f"no {split}*.parquet in {folder} or in a folder {split} of it.{advice}")


def _files_of(folder: Path, split: Split) -> list[Path]:
    """Return the parquet files whose names begin with a split, or else those in a folder of that name."""
    entries = sorted(folder.iterdir())
    found = [entry for entry in entries if _is_parquet(entry) and _begins_with(entry.name.lower(), split)]
    inner = [entry for entry in entries if entry.is_dir() and split_of(entry.name) == split]
    return found or [file for entry in inner for file in sorted(entry.iterdir()) if _is_parquet(file)]


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet" and not file.name.startswith(".") and file.is_file()


def _begins_with(name: str, split: Split) -> bool:
    word = re.match("[a-z]*", name)
    return name.startswith(split) or (word is not None and split_of(word[0]) == split)


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
            for where, column in (("data.image_column", image_column), ("data.label_column", label_column)):
                check_column(column, schema.names, where, str(path))
                if schema.names.count(column) > 1:
                    raise ScenarioError(where, f"{path} has several columns {column!r}. Rename all but one.")
            kind = schema.field(image_column).type
            if not _holds_images(kind):
                raise ScenarioError(
                    "data.image_column",
                    f"column {image_column!r} of {path} holds {kind}, neither encoded images nor paths of images.",
                )

    def read_labels(self, column: str) -> pa.ChunkedArray:
        parts = []
        for path, table in zip(self.paths, self.tables, strict=True):
            with _reading(path, self.where):
                parts.append(table.read(columns=[column]).column(column))
        if len({part.type for part in parts}) > 1:
            raise ScenarioError(
                "data.label_column",
                f"column {column!r} is of different types: "
                + ", ".join(f"{part.type} in {path}" for path, part in zip(self.paths, parts, strict=True)),
            )
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)

    def listing(self, labels: np.ndarray, column: str) -> Listing:
        starts = [0, *accumulate(table.metadata.num_rows for table in self.tables)]

        def name(number: int) -> str:
            file = bisect.bisect_right(starts, number) - 1
            return f"{self.paths[file]}, row {number - starts[file]},"

        return Listing(labels, name, lambda numbers: self._gather(numbers, column), self.where)

    def _gather(self, numbers: Sequence[int], column: str) -> Callable[[int], Encoded]:
        """Read the rows `numbers`, ascending, one row group after the other."""
        wanted, first = np.asarray(numbers), 0
        parts: list[tuple[pa.ChunkedArray, Path]] = []
        for path, table in zip(self.paths, self.tables, strict=True):
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                rows = wanted[(wanted >= first) & (wanted < first + count)] - first
                first += count
                if len(rows):
                    with _reading(path, self.where):
                        parts.append(
                            (table.read_row_group(group, columns=[column]).column(column).take(rows), path.parent)
                        )
        starts = [0, *accumulate(len(rows) for rows, _ in parts)]

        def read(index: int) -> Encoded:
            part = bisect.bisect_right(starts, index) - 1
            rows, folder = parts[part]
            return _stored(rows[index - starts[part]].as_py(), folder)

        return read


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        fields = {name: kind.field(name).type for name in ("bytes", "path") if kind.get_field_index(name) >= 0}
        return bool(fields) and all(
            pa.types.is_null(inner) or (_is_binary(inner) if name == "bytes" else _is_text(inner))
            for name, inner in fields.items()
        )
    return _is_binary(kind) or _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_binary(kind: pa.DataType) -> bool:
    return any((pa.types.is_binary(kind), pa.types.is_large_binary(kind), pa.types.is_binary_view(kind)))


def _is_text(kind: pa.DataType) -> bool:
    return any((pa.types.is_string(kind), pa.types.is_large_string(kind), pa.types.is_string_view(kind)))


def _stored(value: dict[str, Any] | bytes | str | None, folder: Path) -> Encoded:
    if isinstance(value, dict):
        return stored(value.get("bytes"), value.get("path"), folder)
    if isinstance(value, str):
        return stored(None, value, folder)
    return stored(value, None, folder)


def _class_names(sets: Sequence[_Files], column: str) -> list[str] | None:
    """Return the class names that the files state; None where none does, or none in Hugging Face's form."""
    stated = [
        (path, names)
        for files in sets
        for path, table in zip(files.paths, files.tables, strict=True)
        if (names := _names_in(table.schema_arrow, column)) is not None
    ]
    for path, names in stated[1:]:
        if names != stated[0][1]:
            raise ScenarioError(
                "data.label_column",
                f"{stated[0][0]} and {path} state different class names, so that their labels differ in meaning: "
                f"{', '.join(stated[0][1][:10])} and {', '.join(names[:10])}.",
            )
    return stated[0][1] if stated else None


def _names_in(schema: pa.Schema, column: str) -> list[str] | None:
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
    except (ValueError, RecursionError):
        return None
    for key in ("info", "features", column, "names"):
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        return None
    return content if len(set(content)) == len(content) else None
