"""What the defenses of one client keep from round to round, as the wire and the run folder hold it.

A defense sees a mapping of its own, `ClientContext.state`. Those of all defenses of a client travel together: in the client's
Flower context while it lives, and in the run folder for the time after a kill.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.defense import State
from fedsim.validation import shown

_Item = TypeVar("_Item")

_DEEPEST = 16  # levels of lists and mappings in a value
_LONGEST = 1_000_000  # characters of JSON


@dataclass(frozen=True, eq=False)
class ClientState:
    """What all defenses of one client keep.

    Args:
        tensors: `OWNER/key` -> tensor.
        values: `OWNER/key` -> what JSON holds.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.values)

    def of(self, owner: str) -> State:
        """Return a copy of what one defense keeps, which it may change at will."""
        prefix = f"{owner}/"
        kept: State = {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        kept.update(
            {
                name.removeprefix(prefix): json.loads(json.dumps(value))
                for name, value in self.values.items()
                if name.startswith(prefix)
            }
        )
        return kept

    def to_wire(self) -> dict[str, str | bytes]:
        """Return the state as the fields of a Flower ConfigRecord."""
        contiguous = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return {"tensors": save(contiguous), "values": json.dumps(dict(self.values), allow_nan=False)}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> ClientState:
        """Return the state that `to_wire` gave.

        Raises:
            ValueError: the fields are no state.
        """
        try:
            if len(fields["values"]) > _LONGEST:
                raise ValueError
            values = json.loads(fields["values"])
            if not isinstance(values, dict):
                raise TypeError
            return cls(_in_order(load(fields["tensors"])), values)
        except (KeyError, TypeError, ValueError, RecursionError, SafetensorError):
            raise ValueError("it states what its defenses keep in a form that is none of fedsim's") from None


def gathered(states: Iterable[tuple[str, Mapping[Any, Any]]]) -> ClientState:
    """Return what the defenses of a client keep, checked.

    Args:
        states: owner and its state, each owner once.

    Raises:
        ValueError: a key is no text, or a value is neither a dense tensor on any device nor what JSON holds.
    """
    tensors, values = {}, {}
    for owner, state in states:
        for key, value in state.items():
            if not isinstance(key, str):
                raise ValueError(f"context.state has the key {shown(key)}, expected text")
            if isinstance(value, Tensor):
                if value.layout is not torch.strided or value.is_nested:
                    raise ValueError(f"context.state[{shown(key)}] is a sparse or nested tensor, expected a dense one")
                tensors[f"{owner}/{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            else:
                values[f"{owner}/{key}"] = _plain(value, key, _DEEPEST)
    if len(json.dumps(values)) > _LONGEST:
        raise ValueError(f"context.state holds more than {_LONGEST:,} characters beside its tensors")
    return ClientState(_in_order(tensors), _in_order(values))


def _in_order(items: Mapping[str, _Item]) -> dict[str, _Item]:
    """Return items by name: files and the wire keep no order of their own, and a resumed run must write the same bytes."""
    return dict(sorted(items.items()))


def _plain(value: Any, key: str, levels: int) -> Any:
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if levels and isinstance(value, list | tuple):
        return [_plain(item, key, levels - 1) for item in value]
    if levels and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, key, levels - 1) for name, item in value.items()}
    raise ValueError(
        f"context.state[{shown(key)}] holds {shown(value)}, expected a tensor, or finite numbers, texts, lists and mappings"
    )
