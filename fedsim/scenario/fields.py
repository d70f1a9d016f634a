"""What fields of a scenario are made of: the base of its parts, bounds, and types that several parts share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from fedsim.validation import shown, worded

# Bounds of what one machine can simulate: generous, but no typing error of a few zeros passes them.
MOST_CLIENTS = 10_000
MOST_ROUNDS = 100_000
MOST_STEPS = 100_000
MOST_EPOCHS = 10_000
MOST_SAMPLES = 1_000_000_000
MOST_PROCESSES = 256
MOST_PLUGINS = 100
MOST_MEBIBYTES = 10_000_000
MOST_RANK = 100_000
LARGEST_SEED = 10**30


def _not_bool(value: Any) -> Any:
    # pydantic reads true as 1, YAML reads "on" and "yes" as true: a number that was meant as a switch is refused.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {shown(value)}")
    return value


def named(value: Any) -> Any:
    """Return a part that is given as its name alone as the mapping that it stands for."""
    return {"name": value} if isinstance(value, str) else value


NO_BOOLEAN = BeforeValidator(_not_bool)
Integer = Annotated[int, NO_BOOLEAN]
Switch = Annotated[bool, Field(strict=True)]


class Part(pydantic.BaseModel):
    """Base of all parts: frozen, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FractionOfClients(Part):
    """A share of the clients, drawn once from the seed."""

    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOLEAN]
    """Share of the clients, above 0 and at most 1."""


Selector = Annotated[
    Literal["all"] | list[Integer] | FractionOfClients | str,
    worded('all, [0, 2], "0-3" or {fraction: 0.5} (above 0, at most 1)'),
]

Rounds = Annotated[
    Literal["all"] | list[Integer | Literal["last"]], worded("all, or a list of round numbers such as [1, last]")
]


def _patterns(value: list[str]) -> list[str]:
    if not value or not all(pattern.removeprefix("!") for pattern in value):
        raise ValueError(f"expected at least one pattern, none of them empty, got {shown(value)}")
    return value


Patterns = Annotated[list[str], AfterValidator(_patterns)]
