"""A scenario: everything that determines a run, as frozen data. Nothing here imports torch or a plug-in.

`load(path, overrides)` reads YAML, applies `--set a.b=c`, resolves file paths, and refuses what is unknown or of the
wrong type with the YAML path. Whether names exist and values fit together is checked by `fedsim.plan`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from fedsim import yaml_loader
from fedsim.errors import ScenarioError, nearest
from fedsim.seeds import numpy_generator

SCENARIO_VERSION = 1

Grant = Literal["batch_size", "labels", "normalization", "training", "train_mode", "defenses", "auxiliary_data"]
METRICS = ("psnr", "ssim", "lpips", "fft2d", "label_recall")


def _not_bool(value: Any) -> Any:
    # pydantic reads true as 1, YAML reads "on" and "yes" as true: a number that was meant as a switch is refused.
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


Integer = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FractionOfClients(_Part):
    """A share of the clients, drawn once from the seed."""

    fraction: Annotated[Number, Field(gt=0, le=1)]


Selector = Literal["all"] | list[Integer] | FractionOfClients | str


class PartitionPart(_Part):
    """How training samples are dealt to clients.

    `iid`; `dirichlet` with `alpha`; `shards` with `shards_per_client`; `pathological` with `classes_per_client`;
    `sizes` with `sizes`, one number a client.
    """

    name: Literal["iid", "dirichlet", "shards", "pathological", "sizes"] = "iid"
    alpha: Annotated[Number, Field(gt=0)] | None = None
    shards_per_client: Annotated[Integer, Field(ge=1)] | None = None
    classes_per_client: Annotated[Integer, Field(ge=1)] | None = None
    sizes: list[Annotated[Integer, Field(ge=1)]] | None = None

    @pydantic.model_validator(mode="after")
    def _fits(self) -> PartitionPart:
        own = {
            "dirichlet": "alpha",
            "shards": "shards_per_client",
            "pathological": "classes_per_client",
            "sizes": "sizes",
        }
        needed = own.get(self.name)
        for field in own.values():
            if field != needed and getattr(self, field) is not None:
                raise ValueError(f"{field} does not belong to partition {self.name!r}")
        if self.name in ("pathological", "sizes") and getattr(self, str(needed)) is None:
            raise ValueError(f"partition {self.name!r} needs {needed}")
        return self


class DataPart(pydantic.BaseModel):
    """Where the pictures come from; keys beside `name` and `partition` are parameters of that source."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "photos"
    partition: PartitionPart = PartitionPart()

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the source."""
        return dict(self.model_extra or {})


class ModelPart(_Part):
    """A timm Vision Transformer, or one of fedsim's presets, by name."""

    name: str = "vit_mini"
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained: Switch | str = False


class FederationPart(_Part):
    """Who takes part, and how the server aggregates."""

    clients: Annotated[Integer, Field(ge=1)] = 4
    rounds: Annotated[Integer, Field(ge=1)] = 3
    fraction: Annotated[Number, Field(gt=0, le=1)] = 1.0
    strategy: str = "FedAvg"
    strategy_params: dict[str, Any] = Field(default_factory=dict)


class TrainingPart(_Part):
    """One client's local work in a round, and what it sends.

    `shares: gradient` (FedSGD) sends the gradient of one batch, and the server applies `learning_rate`; `shares: delta`
    trains `local_steps` or `local_epochs` and sends new weights. `mode` states whether dropout and the like are active.
    """

    batch_size: Annotated[Integer, Field(ge=1)] = 1
    local_steps: Annotated[Integer, Field(ge=1)] | None = None
    local_epochs: Annotated[Integer, Field(ge=1)] | None = None
    learning_rate: Annotated[Number, Field(gt=0)] = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    shares: Literal["gradient", "delta"] = "gradient"
    mode: Literal["train", "eval"] = "train"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TrainingPart:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("give local_steps or local_epochs, not both")
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError("momentum belongs to sgd; adamw has moments of its own")
        if self.shares == "gradient":
            several = (self.local_steps or 1) > 1 or self.local_epochs is not None
            if several or self.optimizer != "sgd" or self.momentum or self.weight_decay:
                raise ValueError(
                    "shares: gradient is one plain SGD step: local_steps 1, optimizer sgd, no momentum, no "
                    "weight_decay. Use shares: delta for anything else"
                )
        return self


class ThreatPart(_Part):
    """What the honest-but-curious server knows beside the update and the global model."""

    grants: list[Grant] = ["batch_size", "normalization"]

    @pydantic.field_validator("grants")
    @classmethod
    def _unique(cls, grants: list[Grant]) -> list[Grant]:
        if len(set(grants)) < len(grants):
            raise ValueError("a grant is listed twice")
        return grants


