"""The audit part of a scenario: which updates are attacked, how findings are scored, and what an attempt may take."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field

from fedsim.scenario.fields import MOST_MEBIBYTES, MOST_PROCESSES, NO_BOOLEAN, Part, Rounds, Selector
from fedsim.validation import shown

Metric = Literal["psnr", "ssim", "lpips", "fft2d", "label_recall", "soft_label_error", "feature_error", "pair_accuracy"]
METRICS: tuple[str, ...] = get_args(Metric)
Variant = Literal["aware", "plain"]
EXECUTION = ("processes", "executor", "task_cpus", "task_gpus", "keep_updates")
"""Settings of where an audit runs and what it leaves on disk: no record depends on them."""


class AuditPart(Part):
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
    processes: Annotated[int, Field(ge=0, le=MOST_PROCESSES), NO_BOOLEAN] = 1
    """Worker processes that audit beside the training; 0 audits once it is over."""
    executor: Literal["processes", "ray"] = "processes"
    """Where the audit runs: on worker processes of this machine, or as Ray tasks, on the cluster of RAY_ADDRESS or here. Then
    `processes` says no more than whether the audit runs beside the training; with engine `ray` it runs once that is over."""
    task_cpus: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False), NO_BOOLEAN] = 1.0
    """CPUs of a Ray node that a task of the audit takes; fractions allowed."""
    task_gpus: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False), NO_BOOLEAN] = 0.0
    """GPUs of a Ray node that a task of the audit takes; fractions allowed."""
    keep_updates: Literal["all", "audited", "none"] = "all"
    """Which captured updates stay on disk after their audit: all, those that attacks looked at, or none (docs/scale.md)."""
    variants: list[Variant] = ["aware", "plain"]
    """Of each attack on a client with a defense, with the grant `defenses`: `aware`, which is told of the defense, and `plain`,
    which takes the update for one without. Without the grant no attack is told."""
    calibrate: Literal["auto", "all", "none"] = "auto"
    """When an expensive attack is tried on unprotected updates too: `auto`, where a verdict hangs on it; `all`; `none`."""
    # The slowest attempt of a published scenario takes about 10 minutes on one thread; a poll takes 24 days at most.
    attack_timeout: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), NO_BOOLEAN] | None = 3600.0
    """Seconds that an attack may take on one update; null for no limit."""
    attack_memory: Annotated[int, Field(ge=1, le=MOST_MEBIBYTES), NO_BOOLEAN] | None = None
    """MiB of main memory that an attack may use on one update, on Linux; null for no limit."""

    truth: str | None = None
    """Of an observed app alone: "module:function", which returns what a client trained on in a round (docs/flower_apps.md)."""

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
