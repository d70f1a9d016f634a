"""Which captured array is which tensor of the model: apps name what they send as they like, or not at all.

Flower's own examples send a state dict by name; a wrapper puts a prefix before every name (`net.`, `module.` of
DataParallel, `_orig_mod.` of torch.compile); `ArrayRecord([array, ...])` and legacy clients send a bare list, whose names
are positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.models import trained

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class ForeignArraysError(Exception):
    """The captured arrays are not those of the model; the message shows the first difference."""


@dataclass(frozen=True)
class Correspondence:
    """The captured array of each tensor of a model.

    Args:
        captured: trained parameter -> name of its captured array, in the model's order.
        buffers: buffer or frozen parameter -> name of its captured array; those that were not captured are left out.
        how: `by the prefix 'net.'` or `by order and shapes`; None where the names are the model's own.
        foreign: captured arrays that the model does not have.
    """

    captured: Mapping[str, str]
    buffers: Mapping[str, str]
    how: str | None
    foreign: tuple[str, ...]

    def parameters_of(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return captured arrays under the names of the model's parameters, in its order, float32."""
        return {name: arrays[theirs].float() for name, theirs in self.captured.items()}

    @torch.no_grad()
    def load(self, model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
        """Copy captured weights into a model's parameters and buffers."""
        tensors = model.state_dict(keep_vars=True)
        for name, theirs in {**self.captured, **self.buffers}.items():
            tensors[name].copy_(arrays[theirs])


def shapes_of(arrays: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in arrays.items()}


def correspond(captured: Shapes, model: nn.Module, resized: Sequence[str] = ()) -> Correspondence:
    """Return which captured array is which tensor of a model.

    By the model's own names; by these behind one prefix, if a single prefix fits; or, for arrays whose names say nothing else,
    by order and shapes.

    Args:
        captured: name -> shape, in the order of sending.
        model: whose trained parameters must all be among the arrays; its frozen ones and its buffers may.
        resized: parameters whose first axis may have another length: a classifier of another number of classes.

    Raises:
        ForeignArraysError: the arrays are not those of the model, or those of two such models.
    """
    wanted = shapes_of(trained(model))
    tensors = shapes_of(model.state_dict())

    def fits(name: str, shape: Shape | None) -> bool:
        own = tensors[name]
        return shape == own or (name in resized and shape is not None and shape[1:] == own[1:] and len(shape) > 0)

    prefixes = [p for p in _prefixes(captured, wanted) if all(fits(n, captured.get(p + n)) for n in wanted)]
    if "" in prefixes or len(prefixes) == 1:
        prefix = "" if "" in prefixes else prefixes[0]
        paired = {name: prefix + name for name in tensors if fits(name, captured.get(prefix + name))}
        return _made(captured, wanted, paired, f"by the prefix {prefix!r}" if prefix else None)
    if prefixes:
        raise ForeignArraysError(
            f"the arrays are those of {len(prefixes)} such models, {' and '.join(repr(prefix) for prefix in prefixes)}. "
            "Let the app send the one that is trained"
        )
    order = _in_order(captured)
    # A list of the parameters alone, or of the whole state dict, running statistics among them.
    for names in (list(wanted), list(tensors)):
        if len(names) == len(order) and all(fits(n, captured[o]) for n, o in zip(names, order, strict=True)):
            paired = dict(zip(names, order, strict=True))
            if not _contradict(paired):
                return _made(captured, wanted, paired, "by order and shapes")
    raise ForeignArraysError(_first_difference(captured, wanted, tensors, fits))


def _prefixes(captured: Shapes, wanted: Shapes) -> list[str]:
    """Return what stands before the first parameter's name, wherever that occurs."""
    first = next(iter(wanted))
    return sorted({name.removesuffix(first) for name in captured if name.endswith(first)}, key=len)


def _made(captured: Shapes, wanted: Shapes, paired: Mapping[str, str], how: str | None) -> Correspondence:
    known = set(paired.values())
    return Correspondence(
        captured={name: paired[name] for name in wanted},
        buffers={name: theirs for name, theirs in paired.items() if name not in wanted},
        how=how,
        foreign=tuple(name for name in captured if name not in known),
    )


def _is_positional(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _in_order(captured: Shapes) -> list[str]:
    names = list(captured)
    return sorted(names, key=int) if _is_positional(names) else names


def _contradict(paired: Mapping[str, str]) -> bool:
    """Return whether a captured array bears the name of another tensor than the one it would be by its place."""
    for name, theirs in paired.items():
        stated = [other for other in paired if theirs == other or theirs.endswith(f".{other}")]
        if stated and max(stated, key=len) != name:
            return True
    return False


def _first_difference(
    captured: Shapes, wanted: Shapes, tensors: Shapes, fits: Callable[[str, Shape | None], bool]
) -> str:
    order = _in_order(captured)
    counts = f"The capture holds {len(captured)} arrays, the model {len(wanted)} parameters"
    if len(tensors) > len(wanted):
        counts += f" and {len(tensors) - len(wanted)} buffers"
    if _is_positional(order):
        names = list(tensors) if len(order) == len(tensors) else list(wanted)
        for place in range(max(len(names), len(order))):
            own, theirs = names[place : place + 1], order[place : place + 1]
            if not (own and theirs and fits(own[0], captured[theirs[0]])):
                return (
                    f"array {place} is {_described(theirs, captured)} in the capture and {_described(own, tensors)} in the "
                    f"model. {counts}"
                )
    prefix = max(["", *_prefixes(captured, wanted)], key=lambda p: sum(p + name in captured for name in wanted))
    name = next((name for name in wanted if not fits(name, captured.get(prefix + name))), next(iter(wanted)))
    theirs = [prefix + name] if prefix + name in captured else []
    text = f"{name} is {_described([name], wanted, named=False)} in the model and "
    text += f"{_described(theirs, captured, named=False)} in the capture"
    if prefix:
        text += f" (where names begin with {prefix!r})"
    strange = [other for other in order if other.removeprefix(prefix) not in tensors]
    if not theirs and strange:
        text += f", whose first array of another name is {_described(strange[:1], captured)}"
    return f"{text}. {counts}"


def _described(names: Sequence[str], shapes: Shapes, named: bool = True) -> str:
    if not names:
        return "missing"
    return f"{names[0]} of shape {shapes[names[0]]}" if named else f"of shape {shapes[names[0]]}"
