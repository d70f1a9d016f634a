"""What makes an update one of its model, asked where a defense has changed it and where the server receives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.validation import shown

MOST_EXAMPLES = 2**31 - 1
"""More examples than any client can have; a larger weight in an average is an error or an attack."""


def tensors_fault(found: Any, expected: Mapping[str, Tensor]) -> str | None:
    """Return the first way in which tensors differ from a model's, or None: names, order, shapes, number format, finiteness.

    Args:
        found: what was received; anything at all.
        expected: tensors of the right names, order, shapes and number formats; their values do not matter.
    """
    if not isinstance(found, Mapping):
        return f"expected tensors by name, got {type(found).__name__}"
    missing = [name for name in expected if name not in found]
    if missing:
        return f"{_first(missing)} missing"
    extra = [shown(name) for name in found if name not in expected]
    if extra:
        return f"{_first(extra)} not of the model"
    for name, place in zip(found, expected, strict=True):
        if name != place:
            return f"the order differs from the model's: {name} comes where {place} belongs"
    faults = (_tensor_fault(name, found[name], tensor) for name, tensor in expected.items())
    return next((fault for fault in faults if fault is not None), None)


def _first(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _tensor_fault(name: str, found: Any, expected: Tensor) -> str | None:
    if not isinstance(found, Tensor):
        return f"{name} is a {type(found).__name__}, not a tensor"
    if found.shape != expected.shape:
        return f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"{name} holds {_plain(found.dtype)}, not {_plain(expected.dtype)}"
    if found.layout != torch.strided:
        return f"{name} is stored as {_plain(found.layout)}, not as a dense tensor"
    finite = torch.isfinite(found)
    if not bool(finite.all()):
        return f"{name} is not finite in {int((~finite).sum())} of {found.numel()} entries"
    return None


def _plain(name: Any) -> str:
    return str(name).removeprefix("torch.")


def examples_fault(count: Any, most: int = MOST_EXAMPLES) -> str | None:
    """Return why a stated number of examples cannot be one, or None.

    Args:
        count: what was stated; anything at all.
        most: the largest number that can be true.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= min(most, MOST_EXAMPLES):
        return f"num-examples is {shown(count)}, expected a whole number from 1 to {min(most, MOST_EXAMPLES)}"
    return None
