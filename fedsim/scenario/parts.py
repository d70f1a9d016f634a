"""A scenario: everything that determines a run, as frozen data. Nothing here imports torch or a plug-in.

`load(path, overrides)` reads YAML, applies `--set a.b=c`, resolves file paths, and refuses what is unknown or of the
wrong type with the YAML path. Whether names exist and values fit together is checked by `fedsim.planning.plan`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from fedsim.validation import shown, worded

SCENARIO_VERSION = 1

Grant = Literal[
    "batch_size", "labels", "normalization", "training", "train_mode", "defenses", "auxiliary_data", "candidates"
]
Metric = Literal["psnr", "ssim", "lpips", "fft2d", "label_recall", "soft_label_error", "feature_error", "pair_accuracy"]
METRICS: tuple[str, ...] = get_args(Metric)
Sampling = Literal["shuffle", "poisson"]
Variant = Literal["aware", "plain"]

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


_NO_BOOLEAN = BeforeValidator(_not_bool)
Integer = Annotated[int, _NO_BOOLEAN]
Switch = Annotated[bool, Field(strict=True)]


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FractionOfClients(_Part):
    """A share of the clients, drawn once from the seed."""

    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NO_BOOLEAN]
    """Share of the clients, above 0 and at most 1."""


Selector = Annotated[
    Literal["all"] | list[Integer] | FractionOfClients | str,
    worded('all, [0, 2], "0-3" or {fraction: 0.5} (above 0, at most 1)'),
]


class PartitionPart(_Part):
    """How training samples are dealt to clients.

    `iid`; `dirichlet` with `alpha`; `shards` with `shards_per_client`; `pathological` with `classes_per_client`;
    `sizes` with `sizes`, one number a client.
    """

    name: Literal["iid", "dirichlet", "shards", "pathological", "sizes"] = "iid"
    """How the training samples are dealt."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """Of `dirichlet`, 0.5 by default: the smaller, the less alike the clients are."""
    shards_per_client: Annotated[int, Field(ge=1, le=MOST_SAMPLES), _NO_BOOLEAN] | None = None
    """Of `shards`, 2 by default: runs of samples sorted by class."""
    classes_per_client: Annotated[int, Field(ge=1, le=MOST_SAMPLES), _NO_BOOLEAN] | None = None
    """Of `pathological`, which needs it."""
    sizes: list[Annotated[int, Field(ge=1, le=MOST_SAMPLES), _NO_BOOLEAN]] | None = None
    """Of `sizes`, which needs it: samples of each client."""

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
    """Where the images come from; keys beside `name` and `partition` are parameters of that source."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str = "photos"
    """A data source (`fedsim list data`); its parameters stand beside the name."""
    partition: PartitionPart = PartitionPart()
    """How the training samples are dealt to the clients."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the source."""
        return dict(self.model_extra or {})


class NormalizationPart(_Part):
    """What turns pixels in [0, 1] into the model's input: (pixel - mean) / std, a value a channel."""

    mean: tuple[float, ...]
    """Of pixels in [0, 1], a value a channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Above 0, a value a channel."""


def _patterns(value: list[str]) -> list[str]:
    if not value or not all(pattern.removeprefix("!") for pattern in value):
        raise ValueError(f"expected at least one pattern, none of them empty, got {shown(value)}")
    return value


Patterns = Annotated[list[str], AfterValidator(_patterns)]


class LoRAPart(_Part):
    """Low-rank adaptation (Hu et al. 2021): the model is frozen, and each target layer trains a change of low rank.

    A layer with weight W returns W x + (alpha / rank) B A x. What is trained and sent are A, B and, with `train_head`, the
    classifier.
    """

    rank: Annotated[int, Field(ge=1, le=MOST_RANK), _NO_BOOLEAN] = 4
    """Rows of A and columns of B, less than a target's own."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """The change is scaled by alpha / rank; the rank unless given."""
    targets: Patterns = ["*.attn.qkv", "*.attn.proj"]
    """Patterns of the names of linear layers, as in a shell."""
    train_head: Switch = True
    """Whether the classifier is trained and sent too."""


class PrecodePart(_Part):
    """PRECODE (Scheliga et al. 2022): a variational bottleneck before the classifier, of which training draws.

    The loss of a local step gains `beta` times the KL divergence of what is drawn from a standard normal one. It needs
    `training.mode: train`, since evaluation draws nothing. No formal guarantee.
    """

    size: Annotated[int, Field(ge=1, le=MOST_RANK), _NO_BOOLEAN] = 256
    """Numbers that are drawn for an image; 256 in the paper."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False), _NO_BOOLEAN] = 0.001
    """Weight of the KL divergence in the loss; 0.001 in the paper."""


