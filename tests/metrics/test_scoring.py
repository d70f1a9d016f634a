import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import scenario
from fedsim.exchange import Finding, Truth
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import IMAGES
from fedsim.metrics import ratings
from fedsim.metrics.image import psnr
from fedsim.metrics.scoring import best_examples, control_scores, controls, score
from fedsim.metrics.skill import best_control, blind, skill
from fedsim.metrics.table import METRICS, PSNR_CAP
from fedsim.models import PatchGrid


def pictures(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


TRUTH = Truth(pictures(0), torch.tensor([1, 4, 4]))
SOFT = Truth(pictures(0), torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]]))
INPUTS = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def test_the_registry_holds_the_metrics_that_a_scenario_may_name() -> None:
    assert tuple(METRICS) == scenario.METRICS


def test_only_metrics_that_apply_are_scored() -> None:
    names = ["label_recall", "ssim", "psnr"]
    assert list(score(names, Finding(images=pictures(1)), TRUTH)) == ["ssim", "psnr"]
    assert list(score(names, Finding(labels=torch.tensor([4])), TRUTH)) == ["label_recall"]
    assert list(score(names, Finding(images=pictures(1), labels=torch.tensor([4, 0, 0])), TRUTH)) == names
    assert score(names, Finding(features=torch.zeros(3, 8)), TRUTH) == {}
    every = list(METRICS)
    assert list(score(every, Finding(labels=torch.tensor([4])), TRUTH)) == ["label_recall"]
    assert list(score(every, Finding(labels=torch.full((1, 5), 0.2)), TRUTH)) == ["label_recall", "soft_label_error"]
    assert list(score(every, Finding(features=INPUTS), TRUTH)) == ["feature_error"]


def test_soft_labels_and_features_are_scored_per_true_image() -> None:
    finding = Finding(labels=SOFT.labels[[2, 0, 1]], features=INPUTS[[1, 2, 0]])
    found = score(["label_recall", "soft_label_error", "feature_error"], finding, SOFT, lambda: INPUTS)
    assert {name: (result.value, result.per_example) for name, result in found.items()} == {
        "label_recall": (1.0, (1.0,) * 3),
        "soft_label_error": (0.0, (0.0,) * 3),
        "feature_error": (0.0, (0.0,) * 3),
    }
    assert [result.worse for result in found.values()] == ["higher", "lower", "lower"]


def test_features_without_true_head_inputs_are_unavailable_with_the_reason() -> None:
    finding = Finding(features=INPUTS)
    assert score(["feature_error"], finding, TRUTH)["feature_error"].unavailable == "the true head inputs are not known"
    found = score(["feature_error"], Finding(features=INPUTS[:, :5]), TRUTH, lambda: INPUTS)["feature_error"]
    assert found.value is None and found.unavailable == "found features have 5 entries, the model's head inputs 8"


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="features are not finite"):
        score(["feature_error"], Finding(features=INPUTS / 0), TRUTH, lambda: INPUTS)


@settings(max_examples=20)
@given(order=st.permutations(range(3)))
def test_scores_do_not_depend_on_the_order_of_the_finding(order: list[int]) -> None:
    found = (TRUTH.images + 0.1 * pictures(5)).clamp(0, 1)
    names = ["psnr", "ssim", "fft2d"]
    assert score(names, Finding(images=found[order]), TRUTH) == score(names, Finding(images=found), TRUTH)


def test_an_exact_copy_scores_the_cap_and_no_infinity() -> None:
    result = score(["psnr"], Finding(images=TRUTH.images[[2, 0, 1]]), TRUTH)["psnr"]
    assert result.per_example == (PSNR_CAP,) * 3
    assert result.value == PSNR_CAP == 150.0


def test_originals_that_nothing_was_found_for_score_as_grey() -> None:
    result = score(["psnr"], Finding(images=TRUTH.images[[1]]), TRUTH)["psnr"]
    grey = [psnr(torch.full((3, 16, 16), 0.5), picture, 1.0) for picture in TRUTH.images]
    assert result.per_example == pytest.approx((grey[0], PSNR_CAP, grey[2]))


def test_an_empty_finding_scores_as_grey() -> None:
    found = score(["psnr", "ssim"], Finding(images=torch.zeros(0, 3, 16, 16)), TRUTH)
    grey = controls(["psnr", "ssim"], TRUTH, None, None)["grey"]
    assert {name: value.value for name, value in found.items()} == pytest.approx(grey)


