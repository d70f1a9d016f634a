"""What each line of a run's JSON Lines files and each header of its safetensors files must hold.

So a damaged one is named before anything rests on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from fedsim.errors import RunFolderError
from fedsim.recording.files import DamagedFileError

SCHEMA: Literal[1] = 1  # of every file of a run folder; README documents the records
MODEL = "model"
"""The key of the final global weights."""

_LARGEST = 1e40  # beyond float32, and its square is still a float


def _measured(value: float) -> float:
    if not abs(value) <= _LARGEST:
        raise ValueError(f"expected a finite number up to {_LARGEST:g} in size")
    return value


# Beyond these nothing that a run could have measured: numbers whose sums and squares overflow, counts that fill the memory.
Count = Annotated[int, pydantic.Field(ge=0, le=10**9)]
Value = Annotated[float, pydantic.AfterValidator(_measured)]

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


class _Line(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="ignore")


class IndexLine(_Line):
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


class RoundLine(_Line):
    """One line of rounds.jsonl, as far as a run goes on from it."""

    round: Count
    accuracy: Value
    loss: Value
    participants: list[Count]
    failed: dict[_NUMBER, str]


class Use(_Line):
    """The attack of a record."""

    name: str
    params: dict[str, Any]
    version: str | None = None
    label: str | None = None


class Score(_Line):
    """One metric of a record."""

    value: Value | None
    worse: Literal["higher", "lower"]


class RecordLine(_Line):
    """One line of records.jsonl, as far as an audit goes on from it."""

    run: str | None = None
    round: Annotated[Count, pydantic.Field(ge=1)]
    client: Count
    attack: Use
    status: Literal["found", "failed", "refused"]
    scores: dict[str, Score]
    controls: dict[str, dict[str, Value]]


class GlobalHeader(_Line):
    """The header of weights that the server sent out."""

    round: Count
    order: list[str]
    client: Count | None = None
    run: str | None = None


class CaptureHeader(_Line):
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


class StateHeader(_Line):
    """The header of what a client's defenses keep."""

    round: Count
    client: Count
    order: list[str]
    values: dict[str, Any]
    run: str | None = None


class TrajectoryHeader(_Line):
    """The curve of an attack's trajectory."""

    steps: list[Count]
    losses: list[float]


class FindingHeader(_Line):
    """The header of a stored finding."""

    round: Count
    client: Count
    attack: dict[str, Any]
    status: Literal["found", "failed", "refused"]
    message: str | None
    trace: dict[str, Any]
    cautions: list[str]
    seconds: float
    seed: int
    trajectory: TrajectoryHeader | None = pydantic.Field(None, alias="film")  # as run folders have always named it
    run: str | None = None


class WorkloadPart(_Line):
    """How much a client trains on in a round."""

    pictures: Annotated[Count, pydantic.Field(ge=1)]
    batch_size: Annotated[Count, pydantic.Field(ge=1)]
    steps: Annotated[Count, pydantic.Field(ge=1)]


class TrialPart(_Line):
    """One trial of a calibration."""

    status: Literal["found", "failed", "refused"]
    scores: dict[str, Score]
    controls: dict[str, dict[str, Value]]


class CalibrationLine(_Line):
    """One line of calibrations.jsonl, as far as an audit goes on from it; earlier versions wrote no trials."""

    run: str | None = None
    round: Annotated[Count, pydantic.Field(ge=1)]
    attack: Use
    grants: list[str] | None = None
    workload: WorkloadPart | None = None
    status: Literal["found", "failed", "refused"]
    trials: list[TrialPart] | None = None


class Asked(_Line):
    """The evaluator of an evaluation."""

    name: str
    params: dict[str, Any]
    version: str | None = None
    distribution: str | None = None
    citation: str | None = None
    label: str | None = None

    @property
    def title(self) -> str:
        """What people read: the label, else the name."""
        return self.label or self.name


class EvaluationLine(_Line):
    """One line of evaluations.jsonl: what an evaluator found of the global model after a round.

    Args:
        schema_version: of the run folder, `schema` in the file.
        run: the run's name.
        round: server round, 0 for the initial model.
        evaluator: which one.
        status: `found`, `refused` where it cannot be asked of the model, else `failed`.
        message: why it was refused or failed.
        scores: name -> number.
        cautions: reasons to doubt them.
        seconds: wall time.
        seed: of its generator.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    run: str | None = None
    round: Count
    evaluator: Asked
    status: Literal["found", "failed", "refused"]
    message: str | None = None
    scores: dict[str, Value]
    cautions: list[str] = []
    seconds: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the line as it is written."""
        return self.model_dump(mode="json", by_alias=True)


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
            raise RunFolderError(
                f"{path}: line {number} is damaged, or not of fedsim: {_fault(error)}. Delete the file to redo it."
            ) from None
    return found


def check_header(path: Path, header: Any, kind: type[_AnyLine], what: str) -> _AnyLine:
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
        raise DamagedFileError(f"{path}: not {what} of fedsim: {_fault(error)}.") from None


def _fault(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{f'{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