class ModelPart(_Part):
    """A model of timm, one of fedsim's presets, or a "module:factory" of one's own that returns a torch module.

    A factory is told `num_classes`, `in_chans` and `img_size` as far as it takes them. `normalization` replaces the one that
    timm states for the model; a model of one's own has mean and std 0.5 unless it says otherwise.

    `first_block: april` removes the layer norm before the first attention and both residual connections of its block: the
    model of the APRIL paper, which no stock ViT is.
    """

    name: str = "vit_mini"
    """A preset, a model of timm (`fedsim list models`), or a "module:factory"."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the model."""
    first_block: Literal["standard", "april"] = "standard"
    """`april` alters the first block as in the APRIL paper."""
    pretrained: Annotated[Switch | str, worded("true, false or the path of a weights file")] = False
    """true for published weights, from the Hugging Face hub or its cache; or the path of a weights file."""
    normalization: NormalizationPart | None = None
    """In the place of the model's own."""
    position_embedding: Literal["learned", "sincos"] = "learned"
    """`sincos` gives a Vision Transformer a fixed table of sines and cosines, which is neither trained nor sent."""
    lora: LoRAPart | None = None
    """Trains low-rank changes of some layers and freezes the rest."""
    precode: PrecodePart | None = None
    """Puts a variational bottleneck before the classifier."""


