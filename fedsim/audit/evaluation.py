"""One evaluation: an evaluator asked of the global model after a round; one line of evaluations.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim import strips
from fedsim.audit.text import plain, shown
from fedsim.errors import EvaluationRefusedError, message_of, told
from fedsim.evaluator import Evaluation, PixelModel
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedEvaluator
from fedsim.recording.records import SCHEMA, EvaluationRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import derive, seeded
from fedsim.source import LARGEST_IMAGE

_MOST_SCORES = 10_000
_MOST_CAUTIONS = 100
_MOST_STRIPS = 12


@dataclass(frozen=True, order=True)
class Question:
    """One evaluation of a run; the order is that of the lines.

    Args:
        round: server round whose result is evaluated; 0 for the initial model.
        evaluator: index in the scenario.
    """

    round: int
    evaluator: int


def has_weights(plan: Plan, folder: RunFolder, round: int) -> bool:
    """Return whether the global model after a round is stored: sent out in the next one, or the final one."""
    return folder.has_global(round + 1) or (round == plan.scenario.federation.rounds and folder.has_model())


def of_line(plan: Plan, line: EvaluationRecord) -> Question | None:
    """Return which question of a plan a line answers; None where the plan has none such."""
    for planned in plan.evaluators:
        if (line.evaluator.name, line.evaluator.params) == (planned.info.name, plain(planned.params)):
            return Question(line.round, planned.index)
    return None


class Asked(NamedTuple):
    """The line of an evaluation, and its strips of images as PNG, by title."""

    line: EvaluationRecord
    strips: Mapping[str, bytes]


def evaluate(plan: Plan, folder: RunFolder, question: Question) -> Asked:
    """Return the outcome of one evaluation; whatever the evaluator raises, SystemExit too, is a failed one.

    Raises:
        RunFolderError: the weights are missing or corrupted.
    """
    planned, round = plan.evaluators[question.evaluator], question.round
    is_final = round == plan.scenario.federation.rounds and folder.has_model()
    weights = folder.read_model() if is_final else folder.read_global(round + 1, -1)
    seed, started = _seed(plan, planned, round), time.perf_counter()
    model = PixelModel(plan.model(weights), plan.normalization).eval()
    pools = plan.data.pools
    try:
        with seeded(seed):
            found: Any = planned.evaluator.run(
                model, pools.test, pools.class_names, torch.Generator().manual_seed(seed)
            )
        scores, cautions = _checked(found)
        is_inconclusive, shown_images = found.is_inconclusive, _strips(found)
    except EvaluationRefusedError as error:
        seconds = time.perf_counter() - started
        return Asked(_line(plan, folder, question, "refused", shown(message_of(error)), {}, (), seconds), {})
    except BaseException as error:  # noqa: BLE001  (boundary: a failed evaluation is a line, the audit goes on)
        seconds = time.perf_counter() - started
        return Asked(_line(plan, folder, question, "failed", shown(told(error)), {}, (), seconds), {})
    seconds = time.perf_counter() - started
    return Asked(_line(plan, folder, question, "found", None, scores, cautions, seconds, is_inconclusive), shown_images)


def stored(folder: RunFolder, asked: Asked) -> EvaluationRecord:
    """Write the strips of an evaluation, and return its line, which names them."""
    artifacts = {}
    for place, (title, strip) in enumerate(asked.strips.items()):
        # The seed is that of the evaluator with its parameters in this round, and of no other.
        path = folder.evaluation_artifact(asked.line.round, f"{asked.line.seed:016x}-{place}.png")
        folder.write(path, strip)
        artifacts[title] = folder.relative(path)
    return asked.line.model_copy(update={"artifacts": artifacts}) if artifacts else asked.line


def failure(plan: Plan, folder: RunFolder, question: Question, message: str, seconds: float = 0.0) -> EvaluationRecord:
    """Return the line of an evaluation that failed in a way that it could not survive to tell."""
    return _line(plan, folder, question, "failed", message, {}, (), seconds)


def _line(
    plan: Plan,
    folder: RunFolder,
    question: Question,
    status: Literal["found", "failed", "refused"],
    message: str | None,
    scores: Mapping[str, float],
    cautions: tuple[str, ...],
    seconds: float,
    is_inconclusive: bool = False,
) -> EvaluationRecord:
    planned = plan.evaluators[question.evaluator]
    return EvaluationRecord.model_validate(
        {
            "schema": SCHEMA,
            "run": folder.run,
            "round": question.round,
            "evaluator": {
                "name": planned.info.name,
                "params": plain(planned.params),
                "version": planned.info.version,
                "distribution": planned.info.distribution,
                "citation": getattr(planned.evaluator, "citation", None),
                "label": planned.label,
            },
            "status": status,
            "message": message,
            "scores": dict(scores),
            "cautions": list(cautions),
            "is_inconclusive": is_inconclusive,
            "seconds": float(f"{seconds:.4g}"),
            "seed": _seed(plan, planned, question.round),
        }
    )


def _seed(plan: Plan, planned: PlannedEvaluator, round: int) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    return derive(plan.scenario.seed, "evaluator", planned.info.name, params, round)


def _checked(found: Any) -> tuple[dict[str, float], tuple[str, ...]]:
    """Check what the plug-in claims: finite numbers by name, and sentences."""
    if not isinstance(found, Evaluation):
        raise TypeError(f"the evaluator returned {type(found).__name__}, not an Evaluation")
    if not isinstance(found.scores, Mapping) or not found.scores or len(found.scores) > _MOST_SCORES:
        raise ValueError(f"the evaluator returned no scores by name, or more than {_MOST_SCORES:,}")
    scores = {}
    for name, value in found.scores.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"the evaluator returned the score {name!r:.80}: {value!r:.80}, not a number by name")
        if not math.isfinite(value):
            raise ValueError(f"the evaluator returned the score {name!r:.80}: {value}, not a finite number")
        scores[shown(name)] = float(value)
    if not isinstance(found.cautions, tuple | list) or len(found.cautions) > _MOST_CAUTIONS:
        raise TypeError(f"the evaluator returned cautions that are no tuple of at most {_MOST_CAUTIONS} sentences")
    if not all(isinstance(caution, str) for caution in found.cautions):
        raise TypeError("the evaluator returned a caution that is no text")
    if not isinstance(found.is_inconclusive, bool):
        raise TypeError(
            f"the evaluator returned is_inconclusive: {found.is_inconclusive!r:.80}, neither True nor False"
        )
    return scores, tuple(map(shown, found.cautions))


def _strips(found: Evaluation) -> dict[str, bytes]:
    """Check the images of a plug-in, and return them as strips by title."""
    if not isinstance(found.images, Mapping) or len(found.images) > _MOST_STRIPS:
        raise TypeError(f"the evaluator returned images that are no mapping of at most {_MOST_STRIPS} titles")
    made = {}
    for title, images in found.images.items():
        is_shown = isinstance(images, Tensor) and images.ndim == 4 and len(images) and images.shape[1] in (1, 3)
        if not isinstance(title, str) or not is_shown or not images.is_floating_point():
            raise TypeError(f"the evaluator returned {title!r:.80} that are no images of 1 or 3 channels")
        if not images.isfinite().all() or max(images.shape[2:]) > LARGEST_IMAGE:
            raise ValueError(
                f"the evaluator returned images {title!r:.80} with values that are not finite, or a side of more than "
                f"{LARGEST_IMAGE} pixels"
            )
        made[shown(title)] = strips.png_strip(images.detach().float())
    return made
