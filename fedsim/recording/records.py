"""The lines of a run's JSON Lines files: one typed, frozen model each, written and read by the same class.

README documents the fields of a record.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from fedsim.defense import is_meaningful
from fedsim.errors import RunFolderError
from fedsim.exchange import View
from fedsim.metrics.skill import Direction

SCHEMA: Literal[1] = 1  # of every file of a run folder

_LARGEST = 1e40  # beyond float32, and its square is still a float
_LONGEST_NUMBER = 9  # digits

Status = Literal["found", "failed", "refused"]


def _measured(value: float) -> float:
    if not abs(value) <= _LARGEST:
        raise ValueError(f"expected a finite number up to {_LARGEST:g} in size")
    return value


def _numbered(key: Any) -> Any:
    # JSON has no whole numbers as keys.
    if isinstance(key, str) and key.isdecimal() and len(key) <= _LONGEST_NUMBER and str(int(key)) == key:
        return int(key)
    return key


_Item = TypeVar("_Item")
Many = Annotated[tuple[_Item, ...], pydantic.Strict(False)]
"""A tuple; JSON has lists."""

# Beyond these nothing that a run could have measured: numbers whose sums and squares overflow, counts that fill the memory.
Count = Annotated[int, pydantic.Field(ge=0, le=10**9)]
Positive = Annotated[Count, pydantic.Field(ge=1)]
Value = Annotated[float, pydantic.AfterValidator(_measured)]
Number = Annotated[Count, pydantic.BeforeValidator(_numbered)]
"""A count that is a key."""


class Line(pydantic.BaseModel):
    """A line, or a part of one; what a later version adds to it is kept as it is."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="allow", populate_by_name=True)

    def as_json(self) -> dict[str, Any]:
        """Return the line as it is written: what was stated, in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


RecordedVariant = Literal["aware", "plain", "only"]
PLAIN = " (plain)"
"""What stands behind the name of the plain variant of an attack."""


class PluginUse(Line):
    """An attack, a defense or an evaluator as a line names it.

    `variant` is of an attack where attacks are run twice on clients with a defense: `plain` is not told of it, `aware` is, and
    of `only` there is no plain one.
    """

    name: str
    params: dict[str, Any] = {}
    variant: RecordedVariant | None = None
    version: str | None = None
    distribution: str | None = None
    citation: str | None = None
    is_control: bool = False
    recovers: Many[str] = ()
    adds_noise: bool = False
    is_strategy: bool = False
    label: str | None = None

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        """What tells this plug-in from others: its name, and the parameters as text, with `plain` behind them if it is."""
        name, params = self.aware_key
        return name, f"{params}, plain" if self.is_plain else params

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain variant of an attack."""
        return self.variant == "plain"

    @functools.cached_property
    def aware_key(self) -> tuple[str, str]:
        """The key of the aware attack, of a plain variant as well."""
        return self.name, json.dumps(self.params, sort_keys=True, default=str)

    @property
    def title(self) -> str:
        """What people read: the label, else the name; with the variant."""
        return self.with_variant(self.label or self.name)

    def with_variant(self, name: str) -> str:
        """Return a name with the variant behind it."""
        return f"{name}{PLAIN}" if self.is_plain else name


class RecordedScore(Line):
    """One metric of one attempt; `value` is None when the metric was unavailable."""

    value: Value | None = None
    per_example: Many[Value] | None = None
    worse: Direction
    unavailable: str | None = None

    @property
    def examples(self) -> tuple[float, ...]:
        """One value per true image; the mean alone where the record holds no more."""
        if self.value is None:
            return ()
        return self.per_example or (self.value,)


class TrajectoryControl(Line):
    """The best control of a trajectory."""

    name: str
    value: Value


class RecordedTrajectory(Line):
    """How one attempt went, iteration by iteration: its own loss, and the PSNR that the auditor computed afterwards."""

    steps: Many[Count] = pydantic.Field(min_length=1)
    losses: Many[Value | None]
    psnr: Many[Value]
    control: TrajectoryControl | None = None
    shown: Many[Count] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> RecordedTrajectory:
        if not len(self.steps) == len(self.losses) == len(self.psnr):
            raise ValueError("expected as many losses and PSNR values as steps")
        return self


class BestExample(Line):
    """The image of a batch that a finding shows best, beside controls of the same image."""

    index: Count
    value: Value
    control: Value
    floor: Value | None = None
    luck: Value = 0.0


