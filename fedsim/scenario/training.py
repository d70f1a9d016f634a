"""The training part of a scenario: one client's local work in a round, and its learning rate over rounds."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field

from fedsim.scenario.fields import MOST_EPOCHS, MOST_ROUNDS, MOST_SAMPLES, MOST_STEPS, NO_BOOLEAN, Part, Patterns, named
from fedsim.validation import shown

Sampling = Literal["shuffle", "poisson"]


class SchedulePart(Part):
    """How the learning rate follows the rounds: a share of `learning_rate` in each, a function of the round alone.

    In round r of R the first w rounds warm up, with shares 1 / (w + 1), 2 / (w + 1) and so on. After them, with
    t = r - 1 - w of T = R - w rounds done: `constant`, 1; `cosine`, final + (1 - final) (1 + cos(pi t / T)) / 2; `linear`,
    1 - (1 - final) t / T; `step`, factor ** floor(t / every). `final` would be reached after the last round.
    """

    name: Literal["constant", "cosine", "linear", "step"] = "constant"
    """What it follows once warm-up is over."""
    warmup_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS), NO_BOOLEAN] = 0
    """Rounds in which it rises in equal steps, fewer than there are rounds."""
    final: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NO_BOOLEAN] | None = None
    """Of `cosine` and `linear`, 0 by default: share of `learning_rate` that is approached."""
    every: Annotated[int, Field(ge=1, le=MOST_ROUNDS), NO_BOOLEAN] | None = None
    """Of `step`, which needs it: rounds between two steps."""
    factor: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), NO_BOOLEAN] | None = None
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


class TrainingPart(Part):
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

    batch_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN] = 1
    """Images in a local step; their expected number where `sampling` is poisson."""
    accumulate: Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN] = 1
    """Parts in which the batch of a local step passes the model one by one, to save memory; the gradient is the same."""
    local_steps: Annotated[int, Field(ge=1, le=MOST_STEPS), NO_BOOLEAN] | None = None
    """Steps in a round, with `shares: delta`; 1 by default."""
    local_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS), NO_BOOLEAN] | None = None
    """Passes over the client's data in a round, with `shares: delta`, in the place of `local_steps`; with `sampling: poisson`
    as many steps as a pass has."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] = 0.01
    """The client's; with `shares: gradient` the server applies it."""
    schedule: Annotated[
        SchedulePart,
        BeforeValidator(named, Literal["constant", "cosine", "linear"] | SchedulePart),
    ] = SchedulePart()
    """How the learning rate follows the rounds: `constant`, `cosine`, `linear` or `step`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`adamw` only with `shares: delta`."""
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NO_BOOLEAN] = 0.0
    """Of `sgd`, with `shares: delta`."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = 0.0
    """With `shares: delta`."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] | None = None
    """With `shares: delta`: largest l2 norm of the gradient in each local step; a longer one is scaled down to it."""
    shares: Literal["gradient", "delta"] = "gradient"
    """`gradient`, of one batch (FedSGD), or `delta`, new weights after local training."""
    mode: Literal["train", "eval"] = "train"
    """Whether dropout and the like are active."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NO_BOOLEAN] = 0.0
    """a: trains on labels (1 - a) onehot + a / C."""
    mixup: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] | None = None
    """alpha: blends each image with another of the client's, in a share from Beta(alpha, alpha)."""
    augment: tuple[Literal["flip", "crop"], ...] = ()
    """`flip` mirrors an image in half of its uses; `crop` shifts it by up to an eighth of its sides, with a black border."""
    sampling: Sampling = "shuffle"
    """`shuffle` walks through the client's images in random order; `poisson` draws each of them independently in every step."""
    trainable: Patterns | None = None
    """Patterns of the names of parameters that are trained and sent; `!pattern` takes some away. All by default."""
    loss: str | None = None
    """Of an observed app alone: "module:function", its loss (logits, labels) -> mean over the batch; else cross-entropy."""

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