def test_the_value_is_the_mean_of_the_examples() -> None:
    for result in score(["psnr", "ssim", "fft2d", "label_recall"], Finding(pictures(1), TRUTH.labels), TRUTH).values():
        assert len(result.per_example) == 3
        assert result.value == pytest.approx(sum(result.per_example) / 3)


def test_pixels_are_clamped_before_they_are_compared() -> None:
    wild = torch.where(TRUTH.images > 0.5, 7.0, -7.0)
    tame = (TRUTH.images > 0.5).float()
    assert score(["psnr"], Finding(images=wild), TRUTH) == score(["psnr"], Finding(images=tame), TRUTH)


def test_images_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), true ones \(3, 16, 16\)"):
        score(["psnr"], Finding(images=torch.zeros(3, 3, 8, 8)), TRUTH)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    broken = pictures(1)
    broken[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="1 of 2304 found pixel values are not finite"):
        score(["psnr"], Finding(images=broken), TRUTH)


def test_soft_labels_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="labels are not finite"):
        score(["label_recall"], Finding(labels=torch.full((3, 5), math.nan)), TRUTH)


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"no metric 'pnsr'\. Did you mean 'psnr'\?"):
        score(["pnsr"], Finding(), TRUTH)


def test_a_metric_that_cannot_be_computed_is_unavailable_with_the_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    result = score(["psnr", "lpips"], Finding(images=pictures(1)), TRUTH)
    assert result["lpips"].value is None
    assert result["lpips"].per_example is None
    assert "AlexNet's weights" in result["lpips"].unavailable
    assert result["psnr"].unavailable is None
    assert "lpips" not in controls(["lpips", "psnr"], TRUTH, None, None)["grey"]


def test_controls_stand_beside_the_metrics_they_apply_to() -> None:
    wrong = Finding(images=pictures(9), labels=torch.tensor([4, 0, 0]))
    auxiliary = Auxiliary(pictures(8).mean(dim=0), torch.arange(10), 10)
    found = controls(["psnr", "label_recall"], TRUTH, auxiliary, wrong)
    assert {name: set(values) for name, values in found.items()} == {
        "grey": {"psnr"},
        "own_mean": {"psnr"},
        "dataset_mean": {"psnr"},
        "wrong_update": {"psnr", "label_recall"},
        "prior": {"label_recall"},
        "uniform": {"label_recall"},
        "chance": {"label_recall"},
    }
    assert found["wrong_update"]["label_recall"] == pytest.approx(1 / 3)
    assert found["uniform"]["label_recall"] == pytest.approx(0.2)


def test_controls_without_auxiliary_data_or_wrong_update_are_left_out() -> None:
    assert set(controls(["psnr", "label_recall"], TRUTH, None, None)) == {"grey", "own_mean"}
    assert controls(["label_recall"], TRUTH, None, None) == {}


def test_soft_labels_and_features_stand_beside_blind_guesses_of_their_kind() -> None:
    auxiliary = Auxiliary(pictures(8).mean(dim=0), torch.tensor([0, 0, 0, 1]), 2, INPUTS.mean(0))
    wrong = Finding(labels=torch.tensor([[0.0, 1.0]]), features=torch.zeros(1, 8))
    names = ["soft_label_error", "feature_error"]
    found = controls(names, SOFT, auxiliary, wrong, lambda: INPUTS)
    assert {name: set(values) for name, values in found.items()} == {
        "dataset_mean": {"feature_error"},
        "wrong_update": set(names),
        "prior": {"soft_label_error"},
        "uniform": {"soft_label_error"},
    }
    assert found["uniform"]["soft_label_error"] == pytest.approx((0.4 + 0.1 + 0.0) / 3)
    assert found["prior"]["soft_label_error"] == pytest.approx((0.65 + 0.15 + 0.25) / 3)
    assert found["wrong_update"] == pytest.approx({"soft_label_error": (0.1 + 0.1 + 0.0) / 3, "feature_error": 1.0})
    distances = (INPUTS - INPUTS.mean(0)).norm(dim=1) / INPUTS.norm(dim=1)
    assert found["dataset_mean"]["feature_error"] == pytest.approx(float(distances.mean()), rel=1e-5)