class Found(Line):
    """What an attempt on an observed app found, which nobody can score: numbers, and labels by class."""

    pictures: Count | None = None
    features: Count | None = None
    labels: dict[Number, Count] | None = None
    soft_labels: dict[Number, Count] | None = None


class TrainedOn(Line):
    """What a client whose defenses may change its images really trained on, and `unknown`, why that is not known."""

    inputs: Count | None = None
    other_pictures: bool = False
    other_labels: bool = False
    unknown: str | None = None


class RecordedWorkload(Line):
    """How much a client trained on in a round: see `fedsim.applicability.Workload`."""

    pictures: Positive
    batch_size: Positive
    steps: Positive


class RecordedView(Line):
    """What an attempt on several updates looked at: see `fedsim.exchange.View`."""

    scope: Literal["client", "round", "run"]
    rounds: Many[Positive] = pydantic.Field(min_length=1)
    clients: Many[Count] = pydantic.Field(min_length=1)
    is_sum: bool = False

    @pydantic.model_validator(mode="after")
    def _fits(self) -> RecordedView:
        for name, numbers in (("rounds", self.rounds), ("clients", self.clients)):
            if list(numbers) != sorted(set(numbers)):
                raise ValueError(f"{name}: expected ascending numbers, each once")
        if (self.scope == "round" and len(self.rounds) > 1) or (self.scope == "client" and len(self.clients) > 1):
            raise ValueError(f"expected one {self.scope}")
        return self

    def as_view(self) -> View:
        """Return the view."""
        return View(self.rounds, self.clients, self.scope, self.is_sum)


class Budget(Line):
    """What differential privacy promises one client after its rounds so far; None when no finite epsilon holds."""

    epsilon: Value | None
    delta: Value
    neighbors: str

    @property
    def is_meaningful(self) -> bool:
        """Whether it is a guarantee worth the name."""
        return is_meaningful(self.epsilon, self.delta)


class Scores(Line):
    """What a finding scores, what blind guesses score on the same truth, and the image that it shows best, by metric."""

    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, Value]] = {}
    best_example: dict[str, BestExample] = {}


class Attempted(Line):
    """What every line of records.jsonl holds.

    `budget` is what the defenses of the attacked client claim over all of its rounds up to `round`. There is none where they
    claim none, where several clients are attacked at once, and of an observed app.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    run: str | None = None
    round: Positive
    client: Count | None = None
    attack: PluginUse
    defenses: Many[PluginUse] = ()
    budget: Budget | None = None
    grants: Many[str] = ()
    workload: RecordedWorkload | None = None
    status: Status
    inapplicable: Many[str] | None = None
    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, Value]] = {}
    best_example: dict[str, BestExample] = {}
    cautions: Many[str] = ()
    trace: dict[str, Any] = {}
    seconds: Value | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**64)] | None = None
    artifacts: dict[str, str] = {}
    message: str | None = None
    trained_on: TrainedOn | None = None
    trajectory: RecordedTrajectory | None = pydantic.Field(None, alias="film")  # as records have always named it
    found: Found | None = None


class Record(Attempted):
    """One line of records.jsonl: one attack on one client's update of one round."""

    client: Count


class ViewRecord(Attempted):
    """One line of records.jsonl: one attack on several updates at once; `round` is the last one, and no client is named."""

    client: None = None
    view: RecordedView

    @pydantic.model_validator(mode="after")
    def _is_of_its_last_round(self) -> ViewRecord:
        if self.round != self.view.rounds[-1]:
            raise ValueError(f"view.rounds: expected {self.round} as the last one")
        return self

    @pydantic.model_validator(mode="after")
    def _has_a_budget_of_one_client(self) -> ViewRecord:
        if self.budget is not None and len(self.view.clients) > 1:
            raise ValueError(f"budget: expected none for {len(self.view.clients)} clients together")
        return self

    @property
    def place(self) -> str:
        """What was looked at, in words."""
        return str(self.view.as_view())


AnyRecord = Record | ViewRecord


class _Named(Line):
    params: dict[str, Any]


class _OfPlan(Line):
    attack: _Named


class Trial(Scores):
    """One attack on one update that the auditor made itself, without a defense."""

    status: Status
    message: str | None = None


