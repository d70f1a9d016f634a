"""Label columns of any kind become class numbers; an image without a label is told from a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedsim.errors import ScenarioError

UNLABELED = -1
_SHOWN = 10


def code_labels(
    columns: Sequence[pa.ChunkedArray | np.ndarray], names: Sequence[str] | None, where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return class numbers, `UNLABELED` where there is no label, and class names.

    Text and booleans are class names. A label is missing where the table has none, an empty text or, unless -1 is a class
    that is trained on, -1.

    Args:
        columns: labels of the training set and, if there is one, of the test set.
        names: class names in label order; None takes the labels that occur in training, in ascending order.
        where: YAML path of the parameter that named the column.

    Raises:
        ScenarioError: labels of another kind, labels outside the names, or test labels that training lacks.
    """
    plain = [_plain(column, where) for column in columns]
    is_text = _is_text(plain, where)
    values: list[list[Any]] = [column.to_pylist() for column in plain]
    if names is None and _is_boolean(columns[0]):
        names = ("false", "true")
    if names is None:
        classes = sorted(set(values[0]) - {None})
        _refuse_unclear(classes, where)
        names = [str(value) for value in classes]
    else:
        classes = list(names) if is_text else list(range(len(names)))
    numbers = {value: number for number, value in enumerate(classes)}
    missing = {None} if is_text or UNLABELED in numbers else {None, UNLABELED}
    _refuse_outside(values[0], set(numbers) | missing, names, is_text, where)
    for tested in values[1:]:
        _refuse_unlabeled(tested, numbers, where)
        _refuse_untrained(tested, set(values[0]) | missing, names, numbers, where)
    coded = [np.asarray([numbers.get(value, UNLABELED) for value in column], dtype=np.int64) for column in values]
    return coded, tuple(names)


def _plain(column: pa.ChunkedArray | np.ndarray, where: str) -> pa.ChunkedArray:
    """Return a column of 64-bit integers or of text, null where there is no label."""
    try:
        column = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([pa.array(column)])
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            texts = column.cast(pa.string())
            return pc.if_else(pc.equal(texts, ""), None, texts)
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
            column = pc.if_else(pc.is_nan(column), None, column)
        if any(is_kind(kind) for is_kind in _NUMBERS):
            return column.cast(pa.int64())
        reason = f"type {kind}"
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
    raise ScenarioError(
        where, f"the labels are neither whole numbers, nor text, nor booleans ({reason}). Name another column."
    )


_NUMBERS = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
)


def _is_text(plain: Sequence[pa.ChunkedArray], where: str) -> bool:
    kinds = {pa.types.is_string(column.type) for column in plain if column.null_count < len(column)}
    if len(kinds) > 1:
        raise ScenarioError(where, "the labels are text in one of the training and the test set, numbers in the other.")
    return True in kinds


def _is_boolean(column: pa.ChunkedArray | np.ndarray) -> bool:
    return column.dtype.kind == "b" if isinstance(column, np.ndarray) else pa.types.is_boolean(column.type)


def _refuse_unclear(classes: Sequence[Any], where: str) -> None:
    if UNLABELED in classes and classes != [UNLABELED, 1]:
        raise ScenarioError(
            where,
            f"the training labels are {_shown(classes)}, and no class names tell whether -1 is a class or marks images "
            "without a label. Number the classes from 0, or remove these images.",
        )


def _refuse_unlabeled(tested: Sequence[Any], numbers: dict[Any, int], where: str) -> None:
    """Refuse a test set that has -1 alone where -1 is a class: public test sets without labels look like that."""
    if UNLABELED in numbers and set(tested) == {UNLABELED}:
        raise ScenarioError(
            where,
            f"all {len(tested)} test labels are -1, a class of the training set that also marks images without a label. "
            "Test on labeled images (data.test_path), or number the classes from 0.",
        )


def _refuse_outside(labels: Sequence[Any], known: set[Any], names: Sequence[str], is_text: bool, where: str) -> None:
    outside = sorted(set(labels) - known)
    if not outside:
        return
    if is_text:
        raise ScenarioError(where, f"label {outside[0]!r} is not one of the {len(names)} classes: {_shown(names)}.")
    raise ScenarioError(where, f"label {outside[0]} is outside the {len(names)} classes, so 0 to {len(names) - 1}.")


def _refuse_untrained(
    labels: Sequence[Any], known: set[Any], names: Sequence[str], numbers: dict[Any, int], where: str
) -> None:
    unknown = Counter(label for label in labels if label not in known)
    if unknown:
        found = [f"{label} ({names[numbers[label]]})" if label in numbers else repr(label) for label in sorted(unknown)]
        raise ScenarioError(
            where,
            f"{unknown.total()} of {len(labels)} test images have labels that no training image has: {_shown(found)}. "
            "Remove them, or train on images of these classes too.",
        )


def _shown(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
