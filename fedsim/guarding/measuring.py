"""What fast attacks find in a client's own update, scored against its own data.

The attacks see what an honest-but-curious server would: the update, the global model and the stated recipe, through
`ThreatModel`. The client's data are read by the scores alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.attack import Attack
from fedsim.audit.claims import checked
from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError, message_of, told
from fedsim.exchange import Finding, Observation, Truth, Update
from fedsim.federation.limits import ClientTimeoutError, contained
from fedsim.findings.blind import Auxiliary
from fedsim.metrics import scoring
from fedsim.metrics.ratings import Level, rate, scale, worst
from fedsim.metrics.skill import Control, floor_control
from fedsim.planning import choice
from fedsim.planning.plan import Plan
from fedsim.seeds import derive, seeded
from fedsim.verdicts.scores import rated_by

_METRICS = ("psnr", "label_recall")


@dataclass(frozen=True)
class Leak:
    """What one attack finds in an update, by one metric.

    Args:
        attack: its name.
        metric: name of the metric.
        value: the score.
        control: the best blind guess, which looks at no update; None without one.
        level: what the two say.
    """

    attack: str
    metric: str
    value: float
    control: Control | None
    level: Level

    def __str__(self) -> str:
        beside = (
            "" if self.control is None else f" against a blind guess of {_written(self.metric, self.control.value)}"
        )
        return f"{self.attack}: {scale(self.metric).title} {_written(self.metric, self.value)}{beside} ({self.level})"


@dataclass(frozen=True)
class Measured:
    """What an update was found to leak.

    Args:
        leaks: by attack and metric, whether or not they show a leak.
        unmeasured: name of an attack that applies and has no result -> why.
        is_open: whether one of these was cut short or failed, and might have found something; one that refused would not.
    """

    leaks: tuple[Leak, ...]
    unmeasured: tuple[tuple[str, str], ...] = ()
    is_open: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether something was found, or nobody can tell."""
        return self.is_open or self.level != "none"

    @property
    def level(self) -> Level:
        """The worst level of all; `unrated` where nothing was measured."""
        return worst(leak.level for leak in self.leaks)

    def __str__(self) -> str:
        parts = [*map(str, self.leaks), *(f"{name}: not measured, {reason}" for name, reason in self.unmeasured)]
        return "; ".join(parts) or "no fast attack applies to this update, so nothing was measured"


def _written(metric: str, value: float) -> str:
    return f"{value:.0f} dB" if metric == "psnr" else f"{value:.2f}"


def measure(plan: Plan, update: Update, weights: Mapping[str, Tensor], truth: Truth, seconds: float) -> Measured:
    """Attack an update with all installed attacks that are cheap and made for it, and score what they find.

    Args:
        plan: what the server knows of the client.
        update: under the names of the model's parameters or of the app's arrays.
        weights: the global weights that the client got.
        truth: what it trained on.
        seconds: for all attacks together; in the main thread one that takes longer is ended, elsewhere none is begun after it.
    """
    setting = plan.setting_reported(update.kind, update.num_examples)
    observation, end = ThreatModel(plan).observe(update, weights), time.monotonic() + seconds
    leaks, unmeasured, is_open = list[Leak](), list[tuple[str, str]](), False
    for name in choice.choose(plan, [setting]).chosen:
        attack = choice.default(name)
        if attack is None or not attack.is_cheap:
            continue
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise ClientTimeoutError
            seed = derive(0, "leak guard", name, update.round)
            found = contained(functools.partial(_found, attack, observation, seed), left)
            leaks += _scored(name, found, truth, plan)
        except AttackRefusedError as error:
            unmeasured.append((name, message_of(error)))
        except ClientTimeoutError:
            unmeasured.append((name, f"the {seconds:g} s of the round were over"))
            is_open = True
        except Exception as error:  # noqa: BLE001  (boundary: a plug-in's fault is none of the client's training)
            unmeasured.append((name, f"it raised {told(error)}"))
            is_open = True
    return Measured(tuple(leaks), tuple(unmeasured), is_open)


def _found(attack: Attack, observation: Observation, seed: int) -> Finding:
    with seeded(seed):
        return checked(attack.run(observation, torch.Generator().manual_seed(seed)), observation)


def _scored(name: str, finding: Finding, truth: Truth, plan: Plan) -> list[Leak]:
    found = replace(finding, features=None)
    scores = scoring.score(_METRICS, found, truth)
    # Other images than its own are not known here, so that classes count as equally frequent.
    auxiliary = Auxiliary(None, torch.arange(plan.num_classes), plan.num_classes)
    controls = scoring.controls(list(scores), truth, auxiliary, None)
    leaks = []
    for metric, score in scores.items():
        if score.value is None:
            continue
        best = rated_by(metric, controls, score.worse)
        floor = None if scale(metric).is_luck else floor_control(metric, controls, score.worse)
        level = rate(metric, score.value, best and best.value, score.worse, floor and floor.value)
        leaks.append(Leak(name, metric, score.value, best, level))
    return leaks
