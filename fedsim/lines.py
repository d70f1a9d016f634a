"""What each line of a run's JSON Lines files must hold, so that a damaged one is named before anything rests on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from fedsim.errors import RunFolderError

SCHEMA = 1  # of every file of a run folder; README documents the records

_KEY = re.compile(r"round-\d{4,}/(client-\d{3,}|global(-\d{3,})?)", re.ASCII)


class _Line(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="ignore")


class IndexLine(_Line):
    """One line of captures/index.jsonl: a stored file, or a client that failed."""

    key: str
    sha256: str | None = None
    failed: str | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> IndexLine:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"the key {self.key!r} names no file")
        if (self.sha256 is None) == (self.failed is None):
            raise ValueError("expected sha256 or failed")
        return self


class RoundLine(_Line):
    """One line of rounds.jsonl, as far as a run goes on from it."""

    round: int = pydantic.Field(ge=0)
    accuracy: float
    loss: float
    participants: list[int]
    failed: dict[str, str]


class Use(_Line):
    """The attack of a record."""

    name: str
    params: dict[str, Any]


class RecordLine(_Line):
    """One line of records.jsonl, as far as an audit goes on from it."""

    round: int = pydantic.Field(ge=1)
    client: int = pydantic.Field(ge=0)
    attack: Use
    status: Literal["found", "failed", "refused"]


class CalibrationLine(_Line):
    """One line of calibrations.jsonl, as far as an audit goes on from it."""

    round: int = pydantic.Field(ge=1)
    attack: Use
    status: Literal["found", "failed", "refused"]


_AnyLine = TypeVar("_AnyLine", bound=_Line)


def check(path: Path, lines: Sequence[dict[str, Any]], kind: type[_AnyLine]) -> list[_AnyLine]:
    """Return the lines of a file as what they must be.

    Raises:
        RunFolderError: names the first line of another schema or without a meaning.
    """
    found = []
    for number, line in enumerate(lines, 1):
        schema = line.get("schema", SCHEMA)
        if schema != SCHEMA:
            raise RunFolderError(
                f"{path}: line {number} has schema {schema!r}, this fedsim reads {SCHEMA}. Delete the file to redo it."
            )
        try:
            found.append(kind.model_validate(line))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            fault = first["msg"].removeprefix("Value error, ")
            raise RunFolderError(
                f"{path}: line {number} is damaged, or not of fedsim: {f'{where}: ' if where else ''}{fault}. Delete the "
                "file to redo it."
            ) from None
    return found