class DefensePart(_Part):
    """One defense and the clients that carry it: `all`, `[0, 2]`, `"0-3"` or `{fraction: 0.5}`."""

    name: str
    clients: Selector = "all"
    params: dict[str, Any] = Field(default_factory=dict)


class AttackPart(_Part):
    """One attack."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class AuditPart(_Part):
    """Which updates are attacked, how attempts are scored, and on how many processes.

    `rounds` is `all` or a list of round numbers, `last` among them. `processes: n` audits beside the training on n
    worker processes; 0 audits in the process of the server, once training is over.
    """

    rounds: Literal["all"] | list[Integer | Literal["last"]] = "all"
    clients: Selector = "all"
    metrics: list[Literal["psnr", "ssim", "lpips", "fft2d", "label_recall"]] = ["psnr", "ssim", "label_recall"]
    processes: Annotated[Integer, Field(ge=0)] = 1


class Scenario(_Part):
    """Everything that determines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    version: Literal[1] = 1
    seed: Annotated[Integer, Field(ge=0)] = 0
    engine: Literal["inline", "ray"] = "ray"
    data: DataPart = DataPart()
    model: ModelPart = ModelPart()
    federation: FederationPart = FederationPart()
    training: TrainingPart = TrainingPart()
    threat: ThreatPart = ThreatPart()
    defenses: list[DefensePart] = Field(default_factory=list)
    attacks: list[AttackPart] = Field(default_factory=lambda: [AttackPart(name="patch_embedding")])
    audit: AuditPart = AuditPart()

    def resolved(self) -> dict[str, Any]:
        """Return the scenario with every default filled in, as plain data that `load` reads again."""
        return self.model_dump(mode="json", exclude_none=True)


def parse(raw: Any, source: str) -> Scenario:
    """Build a scenario from plain data.

    Raises:
        ScenarioError: one line per fault, each starting with its YAML path.
    """
    if not isinstance(raw, dict):
        raise ScenarioError(source, f"expected a mapping such as 'name: my-run', got {type(raw).__name__}.")
    try:
        return Scenario.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = sorted({_line(detail) for detail in error.errors()})
        where, _, message = lines[0].partition(": ")
        raise ScenarioError(where, "\n".join([message, *lines[1:]])) from None


_UNION_BRANCH = re.compile(
    r"^(literal\[|list\[|function-|constrained-|int$|str$|bool$|float$|FractionOfClients$|nullable)"
)


def _line(detail: Any) -> str:
    keys = [str(part) for part in detail["loc"] if not _UNION_BRANCH.match(str(part))]
    where = ".".join(keys) or "scenario"
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(keys[:-1])
        return f"{where}: unknown key.{nearest(keys[-1], allowed)} Allowed: {', '.join(allowed)}."
    if detail["type"] == "missing":
        return f"{where}: missing, and it has no default."
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | list) else f", got {given!r}"
    return f"{where}: {message}{shown}."


def _keys_at(path: Sequence[str]) -> list[str]:
    """Return the keys allowed at a YAML path, read off the JSON schema."""
    schema = Scenario.model_json_schema()
    node: dict[str, Any] = schema
    for key in path:
        node = node.get("properties", {}).get(key, {}) if not key.isdigit() else node.get("items", {})
        reference = node.get("$ref") or next((o["$ref"] for o in node.get("anyOf", []) if "$ref" in o), None)
        if reference:
            node = schema["$defs"][reference.rsplit("/", 1)[1]]
    return sorted(node.get("properties", {}))


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Scenario, list[str]]:
    """Read a scenario file and apply `a.b=value` overrides.

    File paths inside the file are relative to the file; those in an override to the working directory first, then to
    the file. Both become absolute, so that the resolved scenario runs from anywhere.

    Returns:
        The scenario, and notes on what an override replaced beyond its own key.

    Raises:
        ScenarioError: see `parse`; also an override that is not of the form a.b=value.
    """
    raw = yaml_loader.read(path)
    if raw is None:
        raise ScenarioError(str(path), "the file is empty; five lines suffice, see scenarios/quickstart.yaml.")
    if not isinstance(raw, dict):
        raise ScenarioError(str(path), f"expected a mapping such as 'name: my-run', got {type(raw).__name__}.")
    raw.setdefault("name", path.stem)
    folder = path.resolve().parent
    _resolve_paths(raw, [folder])
    notes: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ScenarioError(f"--set {override}", "expected a.b=value, as in training.batch_size=4.")
        value = yaml_loader.parse(text, f"--set {key}")
        if isinstance(value, str | dict):
            value = _resolved_override(key, value, [Path.cwd(), folder])
        notes += _set(raw, key.split("."), value, key)
    return parse(raw, str(path)), notes


