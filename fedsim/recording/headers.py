"""What names the stored files of a run folder, and what the header of each safetensors file must hold.

So a damaged one is named before anything rests on it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from fedsim.errors import RunFolderError
from fedsim.recording.files import DamagedFileError
from fedsim.recording.records import SCHEMA, Count, RecordedView, fault

MODEL = "model"
"""The key of the final global weights."""

_KEY = re.compile(r"round-(\d{4,9})/(client-|global-?|state-client-)(\d{3,9})?", re.ASCII)
_NUMBER = Annotated[str, pydantic.Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


def client_key(round: int, client: int) -> str:
    """Return the key of a client's reply."""
    return f"round-{round:04d}/client-{client:03d}"


def global_key(round: int, client: int | None = None) -> str:
    """Return the key of the weights that the server sent out in a round, to all clients or to this one alone."""
    return f"round-{round:04d}/global" + ("" if client is None else f"-{client:03d}")


def state_key(round: int, client: int) -> str:
    """Return the key of what a client's defenses keep after a round."""
    return f"round-{round:04d}/state-client-{client:03d}"


class _Header(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="ignore")


class IndexLine(_Header):
    """One line of captures/index.jsonl: a stored file, or a client that failed."""

    key: str
    sha256: str | None = None
    failed: str | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> IndexLine:
        if self.key not in (MODEL, *self._written()):
            raise ValueError(f"the key {self.key!r} names no file")
        if (self.sha256 is None) == (self.failed is None):
            raise ValueError("expected sha256 or failed")
        return self

    def _written(self) -> tuple[str, ...]:
        """Return the keys as fedsim writes them for the numbers in this one."""
        if self.round is None:
            return ()
        if self.client is None:
            return (global_key(self.round),)
        return tuple(key(self.round, self.client) for key in (client_key, global_key, state_key))

    @property
    def round(self) -> int | None:
        """The round that the key names; None for the model."""
        found = _KEY.fullmatch(self.key)
        return int(found[1]) if found else None

    @property
    def client(self) -> int | None:
        """The client that the key names; None for what belongs to all."""
        found = _KEY.fullmatch(self.key)
        return int(found[3]) if found and found[3] else None


class RemovedLine(_Header):
    """One line of captures/removed.jsonl: clients whose updates of a round were removed after their audit."""

    round: Count
    clients: list[Count]


class GlobalHeader(_Header):
    """The header of weights that the server sent out."""

    round: Count
    order: list[str]
    client: Count | None = None
    run: str | None = None


class CaptureHeader(_Header):
    """The header of a client's reply."""

    round: Count
    client: Count
    kind: Literal["gradient", "delta"]
    order: list[str]
    metrics: dict[str, Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] | float]
    side: dict[str, dict[str, Any]]
    buffers: list[str] = []
    run: str | None = None

    @pydantic.model_validator(mode="after")
    def _has_its_buffers(self) -> CaptureHeader:
        if not set(self.buffers) <= set(self.order):
            raise ValueError("buffers: expected names of arrays that it holds")
        return self


class StateHeader(_Header):
    """The header of what a client's defenses keep."""

    round: Count
    client: Count
    order: list[str]
    values: dict[str, Any]
    run: str | None = None


class TrajectoryHeader(_Header):
    """The curve of an attack's trajectory."""

    steps: list[Count]
    losses: list[float]


class FindingHeader(_Header):
    """The header of a stored finding."""

    round: Count
    client: Count | None
    view: RecordedView | None = None
    attack: dict[str, Any]
    status: Literal["found", "failed", "refused"]
    message: str | None
    trace: dict[str, Any]
    cautions: list[str]
    seconds: float
    seed: int
    trajectory: TrajectoryHeader | None = pydantic.Field(None, alias="film")  # as run folders have always named it
    run: str | None = None


_AnyHeader = TypeVar("_AnyHeader", bound=_Header)


def check_header(path: Path, header: Any, kind: type[_AnyHeader], what: str) -> _AnyHeader:
    """Return the header of a safetensors file as what it must be.

    Raises:
        RunFolderError: names the file and the first fault.
    """
    schema = header.get("schema", SCHEMA) if isinstance(header, dict) else SCHEMA
    if schema != SCHEMA:
        raise RunFolderError(f"{path}: has schema {schema!r}, this fedsim reads {SCHEMA}. Use the one that wrote it.")
    try:
        return kind.model_validate(header)
    except pydantic.ValidationError as error:
        raise DamagedFileError(f"{path}: not {what} of fedsim: {fault(error)}.") from None
