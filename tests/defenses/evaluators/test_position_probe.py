"""The probe of positions: least squares as LAPACK does it, exact on tables of places, blind on noise."""

import numpy as np
import pytest
import torch
from fedsim_defenses.evaluators.position_probe import PositionProbe, probe_error
from hypothesis import given
from hypothesis import strategies as st

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.plugins import configure
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.source import Pool

POOL = Pool(torch.zeros(1, dtype=torch.int64), lambda chosen: torch.zeros(len(chosen), 3, 32, 32, dtype=torch.uint8))


def vit(**kwargs):
    return models.build(ModelPart(name="vit_micro", kwargs={"embed_dim": 24, "depth": 1, **kwargs}), 10, 32, 0)


def ask(model, **params):
    asked = PixelModel(model, models.normalization(model)).eval()
    return PositionProbe(**params).run(asked, POOL, ("a", "b"), torch_generator(0, "ask")).scores


@given(
    count=st.integers(12, 40),
    width=st.integers(1, 60),
    wanted=st.integers(1, 2),
    folds=st.integers(2, 5),
    seed=st.integers(0, 100),
)
def test_the_error_is_that_of_linear_regression_fold_by_fold(count, width, wanted, folds, seed):
    draws = torch_generator(seed)
    rows = torch.randn(count, width, generator=draws, dtype=torch.float64)
    places = torch.randn(count, wanted, generator=draws, dtype=torch.float64)
    order = torch.randperm(count, generator=draws)
    errors = []
    for fold in np.array_split(order.numpy(), folds):
        others = np.setdiff1d(np.arange(count), fold)
        center, level = rows[others].mean(0).numpy(), places[others].mean(0).numpy()
        weights, *_ = np.linalg.lstsq(rows[others].numpy() - center, places[others].numpy() - level, rcond=None)
        errors.append(np.abs((rows[fold].numpy() - center) @ weights + level - places[fold].numpy()).mean())
    assert probe_error(rows, places, order, folds) == pytest.approx(np.mean(errors), rel=1e-4)


def test_places_that_are_linear_in_the_table_are_read_exactly_and_noise_is_no_better_than_the_mean_place():
    model = vit()
    directions = torch.randn(2, 24, generator=torch_generator(1))
    places = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
    with torch.no_grad():
        model.pos_embed[0, 1:] = places @ directions
    scores = ask(model)
    assert scores["error of row and column"] < 1e-4
    assert scores["error of the patch's number"] < 1e-3
    assert scores["error of row and column, mean place (control)"] == pytest.approx(2.0, abs=0.3)
    assert scores["error of row and column, table of noise (control)"] > 2.0


def test_an_untrained_table_is_as_good_as_noise():
    scores = ask(vit(), noise=40)
    noise = scores["error of row and column, table of noise (control)"]
    assert scores["error of row and column"] == pytest.approx(noise, rel=0.3)


@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_rows_of_other_tokens_do_not_count(kwargs):
    model = vit(**kwargs)
    before = ask(model)
    with torch.no_grad():
        model.pos_embed[0, : model.num_prefix_tokens] = 100.0
    assert ask(model) == before


def test_what_has_no_table_or_too_few_patches_is_refused_with_the_reason():
    with pytest.raises(EvaluationRefusedError, match="ConvNet does not cut images into patches"):
        ask(models.build(ModelPart(name="convnet"), 10, 32, 0))
    with pytest.raises(EvaluationRefusedError, match="no learned position embedding"):
        ask(vit(pos_embed="none"))
    with pytest.raises(EvaluationRefusedError, match="4 rows of positions for 4 patches; it needs one a patch"):
        ask(vit(patch_size=16))


@pytest.mark.parametrize("params", [{"folds": 1}, {"noise": 0}])
def test_a_bad_parameter_is_refused_by_its_name(params):
    with pytest.raises(ScenarioError) as refused:
        configure(PositionProbe, params, "evaluators.0.params")
    assert refused.value.where == f"evaluators.0.params.{next(iter(params))}"
