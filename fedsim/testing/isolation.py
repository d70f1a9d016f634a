"""What every check rests on: faults that are told all at once, and what a plug-in must leave as it found it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

TORCH_GENERATOR = "torch's global generator"


class Fault(AssertionError):
    """One fault of a plug-in: what is wrong, and what the simulator relies on."""


def expect(claim: bool, message: str) -> None:
    """Raise Fault with the message unless the claim holds; unlike `assert`, also under `python -O`."""
    if not claim:
        raise Fault(message)


class Faults:
    """The faults of one plug-in, so that all of them can be told at once."""

    def __init__(self) -> None:
        self._by_part: dict[str, str] = {}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Keep the fault that ends the block, and go on after it; of one part the first fault is told alone."""
        try:
            yield
        except Fault as fault:
            self._by_part.setdefault(part, str(fault))

    def __bool__(self) -> bool:
        return bool(self._by_part)

    def __str__(self) -> str:
        found = list(dict.fromkeys(self._by_part.values()))
        return found[0] if len(found) == 1 else "\n".join([f"{len(found)} faults:", *(f"- {text}" for text in found)])


@contextlib.contextmanager
def told_at_once() -> Iterator[Faults]:
    """Collect faults, and raise them as one AssertionError at the end.

    A fault outside of `Faults.of` ends the block, as nothing after it can be checked. An error of the plug-in itself
    comes through, with the faults found until then as a note.
    """
    faults = Faults()
    try:
        with faults.of("what ends the check"):
            yield faults
    except Exception as error:
        if faults:
            error.add_note(f"Found before: {faults}")
        raise
    if faults:
        raise AssertionError(str(faults))


def _global_state() -> dict[str, object]:
    # Python's own generator is left out: run-time type checkers draw from it to look at samples of long containers.
    numpy_state = np.random.get_state(legacy=False)
    return {
        TORCH_GENERATOR: torch.get_rng_state().numpy().tobytes(),
        "NumPy's global generator": repr((numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"])),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


@contextlib.contextmanager
def no_global_effect(who: str, apart_from: Collection[str] = ()) -> Iterator[None]:
    """Check that the global state is the same afterwards.

    Args:
        who: whose work is done inside, for the message.
        apart_from: parts of the state that may change.
    """
    before = _global_state()
    yield
    after = _global_state()
    changed = [part for part, value in before.items() if after[part] != value and part not in apart_from]
    expect(
        not changed,
        f"{who} changes {', '.join(changed)}. Draw from the generator that is passed in, and leave global settings be.",
    )


@contextlib.contextmanager
def no_change(who: str, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Check that no name is added or removed and that each tensor is the same afterwards, bit for bit.

    Args:
        who: whose work is done inside, for the message.
        tensors: name -> tensor; looked at again afterwards, so that a live mapping shows what was exchanged in it.
    """
    before = {name: (tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors.items()}
    yield
    expect(
        list(tensors) == list(before), f"{who} changes the names in what it is given: {_difference(before, tensors)}."
    )
    for name, (value, wanted_gradient) in before.items():
        expect(torch.equal(tensors[name], value), f"{who} changes {name} in place; work on a copy.")
        expect(
            tensors[name].requires_grad == wanted_gradient,
            f"{who} sets requires_grad of {name}; work on a detached copy.",
        )


def _difference(before: Collection[str], after: Collection[str]) -> str:
    return ", ".join(sorted(set(before) ^ set(after))) or "their order"


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether both are absent, or equal bit for bit and of one type."""
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first, second)


def check_cautions(who: str, cautions: object) -> None:
    """Check that cautions are a tuple of sentences, as they are printed beside the results."""
    expect(isinstance(cautions, tuple), f"{who}: cautions must be a tuple, got {type(cautions).__name__}.")
    assert isinstance(cautions, tuple)
    for caution in cautions:
        is_sentence = isinstance(caution, str) and caution == caution.strip() and "\n" not in caution
        expect(
            is_sentence and " " in caution and caution.endswith("."),
            f"{who}: each caution must be one sentence on one line that ends with a full stop, got {caution!r}.",
        )