class FederationPart(_Part):
    """Who takes part, and how the server aggregates.

    A client that works longer than `client_timeout` seconds in a round has failed in it; the others go on.
    """

    clients: Annotated[int, Field(ge=1, le=MOST_CLIENTS), _NO_BOOLEAN] = 4
    """How many clients there are."""
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS), _NO_BOOLEAN] = 3
    """How many rounds they train."""
    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _NO_BOOLEAN] = 1.0
    """Share of the clients that take part in a round."""
    strategy: str = "FedAvg"
    """A strategy of Flower (`fedsim list strategies`)."""
    strategy_params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters."""
    # Flower's messages live for half a day.
    client_timeout: Annotated[float, Field(gt=0, le=43_200, allow_inf_nan=False), _NO_BOOLEAN] = 3600.0
    """Seconds after which a client has failed in a round."""


class SchedulePart(_Part):
    """How the learning rate follows the rounds: a share of `learning_rate` in each, a function of the round alone.

    In round r of R the first w rounds warm up, with shares 1 / (w + 1), 2 / (w + 1) and so on. After them, with
    t = r - 1 - w of T = R - w rounds done: `constant`, 1; `cosine`, final + (1 - final) (1 + cos(pi t / T)) / 2; `linear`,
    1 - (1 - final) t / T; `step`, factor ** floor(t / every). `final` would be reached after the last round.
    """

    name: Literal["constant", "cosine", "linear", "step"] = "constant"
    """What it follows once warm-up is over."""
    warmup_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS), _NO_BOOLEAN] = 0
    """Rounds in which it rises in equal steps, fewer than there are rounds."""
    final: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """Of `cosine` and `linear`, 0 by default: share of `learning_rate` that is approached."""
    every: Annotated[int, Field(ge=1, le=MOST_ROUNDS), _NO_BOOLEAN] | None = None
    """Of `step`, which needs it: rounds between two steps."""
    factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """Of `step`, 0.1 by default: what each step multiplies by."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> SchedulePart:
        own = {"cosine": ("final",), "linear": ("final",), "step": ("every", "factor")}.get(self.name, ())
        for field in ("final", "every", "factor"):
            if field not in own and getattr(self, field) is not None:
                raise ValueError(f"{field} does not belong to schedule {self.name!r}")
        if self.name == "step" and self.every is None:
            raise ValueError("schedule 'step' needs every, the rounds between two steps")
        return self

    @property
    def is_constant(self) -> bool:
        """Whether the learning rate is the same in all rounds."""
        return self.name == "constant" and not self.warmup_rounds

    def share(self, round: int, rounds: int) -> float:
        """Return the share of the learning rate in a round.

        Args:
            round: from 1.
            rounds: all of the run, more than warm up.
        """
        done, span, final = round - 1 - self.warmup_rounds, rounds - self.warmup_rounds, self.final or 0.0
        if done < 0:
            return round / (self.warmup_rounds + 1)
        if self.name == "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * done / span)) / 2
        if self.name == "linear":
            return 1 - (1 - final) * done / span
        if self.name == "step":
            factor: float = (0.1 if self.factor is None else self.factor) ** (done // (self.every or 1))
            return factor
        return 1.0


class TrainingPart(_Part):
    """One client's local work in a round, and what it sends.

    `shares: gradient` (FedSGD) sends the gradient of one batch, and the server applies `learning_rate`; `shares: delta`
    trains `local_steps` or `local_epochs` and sends new weights. `mode` states whether dropout and the like are active.
    `label_smoothing: a` trains on labels (1 - a) onehot + a / C. `mixup: alpha` blends each image and its label with
    another of the client's, in a proportion from Beta(alpha, alpha), anew at every use; smoothing comes after it. `augment`
    mirrors and shifts images, anew at every use, before all that. Dropout and stochastic depth are the model's own, as in
    `model.kwargs: {proj_drop_rate: 0.1}`.
    `sampling: poisson` takes each image into each step with probability `batch_size` over the client's images, independently
    of all others: batches vary in size, and one may be empty. `trainable` names the parameters that are trained and sent; all
    others are frozen, are the same on every client and on the server, and do not travel.
    """

    batch_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES), _NO_BOOLEAN] = 1
    """Images in a local step; their expected number where `sampling` is poisson."""
    accumulate: Annotated[int, Field(ge=1, le=MOST_SAMPLES), _NO_BOOLEAN] = 1
    """Parts in which the batch of a local step passes the model one by one, to save memory; the gradient is the same."""
    local_steps: Annotated[int, Field(ge=1, le=MOST_STEPS), _NO_BOOLEAN] | None = None
    """Steps in a round, with `shares: delta`; 1 by default."""
    local_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS), _NO_BOOLEAN] | None = None
    """Passes over the client's data in a round, with `shares: delta`, in the place of `local_steps`; with `sampling: poisson`
    as many steps as a pass has."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), _NO_BOOLEAN] = 0.01
    """The client's; with `shares: gradient` the server applies it."""
    schedule: Annotated[
        SchedulePart,
        BeforeValidator(named, Literal["constant", "cosine", "linear"] | SchedulePart),
    ] = SchedulePart()
    """How the learning rate follows the rounds: `constant`, `cosine`, `linear` or `step`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`adamw` only with `shares: delta`."""
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NO_BOOLEAN] = 0.0
    """Of `sgd`, with `shares: delta`."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), _NO_BOOLEAN] = 0.0
    """With `shares: delta`."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """With `shares: delta`: largest l2 norm of the gradient in each local step; a longer one is scaled down to it."""
    shares: Literal["gradient", "delta"] = "gradient"
    """`gradient`, of one batch (FedSGD), or `delta`, new weights after local training."""
    mode: Literal["train", "eval"] = "train"
    """Whether dropout and the like are active."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), _NO_BOOLEAN] = 0.0
    """a: trains on labels (1 - a) onehot + a / C."""
    mixup: Annotated[float, Field(gt=0, allow_inf_nan=False), _NO_BOOLEAN] | None = None
    """alpha: blends each image with another of the client's, in a share from Beta(alpha, alpha)."""
    augment: tuple[Literal["flip", "crop"], ...] = ()
    """`flip` mirrors an image in half of its uses; `crop` shifts it by up to an eighth of its sides, with a black border."""
    sampling: Sampling = "shuffle"
    """`shuffle` walks through the client's images in random order; `poisson` draws each of them independently in every step."""
    trainable: Patterns | None = None
    """Patterns of the names of parameters that are trained and sent; `!pattern` takes some away. All by default."""

    @pydantic.field_validator("augment")
    @classmethod
    def _once(cls, augment: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(augment)) < len(augment):
            raise ValueError(f"expected flip and crop once at most, got {shown(list(augment))}")
        return augment

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TrainingPart:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("give local_steps or local_epochs, not both")
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError("momentum belongs to sgd; adamw has moments of its own")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: got {self.accumulate} with batch_size {self.batch_size}, and a batch has no more parts than "
                "images. Give at most batch_size"
            )
        if self.shares == "gradient":
            several = (self.local_steps or 1) > 1 or self.local_epochs is not None
            if several or self.optimizer != "sgd" or self.momentum or self.weight_decay:
                raise ValueError(
                    "shares: gradient is one plain SGD step: local_steps 1, optimizer sgd, no momentum, no "
                    "weight_decay. Use shares: delta for anything else"
                )
            if self.clip_norm is not None:
                raise ValueError(
                    f"clip_norm: got {self.clip_norm:g} with shares: gradient, and it clips local steps, of which there are "
                    "none. To clip what is sent, use the defense clipping, or dp_noise for a guarantee. To clip local steps, "
                    "use shares: delta"
                )
        return self


class ThreatPart(_Part):
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


class DefensePart(_Part):
    """One defense and the clients that carry it: `all`, `[0, 2]`, `"0-3"` or `{fraction: 0.5}`."""

    name: str
    """A defense (`fedsim list defenses`)."""
    clients: Selector = "all"
    """Who carries it: all, [0, 2], "0-3" or {fraction: 0.5}."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list defenses NAME`)."""