_PATH_KEYS = ("path", "test_path", "root")


def _absolute(text: str, folders: Iterable[Path]) -> str:
    tried = [(folder / Path(text).expanduser()).resolve() for folder in folders]
    return str(next((p for p in tried if p.exists()), tried[0]))


def _resolve_paths(raw: dict[str, Any], folders: list[Path]) -> None:
    data = raw.get("data")
    if isinstance(data, dict):
        for key in _PATH_KEYS:
            if isinstance(data.get(key), str):
                data[key] = _absolute(data[key], folders)
    model = raw.get("model")
    if isinstance(model, dict) and isinstance(model.get("pretrained"), str):
        model["pretrained"] = _absolute(model["pretrained"], folders)


def _resolved_override(key: str, value: Any, folders: list[Path]) -> Any:
    """Resolve the file paths that one override brings, by wrapping it into the scenario it stands for."""
    wrapped: Any = value
    for part in reversed(key.split(".")):
        wrapped = {part: wrapped}
    _resolve_paths(wrapped, folders)
    for part in key.split("."):
        wrapped = wrapped[part]
    return wrapped


def _set(raw: Any, keys: list[str], value: Any, override: str) -> list[str]:
    """Set one nested key in place; returns notes on keys dropped because a data source was exchanged."""
    node = raw
    for position, key in enumerate(keys[:-1]):
        if isinstance(node, list):
            node = _item(node, key, override)
        else:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if not isinstance(node, dict | list):
            raise ScenarioError(f"--set {override}", f"{'.'.join(keys[: position + 1])} is a value, not a mapping.")
    if isinstance(node, list):
        _item(node, keys[-1], override)
        node[int(keys[-1])] = value
        return []
    exchanged = keys == ["data", "name"] and node.get("name", DataPart().name) != value
    node[keys[-1]] = value
    return _drop_foreign(node, str(value)) if exchanged else []


def _item(node: list[Any], key: str, override: str) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise ScenarioError(f"--set {override}", f"{key!r} is not an index of a list of {len(node)}.")
    return node[int(key)]


def _drop_foreign(data: dict[str, Any], name: str) -> list[str]:
    """Drop parameters of the old source that the new one does not have, so that `--set data.name=...` suffices."""
    from fedsim import plugins
    from fedsim.data.source import Source

    cls = plugins.load(plugins.find("data", name, "data.name"), Source, "data.name")
    known = {"name", "partition", *(parameter.name for parameter in plugins.parameters(cls))}
    foreign = [key for key in data if key not in known]
    for key in foreign:
        del data[key]
    return [f"data.name is now {name!r}: dropped {', '.join(foreign)}, which it does not have"] if foreign else []


def select_clients(selector: Selector, clients: int, seed: int, where: str) -> tuple[int, ...]:
    """Return the client numbers that a selector names, ascending.

    Raises:
        ScenarioError: a number outside 0..clients-1, or a text that is not a range.
    """
    if selector == "all":
        return tuple(range(clients))
    if isinstance(selector, FractionOfClients):
        count = max(1, math.floor(selector.fraction * clients + 0.5))
        drawn = numpy_generator(seed, "select", where).permutation(clients)[:count]
        return tuple(sorted(int(c) for c in drawn))
    if isinstance(selector, str):
        chosen: list[int] = []
        for part in selector.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if not match:
                raise ScenarioError(where, f'expected all, [0, 2], "0-3" or {{fraction: 0.5}}, got {selector!r}.')
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ScenarioError(where, f"the range {part.strip()!r} runs backwards.")
            chosen += range(first, last + 1)
    else:
        chosen = list(selector)
    outside = [c for c in chosen if not 0 <= c < clients]
    if outside:
        raise ScenarioError(where, f"no client {outside[0]}; federation.clients is {clients}, so 0 to {clients - 1}.")
    return tuple(sorted(set(chosen)))


def select_rounds(selector: Literal["all"] | Sequence[int | Literal["last"]], rounds: int) -> tuple[int, ...]:
    """Return the round numbers that `audit.rounds` names, ascending.

    Raises:
        ScenarioError: a number outside 1..rounds.
    """
    if selector == "all":
        return tuple(range(1, rounds + 1))
    chosen = [rounds if number == "last" else int(number) for number in selector]
    outside = [number for number in chosen if not 1 <= number <= rounds]
    if outside:
        raise ScenarioError("audit.rounds", f"no round {outside[0]}; federation.rounds is {rounds}, so 1 to {rounds}.")
    return tuple(sorted(set(chosen)))
