"""PGD-MI: the penalty against NumPy's algebra, and an attack that is PGD where its weight is zero."""

import numpy as np
import pytest
import torch
from fedsim_defenses._dependence import dependence
from fedsim_defenses._evasion import cross_entropy
from fedsim_defenses.evaluators._robustness import climb
from fedsim_defenses.evaluators.pgd_mi import PGDMI
from hypothesis import given
from hypothesis import strategies as st

from fedsim import models
from fedsim.errors import ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import random_images, small_model


def by_numpy(first, second, sigma=5.0, ridge=1e-5):
    found = []
    for rows in (first, second):
        count, values = rows.shape
        distances = ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(2)
        centered = np.exp(-distances / (2 * sigma**2 * values)) @ (np.eye(count) - np.ones((count, count)) / count)
        found.append(centered @ np.linalg.inv(centered + ridge * count * np.eye(count)))
    return (found[0] * found[1].T).sum()


@given(count=st.integers(2, 12), seed=st.integers(0, 99))
def test_the_penalty_is_that_of_the_formula(count, seed):
    draws = torch_generator(seed)
    first = torch.randn(count, 7, generator=draws, dtype=torch.float64)
    second = torch.rand(count, 20, generator=draws, dtype=torch.float64)
    expected = by_numpy(first.numpy(), second.numpy())
    assert float(dependence(first, second)) == pytest.approx(expected, rel=1e-5)


def test_equal_images_and_a_single_one_leave_it_and_its_gradient_finite():
    for count in (1, 4):
        rows = torch.ones(count, 6, requires_grad=True)
        found = dependence(rows * 2, rows)
        found.backward()
        assert found.isfinite() and rows.grad.isfinite().all()


def test_without_weight_it_is_pgd_and_with_much_of_it_something_else():
    model = small_model()
    pixels = PixelModel(model, models.normalization(model)).eval()
    known = random_images(torch_generator(0), 4)

    def attacked(surface):
        return climb(surface, known.images, known.labels, 0.03, 3, 0.25, torch_generator(1))

    plain = attacked((pixels, cross_entropy))
    none, much = (attacked(PGDMI(weight=weight)._surface(pixels, known.images)) for weight in (0.0, 1e3))
    assert torch.equal(none, plain) and not torch.equal(much, plain)


def test_a_negative_weight_is_refused():
    with pytest.raises(ScenarioError, match=r"params\.weight: expected 0 or more, got -1"):
        configure(PGDMI, {"weight": -1}, "evaluators.0.params")
