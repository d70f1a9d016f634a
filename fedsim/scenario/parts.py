"""A scenario: everything that determines a run, as frozen data. Nothing here imports torch or a plug-in.

`load(path, overrides)` reads YAML, applies `--set a.b=c`, resolves file paths, and refuses what is unknown or of the
wrong type with the YAML path. Whether names exist and values fit together is checked by `fedsim.planning.plan`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from fedsim.scenario.audit import AuditPart
from fedsim.scenario.data import DataPart
from fedsim.scenario.fields import (
    LARGEST_SEED,
    MOST_CLIENTS,
    MOST_PLUGINS,
    MOST_ROUNDS,
    NO_BOOLEAN,
    Part,
    Rounds,
    Selector,
    named,
)
from fedsim.scenario.model import ModelPart
from fedsim.scenario.training import TrainingPart
from fedsim.validation import worded

SCENARIO_VERSION = 1

Grant = Literal[
    "batch_size", "labels", "normalization", "training", "train_mode", "defenses", "auxiliary_data", "candidates"
]


class FederationPart(Part):
    """Who takes part, and how the server aggregates.

    A client that works longer than `client_timeout` seconds in a round has failed in it; the others go on.
    """

    clients: Annotated[int, Field(ge=1, le=MOST_CLIENTS), NO_BOOLEAN] = 4
    """How many clients there are."""
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS), NO_BOOLEAN] = 3
    """How many rounds they train."""
    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_BOOLEAN] = 1.0
    """Share of the clients that take part in a round."""
    strategy: str = "FedAvg"
    """A strategy of Flower (`fedsim list strategies`)."""
    strategy_params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters."""
    # Flower's messages live for half a day.
    client_timeout: Annotated[float, Field(gt=0, le=43_200, allow_inf_nan=False), NO_BOOLEAN] = 3600.0
    """Seconds after which a client has failed in a round."""


class ThreatPart(Part):
    """What the honest-but-curious server knows beside the global model.

    `sees: updates` shows it each client's update. `sees: aggregate` is secure aggregation as an ideal functionality: it sees,
    of each round, the weighted sum of the updates and who took part, and no single update.
    """

    grants: list[Grant] = ["batch_size", "normalization"]
    """What the server knows beside the update and the model."""
    sees: Literal["updates", "aggregate"] = "updates"
    """`updates`, each client's; `aggregate`, their weighted sum of a round alone, as under secure aggregation."""

    @pydantic.field_validator("grants")
    @classmethod
    def _unique(cls, grants: list[Grant]) -> list[Grant]:
        if len(set(grants)) < len(grants):
            raise ValueError("a grant is listed twice")
        return grants


class DefensePart(Part):
    """One defense and the clients that carry it: `all`, `[0, 2]`, `"0-3"` or `{fraction: 0.5}`."""

    name: str
    """A defense (`fedsim list defenses`)."""
    clients: Selector = "all"
    """Who carries it: all, [0, 2], "0-3" or {fraction: 0.5}."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list defenses NAME`)."""


class AttackPart(Part):
    """One attack; `label` is what reports call it, its name where there is none."""

    name: str
    """An attack (`fedsim list attacks`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list attacks NAME`)."""
    label: Annotated[str, Field(pattern=r"^\S.{0,38}\S$|^\S$"), worded("a line of 1 to 40 characters")] | None = None
    """What reports call it."""


class EvaluatorPart(Part):
    """One evaluator, asked of the global model after each of `rounds`; `label` is what reports call it."""

    name: str
    """An evaluator (`fedsim list evaluators`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list evaluators NAME`)."""
    label: Annotated[str, Field(pattern=r"^\S.{0,38}\S$|^\S$"), worded("a line of 1 to 40 characters")] | None = None
    """What reports call it."""
    rounds: Rounds = ["last"]
    """Rounds after which it is asked: all, or a list such as [1, last]."""


class Scenario(Part):
    """Everything that determines a run; a part or an item of which only the name is given may be that name alone."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        worded("letters, digits, dots, dashes and underscores, a letter or digit first"),
    ] = "run"
    """Names the run and its folder."""
    version: Literal[1] = 1
    """Of this format."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED), NO_BOOLEAN] = 0
    """Decides data, weights, batches, noise and attacks."""
    engine: Literal["inline", "ray", "deployment"] = "ray"
    """`inline`, in this process; `ray`, Flower's simulation runtime; `deployment`, a SuperLink and SuperNodes."""
    data: Annotated[DataPart, BeforeValidator(named, str | DataPart)] = DataPart()
    """Where the images come from."""
    model: Annotated[ModelPart, BeforeValidator(named, str | ModelPart)] = ModelPart()
    """What the clients train."""
    federation: FederationPart = FederationPart()
    """Who takes part, and how the server aggregates."""
    training: TrainingPart = TrainingPart()
    """One client's local work in a round, and what it sends."""
    threat: ThreatPart = ThreatPart()
    """What the server knows."""
    defenses: list[Annotated[DefensePart, BeforeValidator(named, str | DefensePart)]] = Field(
        default_factory=list, max_length=MOST_PLUGINS
    )
    """In the order of application."""
    attacks: list[Annotated[AttackPart, BeforeValidator(named, str | AttackPart)]] = Field(
        default_factory=lambda: [AttackPart(name="patch_embedding")], max_length=MOST_PLUGINS
    )
    """Each runs on every audited update."""
    evaluators: list[Annotated[EvaluatorPart, BeforeValidator(named, str | EvaluatorPart)]] = Field(
        default_factory=list, max_length=MOST_PLUGINS
    )
    """What is asked of the global model."""
    audit: AuditPart = AuditPart()
    """Which updates are attacked, and how attempts are scored."""

    def learning_rate(self, round: int) -> float:
        """Return the learning rate in a round, from 1: the client's, or the server's where gradients are shared."""
        return self.training.learning_rate * self.training.schedule.share(round, self.federation.rounds)

    def resolved(self) -> dict[str, Any]:
        """Return the scenario with every default filled in, as plain data that `load` reads again."""
        content = self.model_dump(mode="json", exclude_none=True)
        # Null is a value for a source, and for a limit: `image_size: null` keeps the size of the files.
        content["data"].update(self.data.params)
        content["audit"]["attack_timeout"] = self.audit.attack_timeout
        if not self.evaluators:
            del content["evaluators"]
        return content

    def stated(self) -> dict[str, Any]:
        """Return what was stated alone, no default, as plain data that `load` reads again."""
        content = self.model_dump(mode="json", exclude_unset=True)
        if "data" in content:
            content["data"].update(self.data.params)
        return content
