"""The conformance check of an evaluator."""

from __future__ import annotations

import math
from typing import Any

import torch

from fedsim import models
from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.seeds import seeded, torch_generator
from fedsim.source import Pool
from fedsim.testing.contract import check_contract
from fedsim.testing.fixtures import random_images, small_model
from fedsim.testing.isolation import check_cautions, expect, no_global_effect, told_at_once

_IMAGES = 24


def check_evaluator(plugin: type[Any] | Evaluator, /, **params: Any) -> None:
    """Check that an evaluator keeps the contract of `fedsim.evaluator.Evaluator`.

    It is asked of a small model, untrained, on random images, twice with the same generator.

    Args:
        plugin: the class, or an instance.
        params: parameters that differ from the defaults.

    Raises:
        AssertionError: says all that is wrong and what the simulator relies on.
    """
    with told_at_once() as faults:
        evaluator: Evaluator = check_contract(plugin, Evaluator, params, faults)
        who = f"{type(evaluator).__qualname__}.run"
        with faults.of("run"):
            first, again = _asked(evaluator, who, 0), _asked(evaluator, who, 1)
            expect(isinstance(first, Evaluation), f"{who} must return an Evaluation, not {type(first).__name__}.")
            expect(bool(first.scores), f"{who} returns no scores.")
            for name, value in first.scores.items():
                finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
                expect(
                    isinstance(name, str) and finite, f"{who}: the score {name!r} is {value!r}, not a finite number."
                )
            check_cautions(who, first.cautions)
            expect(
                isinstance(first.is_inconclusive, bool),
                f"{who}: is_inconclusive is {first.is_inconclusive!r}, neither True nor False.",
            )
            for title, shown in first.images.items():
                is_shown = isinstance(shown, torch.Tensor) and shown.ndim == 4 and shown.shape[1] in (1, 3)
                expect(
                    is_shown and len(shown) > 0 and bool(((shown >= 0) & (shown <= 1)).all()),
                    f"{who}: the images {title!r} are no images of 1 or 3 channels with pixels in [0, 1].",
                )
            expect(
                dict(first.scores) == dict(again.scores),
                f"{who}: same model, same generator state, but other scores. Draw from the generator alone.",
            )


def _asked(evaluator: Evaluator, who: str, global_seed: int) -> Any:
    model, pictures = small_model(), random_images(torch_generator(0, "testing", "evaluator"), _IMAGES)
    stored = (pictures.images * 255).to(torch.uint8)
    pool = Pool(pictures.labels, lambda chosen: stored[list(chosen)])
    asked = PixelModel(model, models.normalization(model)).eval()
    names = tuple(f"class {number}" for number in range(int(model.num_classes)))
    try:
        with seeded(global_seed, "testing"), no_global_effect(who):
            return evaluator.run(asked, pool, names, torch_generator(0, "testing", "ask"))
    except EvaluationRefusedError as error:
        raise AssertionError(f"{who} refuses the small model: {error}. Check what it asks of a model.") from None
