"""Which parameters of a model are trained: those that patterns name; all others are frozen, and do not travel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fedsim.errors import ScenarioError, nearest
from fedsim.models.interface import shared_buffers, shared_state, trained
from fedsim.validation import shown

_WHERE = "training.trainable"
_LISTED = 6  # names in a message


def freeze_others(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter that the patterns do not name, in place.

    Args:
        model: prepared by all defenses. What it freezes itself stays frozen.
        patterns: as in a shell, `*` standing for any text, dots included. One that begins with `!` takes parameters away, and
            where all of them do, every other parameter is trained.

    Raises:
        ScenarioError: a pattern matches nothing that the model trains, or nothing is left to train.
    """
    candidates = trained(model)
    taken, left_out = ([p for p in patterns if p.startswith("!") == sign] for sign in (False, True))
    for pattern in patterns:
        _check(model, pattern, candidates)
    for name, parameter in candidates.items():
        is_taken = not taken or matches(name, taken)
        parameter.requires_grad_(is_taken and not matches(name, [pattern[1:] for pattern in left_out]))
    if not trained(model):
        raise ScenarioError(_WHERE, f"{shown(list(patterns))} leave no parameter to train. Name at least one.")


@dataclass(frozen=True)
class Sharing:
    """What of a model travels between server and clients.

    Args:
        parameters: name of each trained parameter -> how many values it has, in the model's order.
        buffers: the same of the buffers that travel.
        frozen: the same of the parameters that are not trained, which everybody has.
    """

    parameters: Mapping[str, int]
    buffers: Mapping[str, int]
    frozen: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module) -> Sharing:
        """Return what of a model travels."""
        state, own = shared_state(model), trained(model)
        return cls(
            {name: parameter.numel() for name, parameter in own.items()},
            {name: state[name].numel() for name in shared_buffers(model)},
            {name: parameter.numel() for name, parameter in model.named_parameters() if name not in own},
        )

    @property
    def size(self) -> int:
        """Values of all parameters, trained or not."""
        return sum(self.parameters.values()) + sum(self.frozen.values())

    def __str__(self) -> str:
        sent = f"{sum(self.parameters.values()):,} of {self.size:,} parameters"
        if not self.frozen:
            sent = "all parameters"
        else:
            sent += f" ({listed(_alike(self.parameters))}); frozen: {listed(_alike(self.frozen))}"
        return sent + (f"; {len(self.buffers)} buffers" if self.buffers else "")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits a shell pattern, `*` standing for any text, dots included."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the first few of many."""
    found = list(names)
    rest = len(found) - _LISTED
    return ", ".join(found[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _alike(names: Iterable[str]) -> list[str]:
    """Return names, those that differ in the number of a block alone as one pattern."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    return [pattern if len(fitting) > 1 else fitting[0] for pattern, fitting in patterns.items()]


def _check(model: nn.Module, pattern: str, candidates: Iterable[str]) -> None:
    bare = pattern.removeprefix("!")
    if any(matches(name, [bare]) for name in candidates):
        return
    frozen = [name for name, _ in model.named_parameters() if matches(name, [bare])]
    if frozen:
        raise ScenarioError(
            _WHERE,
            f"{shown(pattern)} matches only parameters that the model itself does not train ({listed(frozen)}). "
            f"It trains {listed(candidates)}.",
        )
    raise ScenarioError(
        _WHERE,
        f"{shown(pattern)} matches no parameter of the model.{nearest(bare, candidates)} It trains {listed(candidates)}.",
    )
