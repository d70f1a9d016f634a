"""Accuracy: what a loop over the images counts, with the interval of SciPy."""

import pytest
import torch
from fedsim_defenses.evaluators.accuracy import Accuracy
from scipy import stats

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.source import Pool
from fedsim.testing import random_images, small_model

NAMES = tuple(f"kind {number}" for number in range(10))


def pool_of(count):
    known = random_images(torch_generator(0, "pool"), count)
    stored = (known.images * 255).to(torch.uint8)
    return Pool(known.labels, lambda chosen: stored[list(chosen)])


def ask(evaluator, pool):
    model = small_model()
    asked = PixelModel(model, models.normalization(model)).eval()
    return asked, evaluator.run(asked, pool, NAMES, torch_generator(0, "ask")).scores


def test_accuracy_and_that_of_each_class_are_those_of_a_loop_over_the_images():
    pool = pool_of(230)  # three passes
    model, found = ask(Accuracy(), pool)
    with torch.no_grad():
        hits = [bool(model(pool.read([number]).images).argmax() == pool.labels[number]) for number in range(230)]
    assert found["accuracy"] == pytest.approx(sum(hits) / 230)
    expected = stats.binomtest(sum(hits), 230).proportion_ci(0.95, method="wilson")
    assert found["accuracy, 95% from"] == pytest.approx(expected.low, abs=1e-6)
    assert found["accuracy, 95% to"] == pytest.approx(expected.high, abs=1e-6)
    for number, name in enumerate(NAMES):
        own = [hit for hit, label in zip(hits, pool.labels.tolist(), strict=True) if label == number]
        assert found[f"images of {name}"] == len(own) and found[f"accuracy of {name}"] == pytest.approx(
            sum(own) / len(own)
        )
    assert sum(found[f"images of {name}"] for name in NAMES) == 230


def test_a_class_without_images_has_no_score_and_classes_can_be_left_out():
    pool = pool_of(30)
    few = Pool(torch.full((5,), 2), pool.fetch)
    _, found = ask(Accuracy(), few)
    assert [name for name in found if name.startswith("images of")] == ["images of kind 2"]
    assert set(ask(Accuracy(by_class=False, images=7), pool)[1]) == {
        "accuracy",
        "accuracy, 95% from",
        "accuracy, 95% to",
    }


def test_no_images_and_a_bad_number_are_refused():
    with pytest.raises(EvaluationRefusedError, match="no test images"):
        ask(Accuracy(), Pool(torch.zeros(0, dtype=torch.long), lambda chosen: torch.zeros(0, 3, 32, 32)))
    with pytest.raises(ScenarioError, match=r"params\.images: expected at least 1, got 0"):
        configure(Accuracy, {"images": 0}, "evaluators.0.params")