def test_a_blind_guess_of_features_is_left_out_where_the_true_ones_are_not_known() -> None:
    auxiliary = Auxiliary(pictures(8).mean(dim=0), torch.arange(5), 5, INPUTS.mean(0))
    assert controls(["feature_error"], TRUTH, auxiliary, Finding(features=INPUTS)) == {}


@pytest.mark.parametrize(("worse", "best"), [("higher", ("own_mean", 15.0)), ("lower", ("grey", 9.0))])
def test_the_best_control_is_the_one_that_leaks_most(worse: str, best: tuple[str, float]) -> None:
    scores = {"grey": {"m": 9.0}, "own_mean": {"m": 15.0}, "prior": {"label_recall": 0.1}}
    assert best_control("m", scores, worse) == best
    assert best_control("other", scores, worse) is None


def test_skill_is_positive_where_the_score_leaks_more_than_the_control() -> None:
    assert skill(20.0, 15.0, "higher") == 5.0
    assert skill(0.1, 0.4, "lower") == pytest.approx(0.3)
    assert skill(0.5, 0.4, "lower") == pytest.approx(-0.1)


def test_the_image_of_a_batch_that_is_shown_best_is_found_beside_its_own_controls() -> None:
    """Of five images one is found exactly, which the mean of the batch hides behind four grey ones."""
    truth = Truth(pictures(0, 5), torch.arange(5))
    finding = Finding(images=truth.images[3:4])
    auxiliary = Auxiliary(torch.full((3, 16, 16), 0.4), torch.tensor([0, 1]), 5)
    scored = control_scores(["psnr"], truth, auxiliary, Finding(images=pictures(9, 5)))
    best = best_examples(score(["psnr"], finding, truth), scored)["psnr"]
    blind = max(psnr(guess, truth.images[3], 1.0) for guess in (torch.full((3, 16, 16), g) for g in (0.5, 0.4)))
    assert (best.index, best.value) == (3, PSNR_CAP)
    assert best.control == pytest.approx(blind)
    assert best.floor == pytest.approx(
        psnr(truth.images[3].mean((1, 2), keepdim=True).expand(3, 16, 16), truth.images[3], 1.0)
    )
    assert best.luck == 0.0


def test_luck_is_what_the_best_image_of_another_update_reaches() -> None:
    truth = Truth(pictures(0, 4), torch.arange(4))
    wrong = Finding(images=torch.cat([truth.images[:1], pictures(7, 3)]))
    best = best_examples(score(["psnr"], wrong, truth), control_scores(["psnr"], truth, None, wrong))["psnr"]
    assert best.luck == pytest.approx(best.value - best.control)
    assert best_examples(score(["label_recall"], Finding(labels=torch.tensor([1])), truth), {}) == {}


# Views


def test_a_view_has_the_scale_of_its_metric_and_patches_need_three_times_as_much_for_a_partial_leak() -> None:
    plain, trained, patches = (ratings.scale(name) for name in ("psnr", "psnr@trained", "psnr@trained+patches"))
    assert (trained.partial, trained.leaks, trained.kind) == (plain.partial, plain.leaks, IMAGES)
    assert (patches.partial, patches.leaks) == (3.0, 6.0)
    assert trained.title == "PSNR of what was trained on"
    assert ratings.scale("psnr@nothing").partial is None and ratings.scale("nothing@trained").partial is None


def test_the_best_places_make_no_leak_of_images_that_have_nothing_in_common() -> None:
    generator, grid = torch.Generator().manual_seed(0), PatchGrid(8, 4, 4, 3)
    for _ in range(20):
        # Blocks of color, so that patches differ and some of another image fit well.
        blocks = torch.rand((3, 1, 3, 4, 4), generator=generator).repeat_interleave(8, -1).repeat_interleave(8, -2)
        true, found, wrong = blocks + 0.05 * torch.randn((3, 1, 3, 32, 32), generator=generator)
        truth = Truth(true.clamp(0, 1), torch.zeros(1, dtype=torch.long))
        scored = score(["psnr"], Finding(images=found.clamp(0, 1)), truth, grid=grid)["psnr"]
        others = control_scores(["psnr"], truth, None, Finding(images=wrong.clamp(0, 1)), grid=grid)
        values = {name: {"psnr@patches": one["psnr"].value} for name, one in others.items() if one["psnr"].value}
        best = best_control("psnr@patches", blind(values), "higher")
        assert ratings.rate("psnr@patches", scored.value, best.value, "higher") == "none"