class AttackPart(_Part):
    """One attack; `label` is what reports call it, its name where there is none."""

    name: str
    """An attack (`fedsim list attacks`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list attacks NAME`)."""
    label: Annotated[str, Field(pattern=r"^\S.{0,38}\S$|^\S$"), worded("a line of 1 to 40 characters")] | None = None
    """What reports call it."""


Rounds = Annotated[
    Literal["all"] | list[Integer | Literal["last"]], worded("all, or a list of round numbers such as [1, last]")
]


class EvaluatorPart(_Part):
    """One evaluator, asked of the global model after each of `rounds`; `label` is what reports call it."""

    name: str
    """An evaluator (`fedsim list evaluators`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters (`fedsim list evaluators NAME`)."""
    label: Annotated[str, Field(pattern=r"^\S.{0,38}\S$|^\S$"), worded("a line of 1 to 40 characters")] | None = None
    """What reports call it."""
    rounds: Rounds = ["last"]
    """Rounds after which it is asked: all, or a list such as [1, last]."""


class AuditPart(_Part):
    """Which updates are attacked, how attempts are scored, on how many processes, and what an attempt may take.

    `rounds` is `all` or a list of round numbers, `last` among them. `processes: n` audits beside the training on n
    worker processes; 0 audits one update after another once training is over. An attack runs in a process of its own
    either way. One that takes longer than `attack_timeout` seconds is ended and has failed; null sets no limit. So is one
    that uses more than `attack_memory` MiB: what its process and those it starts hold in main memory, beyond what its process
    held when the attack began. `calibrate` says when an expensive attack is tried on unprotected updates of the auditor's own,
    which cheap ones are in every round: `auto`, where a verdict hangs on it; `all`; `none`.
    """

    rounds: Rounds = "all"
    """Rounds whose updates are attacked: all, or a list such as [1, last]."""
    clients: Selector = "all"
    """Clients whose updates are attacked: all, [0, 2], "0-3" or {fraction: 0.5}."""
    metrics: list[Metric] = ["psnr", "ssim", "label_recall"]
    """How findings are scored (`fedsim list metrics`)."""
    processes: Annotated[int, Field(ge=0, le=MOST_PROCESSES), _NO_BOOLEAN] = 1
    """Worker processes that audit beside the training; 0 audits once it is over."""
    variants: list[Variant] = ["aware", "plain"]
    """Of each attack on a client with a defense, with the grant `defenses`: `aware`, which is told of the defense, and `plain`,
    which takes the update for one without. Without the grant no attack is told."""
    calibrate: Literal["auto", "all", "none"] = "auto"
    """When an expensive attack is tried on unprotected updates too: `auto`, where a verdict hangs on it; `all`; `none`."""
    # The slowest attempt of a published scenario takes about 10 minutes on one thread; a poll takes 24 days at most.
    attack_timeout: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), _NO_BOOLEAN] | None = 3600.0
    """Seconds that an attack may take on one update; null for no limit."""
    attack_memory: Annotated[int, Field(ge=1, le=MOST_MEBIBYTES), _NO_BOOLEAN] | None = None
    """MiB of main memory that an attack may use on one update, on Linux; null for no limit."""

    @pydantic.field_validator("rounds", "clients", "metrics")
    @classmethod
    def _not_empty(cls, chosen: Any) -> Any:
        if chosen == []:
            raise ValueError("expected at least one, got []; to leave the audit out, write attacks: []")
        return chosen

    @pydantic.field_validator("metrics")
    @classmethod
    def _unique(cls, metrics: list[Metric]) -> list[Metric]:
        if len(set(metrics)) < len(metrics):
            raise ValueError("a metric is listed twice")
        return metrics

    @pydantic.field_validator("variants")
    @classmethod
    def _aware_first(cls, variants: list[Variant]) -> list[Variant]:
        # What is proven of an attack is proven of the aware one.
        if len(set(variants)) < len(variants) or "aware" not in variants:
            raise ValueError(f"expected [aware] or [aware, plain], got {shown(variants)}")
        return sorted(variants)


class Scenario(_Part):
    """Everything that determines a run; a part or an item of which only the name is given may be that name alone."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        worded("letters, digits, dots, dashes and underscores, a letter or digit first"),
    ] = "run"
    """Names the run and its folder."""
    version: Literal[1] = 1
    """Of this format."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED), _NO_BOOLEAN] = 0
    """Decides data, weights, batches, noise and attacks."""
    engine: Literal["inline", "ray"] = "ray"
    """`inline`, in this process; `ray`, Flower's simulation runtime."""
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
