"""Which clients and rounds a selector of a scenario names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from fedsim.errors import ScenarioError
from fedsim.scenario.fields import FractionOfClients, Selector
from fedsim.validation import shown

_LONGEST_SELECTOR = 10_000  # characters of a text that names clients


def select_clients(selector: Selector, clients: int, seed: int, where: str) -> tuple[int, ...]:
    """Return the client numbers that a selector names, ascending.

    Raises:
        ScenarioError: a number outside 0..clients-1, or a text that is not a range.
    """
    if selector == "all":
        return tuple(range(clients))
    if isinstance(selector, FractionOfClients):
        from fedsim.seeds import numpy_generator

        count = max(1, math.floor(selector.fraction * clients + 0.5))
        drawn = numpy_generator(seed, "select", where).permutation(clients)[:count]
        return tuple(sorted(int(c) for c in drawn))
    chosen: Iterable[int] = _ranges(selector, clients, where) if isinstance(selector, str) else selector
    outside = [c for c in chosen if not 0 <= c < clients]
    if outside:
        raise ScenarioError(where, f"no client {outside[0]}; federation.clients is {clients}, so 0 to {clients - 1}.")
    return tuple(sorted(set(chosen)))


def _ranges(text: str, clients: int, where: str) -> list[int]:
    """Return the numbers of a text such as "0-3, 7", of each range no more than the first outside of the federation."""
    if len(text) > _LONGEST_SELECTOR:
        raise ScenarioError(
            where, f"a text of {len(text)} characters, and {_LONGEST_SELECTOR} are allowed. Use a list."
        )
    chosen: set[int] = set()
    for part in dict.fromkeys(text.split(",")):
        match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part)
        if not match:
            raise ScenarioError(where, f'expected all, [0, 2], "0-3" or {{fraction: 0.5}}, got {shown(text)}.')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ScenarioError(where, f"the range {part.strip()!r} runs backwards.")
        chosen.update(range(first, min(last, max(first, clients)) + 1))
        if last >= clients:
            break
    return sorted(chosen)


def select_rounds(
    selector: Literal["all"] | Sequence[int | Literal["last"]],
    rounds: int,
    known: str = "federation.rounds is",
    where: str = "audit.rounds",
) -> tuple[int, ...]:
    """Return the round numbers that `audit.rounds` names, ascending.

    Args:
        selector: what the scenario says.
        rounds: how many there are.
        known: what the message says of where that number is from.
        where: YAML path of the selector.

    Raises:
        ScenarioError: a number outside 1..rounds.
    """
    if selector == "all":
        return tuple(range(1, rounds + 1))
    chosen = [rounds if number == "last" else int(number) for number in selector]
    outside = [number for number in chosen if not 1 <= number <= rounds]
    if outside:
        raise ScenarioError(where, f"no round {outside[0]}; {known} {rounds}, so 1 to {rounds}.")
    return tuple(sorted(set(chosen)))