class Calibration(Line):
    """One line of calibrations.jsonl: one attack on updates that the auditor made itself; earlier versions wrote no trials."""

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    run: str | None = None
    round: Positive
    attack: PluginUse
    grants: Many[str] = ()
    workload: RecordedWorkload | None = None
    status: Status
    message: str | None = None
    trials: Many[Trial] = ()
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**64)] | None = None
    seconds: Value | None = None


class EvaluationRecord(Line):
    """One line of evaluations.jsonl: what an evaluator found of the global model after a round, 0 for the initial one.

    `status` is `refused` where the evaluator cannot be asked of the model; `message` says why it was refused or failed.
    `is_inconclusive` says that the evaluator's own checks doubt its scores; `cautions` say which. `artifacts` are strips of
    images: title -> path in the run folder. Lines of earlier versions have neither.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    run: str | None = None
    round: Count
    evaluator: PluginUse
    status: Status
    message: str | None = None
    scores: dict[str, Value]
    cautions: Many[str] = ()
    is_inconclusive: bool = False
    artifacts: dict[str, str] = {}
    seconds: float
    seed: int


class MechanismRecord(Line):
    """One line of mechanisms.jsonl: the budget that a defense claims for one update of a client, and a lower bound on it.

    `claimed` is for the one round; with `release` `step` for one local step on all of some images, of a defense that protects
    steps. `message` says why it was not checked, or why that failed; `position` is the defense's in the scenario.
    """

    schema_version: Literal[1] = pydantic.Field(SCHEMA, alias="schema")
    run: str | None = None
    round: Positive
    client: Count
    position: Count
    defense: PluginUse
    status: Literal["refuted", "not refuted", "not checked", "failed"]
    message: str | None = None
    claimed: Budget | None = None
    lower_bound: Value | None = None
    confidence: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    draws: Count
    statistic: str | None = None
    seconds: Value
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**64)]
    release: Literal["update", "step"] = "update"


class Round(Line):
    """One line of rounds.jsonl: the global model after a round; round 0 is before the training.

    `logged` is what the defenses of each client noted of its training (`ClientContext.log`), which no attack sees.
    """

    round: Count
    accuracy: Value | None = None
    loss: Value | None = None
    participants: Many[Count] = ()
    failed: dict[Number, str] = {}
    epsilon: dict[Number, Budget] = {}
    global_model_epsilon: Budget | None = None
    logged: dict[Number, dict[str, Value]] = {}
    seconds: Value | None = None
    warnings: Many[str] = ()


_AnyLine = TypeVar("_AnyLine", bound=pydantic.BaseModel)


def as_record(line: Any) -> AnyRecord:
    """Return a line of records.jsonl as what it must be.

    Raises:
        pydantic.ValidationError: it is none.
    """
    is_of_view = isinstance(line, dict) and line.get("view") is not None
    return ViewRecord.model_validate(line) if is_of_view else Record.model_validate(line)


def check(path: Path, lines: Sequence[dict[str, Any]], kind: type[_AnyLine], before: int = 0) -> list[_AnyLine]:
    """Return the lines of a file as what they must be; `before` says how many lines of the file come before them.

    Raises:
        RunFolderError: names the first line of another schema or without a meaning.
    """
    return [_checked(path, number, line, kind.model_validate) for number, line in enumerate(lines, before + 1)]


def check_records(path: Path, lines: Sequence[dict[str, Any]]) -> list[AnyRecord]:
    """Return the lines of records.jsonl as what they must be.

    Raises:
        RunFolderError: see `check`.
    """
    return [_checked(path, number, line, _whole) for number, line in enumerate(lines, 1)]


def _whole(line: Any) -> AnyRecord:
    found = as_record(line)
    # Without its parameters nobody can tell which of the scenario's attacks it is of; a report shows it nevertheless.
    _OfPlan.model_validate(line)
    return found


def _checked(path: Path, number: int, line: dict[str, Any], parse: Callable[[Any], _Item]) -> _Item:
    schema = line.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise RunFolderError(
            f"{path}: line {number} has schema {schema!r}, this fedsim reads {SCHEMA}. Delete the file to redo it."
        )
    try:
        return parse(line)
    except pydantic.ValidationError as error:
        raise RunFolderError(
            f"{path}: line {number} is damaged, or not of fedsim: {fault(error)}. Delete the file to redo it."
        ) from None


def fault(error: pydantic.ValidationError) -> str:
    """Return the first fault in one clause, with its place."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{f'{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
