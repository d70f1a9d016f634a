import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from descent_cases import (
    FOUR_PATCHES,
    ONE_PATCH,
    SIDE,
    attacked,
    brief,
    images_of,
    observed,
    pictures,
    tiny,
    trajectory_of,
)
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.head.nearest import NearestStarts
from fedsim_attacks.matching.descent import Descent
from fedsim_attacks.matching.starts import with_image
from fedsim_attacks.priors.natural import natural_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_cases import delta

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, LabeledImages, Observation, TrainingKnowledge

RECIPE = TrainingKnowledge("sgd", 0.05, 0.0, 0.0, 1, None)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(FOUR_PATCHES)


@pytest.fixture(scope="module")
def both() -> LabeledImages:
    return pictures(0, 50)


@pytest.fixture(scope="module")
def seen(model: torch.nn.Module, both: LabeledImages) -> Observation:
    return observed(model, both)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("restarts", 0),
        ("multi_start", 0),
        ("acceptance_threshold", 0.0),
        ("patience", -1),
        ("resolution", 0),
        ("refinement_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("top_k", 0.0),
        ("top_k", 1.5),
        ("second_phase", 2.0),
        ("warm_up", -0.1),
        ("warm_up", 1.1),
        *((name, -0.1) for name in ("matching", "positions", "matching_after", "group")),
        *((name, math.nan) for name in ("noise", "initial_scale")),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .+, got "):
        GradientMatching(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"matching": 0.0}, "matching"),
        ({"group": 0.1}, "group"),
        ({"group": 0.1, "restarts": 2, "optimizer": "lbfgs"}, "group"),
        ({"refinement": "closed_form", "resolution": 2}, "refinement"),
        ({"multi_start": 2, "optimizer": "lbfgs"}, "multi_start"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(params: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: expected "):
        GradientMatching(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"matching": 0.0, "positions": 1.0},
        {"priors": {"total_variation": {"weight": 0.1, "end": 0.1}}},
        {"group": 0.1, "restarts": 2},
        {"top_k": 1.0},
    ],
)
def test_limits_of_the_range_are_allowed(params: dict[str, Any]) -> None:
    assert isinstance(GradientMatching(**params), Descent)


@pytest.mark.parametrize(
    "params",
    [
        {"restarts": 2, "group": 0.1, "registered": True, "resolution": 2, "noise": 0.1, "optimizer": "adam"},
        {
            "positions": 1.0,
            "priors": {"patch": 0.1, "norm": 0.1, "total_variation": {"weight": 0.1, "end": 0.01}},
            "initial": "tiles",
            "distance": "sign",
        },
        {"optimize_labels": True, "top_k": 0.1, "per_token": False, "positions": 1.0, "patience": 1},
        {"optimizer": "lbfgs", "restarts": 2, "distance": "l2"},
    ],
)
def test_the_same_generator_gives_the_same_bytes_and_another_one_others(
    params: dict[str, Any], model: torch.nn.Module
) -> None:
    seen = observed(model, pictures(0), labels=None)
    before = torch.get_rng_state()
    one, two, other = (brief(seen, seed, **params) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images_of(one), images_of(two)) and one.trace == two.trace
    assert torch.equal(trajectory_of(one).images, trajectory_of(two).images)
    assert not torch.equal(images_of(one), images_of(other))
    assert bool(torch.isfinite(trajectory_of(one).images).all()) and images_of(one).shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize("restarts", [1, 2])
def test_dropout_on_the_client_draws_from_the_attack_s_generator(restarts: int) -> None:
    own = observed(tiny(ONE_PATCH, drop_rate=0.5), pictures(0), train_mode=True)
    before = torch.get_rng_state()
    one, two, other = (brief(own, seed, restarts=restarts) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images_of(one), images_of(two)) and not torch.equal(images_of(one), images_of(other))
    assert one.trace["input_gradients"] == "double_backward"


@pytest.mark.parametrize(
    "params", [{"distance": "l2"}, {"optimizer": "adam", "schedule": "cosine"}, {"restarts": 3}, {"optimizer": "lbfgs"}]
)
def test_the_iterate_of_least_objective_is_returned(params: dict[str, Any]) -> None:
    own = observed(tiny(ONE_PATCH), pictures(0))
    finding = brief(own, **{"steps": 12, **params})
    trace, curves, trajectory = finding.trace, finding.trace["curves"], trajectory_of(finding)
    assert len(curves) == params.get("restarts", 1)
    assert all(len(curve) == 13 for curve in curves)
    assert trace["loss"] == min(min(curve) for curve in curves) == curves[trace["restart"]][trace["step"]]
    assert trace["loss"] < curves[trace["restart"]][0]
    assert trajectory.steps == tuple(range(13))
    assert trajectory.losses == tuple(curves[trace["restart"]])
    assert torch.equal(trajectory.images[trace["step"]], images_of(finding))


def test_long_curves_and_trajectories_are_thinned() -> None:
    finding = brief(observed(tiny(ONE_PATCH), pictures(0)), steps=102)
    assert 50 <= len(finding.trace["curves"][0]) <= 76
    assert trajectory_of(finding).steps[0] == 0 and trajectory_of(finding).steps[-1] == 102
    assert len(trajectory_of(finding).steps) <= 32


def test_each_restart_has_a_start_and_a_curve_of_its_own(model: torch.nn.Module) -> None:
    seen = observed(model, pictures(0))
    curves = brief(seen, restarts=3).trace["curves"]
    assert len({curve[0] for curve in curves}) == 3
    one_by_one = brief(seen, restarts=3, optimizer="lbfgs").trace["curves"]
    # The same starts, but for the range of pixels, in which L-BFGS is not kept.
    assert [curve[0] for curve in one_by_one] == pytest.approx([curve[0] for curve in curves], rel=0.2)


def test_a_promising_start_is_followed_as_if_it_had_been_the_only_one(seen: Observation) -> None:
    alone, tried = (
        GradientMatching(steps=6, multi_start=trials, acceptance_threshold=1e6).run(
            seen, torch.Generator().manual_seed(0)
        )
        for trials in (1, 5)
    )
    assert torch.equal(images_of(alone), images_of(tried))
    assert alone.trace["multi_start"] == [] and len(tried.trace["multi_start"]) == 1


def test_of_starts_that_are_not_promising_the_best_is_followed(seen: Observation) -> None:
    def run(trials: int) -> tuple[list[float], float]:
        trace = (
            GradientMatching(steps=10, multi_start=trials, acceptance_threshold=1e-9)
            .run(seen, torch.Generator().manual_seed(0))
            .trace
        )
        return trace["multi_start"], trace["curves"][0][2]  # after a fifth of the steps

    for trials in (2, 6):
        reached, followed = run(trials)
        assert len(reached) == trials and len(set(reached)) == trials
        assert followed == min(reached)


@settings(max_examples=20)
@given(place=st.integers(0, 2), restarts=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_trial_redraws_one_image_and_its_label_alone(place: int, restarts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (
        {
            "images": torch.rand(restarts, 3, 1, 2, 2, generator=generator),
            "labels": torch.rand(restarts, 3, 4, generator=generator),
            "path": torch.rand(restarts, generator=generator),
        }
        for _ in range(2)
    )
    kept = {name: tensor.clone() for name, tensor in one.items()}
    found = with_image(one, other, place)
    for name in ("images", "labels"):
        for index in range(3):
            assert torch.equal(found[name][:, index], (other if index == place else one)[name][:, index])
    assert torch.equal(found["path"], one["path"])
    assert all(torch.equal(one[name], kept[name]) for name in one), "what was given is left as it was"


def test_no_step_returns_the_start(seen: Observation) -> None:
    finding = brief(seen, steps=0)
    assert finding.trace["step"] == 0 and trajectory_of(finding).steps == (0,)
    assert images_of(finding).shape == (2, 3, SIDE, SIDE)
    assert abs(float(images_of(finding).mean()) - 0.5) < 0.1


def test_a_start_of_tiles_repeats_one_patch(seen: Observation) -> None:
    start = images_of(brief(seen, steps=0, initial="tiles", initial_scale=0.1))
    assert torch.equal(start[..., :4, :4], start[..., 4:, :4]) and torch.equal(start[..., :4, :4], start[..., :4, 4:])
    assert float(start[..., :4, :4].std()) > 0.01
    grey = images_of(brief(seen, steps=0, initial_scale=0.0))
    torch.testing.assert_close(grey, torch.full_like(grey, 0.5))


def test_images_stay_in_the_range_of_pixels_at_every_frame(seen: Observation) -> None:
    frames = trajectory_of(brief(seen, learning_rate=3.0, steps=5)).images
    assert bool(((frames >= 0) & (frames <= 1)).all())
    assert float(((frames == 0) | (frames == 1)).float().mean()) > 0.1


def test_a_lower_resolution_has_fewer_unknowns_and_must_divide_the_image(seen: Observation) -> None:
    smooth, rough = (images_of(brief(seen, steps=0, resolution=factor, initial_scale=1.0)) for factor in (4, 1))
    assert smooth.shape == rough.shape
    steps = [float((images[..., 1:] - images[..., :-1]).abs().mean()) for images in (smooth, rough)]
    assert steps[0] < 0.5 * steps[1]
    assert brief(seen, resolution=2).trace["curves"][0][-1] < brief(seen, resolution=2).trace["curves"][0][0]
    with pytest.raises(AttackRefusedError, match="resolution: 3 does not divide images of 8 pixels"):
        brief(seen, resolution=3)


@pytest.mark.parametrize("device", ["cuda:93", "no_such_device"])
def test_a_device_that_is_not_there_is_refused(device: str, seen: Observation) -> None:
    with pytest.raises(AttackRefusedError, match=f"device: {device} cannot be used"):
        brief(seen, device=device)


def test_normalization_is_needed(seen: Observation) -> None:
    with pytest.raises(AttackRefusedError, match="normalization is not granted"):
        brief(dataclasses.replace(seen, normalization=None))


def test_labels_are_optimized_beside_the_images_where_that_is_asked(model: torch.nn.Module) -> None:
    own = pictures(0)
    finding = brief(observed(model, own, labels=None), steps=40, optimize_labels=True, optimizer="adam")
    assert finding.labels is not None and finding.labels.dtype == torch.int64
    assert finding.labels.tolist() == own.labels.tolist()
    granted = brief(observed(model, own), optimize_labels=True)
    assert granted.labels is not None and granted.labels.tolist() == own.labels.tolist()


def test_the_slopes_that_were_asked_for_are_taken(
    model: torch.nn.Module, both: LabeledImages, seen: Observation
) -> None:
    found = {
        input_gradients: brief(seen, input_gradients=input_gradients)
        for input_gradients in ("auto", "double_backward", "forward_difference")
    }
    assert found["auto"].trace["input_gradients"] == "forward_difference"
    assert all(found[name].trace["input_gradients"] == name for name in found if name != "auto")
    assert brief(seen, precision="bfloat16").trace["input_gradients"] == "double_backward"
    several = observed(model, both, update=delta(model, both, dataclasses.replace(RECIPE, local_steps=2)))
    with pytest.raises(AttackRefusedError, match="forward_difference reads one gradient"):
        brief(several, input_gradients="forward_difference", local="surrogate")


def test_half_precision_still_comes_nearer(seen: Observation) -> None:
    curve = brief(seen, precision="bfloat16", steps=10).trace["curves"][0]
    assert min(curve) < curve[0]


def test_restarts_that_agree_are_polished_too(seen: Observation) -> None:
    finding = brief(seen, restarts=2, group=0.1, refinement="gauss_newton", refinement_steps=1)
    assert len(finding.trace["refinement"]) == 2
    assert trajectory_of(finding).steps == (0, 1, 2, 3)


def test_patience_ends_a_run_that_does_not_get_on(seen: Observation) -> None:
    stuck = brief(seen, learning_rate=1e-12, patience=2, steps=30, priors={})
    assert len(stuck.trace["curves"][0]) <= 10
    assert trajectory_of(stuck).steps[-1] < 30


def test_starts_lie_nearest_to_the_head_inputs_that_are_wanted(model: torch.nn.Module) -> None:
    normalization = models.normalization(model)
    wanted = models.head_inputs(model, normalization.normalize(pictures(0, 1).images))[0]
    starts = NearestStarts(model, wanted, normalization, (3, SIDE, SIDE), lambda latents: latents)
    near, next_to_it = starts.draw(2, torch.Generator().manual_seed(0))
    other = starts.draw(1, torch.Generator().manual_seed(1))[0]

    def apart(images: torch.Tensor) -> torch.Tensor:
        return (models.head_inputs(model, images)[0] - wanted).norm(dim=1)

    usual = 0.3 * natural_noise(64, (3, SIDE, SIDE), torch.Generator().manual_seed(2)) + 0.35
    typical = torch.cdist(models.head_inputs(model, normalization.normalize(usual))[0], wanted).median(0).values
    assert (apart(near) < apart(next_to_it)).all()
    assert (apart(next_to_it) < 0.8 * typical).all() and (apart(other) < 0.8 * typical).all()
    assert not torch.equal(near, other)


def test_a_second_trial_starts_where_the_classifiers_gradient_points(seen: Observation) -> None:
    def started(observation: Observation) -> tuple[Finding, torch.Tensor]:
        attack = GradientMatching(steps=5, multi_start=4, acceptance_threshold=1e-9, learning_rate=1e-6)
        finding = attacked(attack, observation)
        return finding, trajectory_of(finding).images[0]

    told, images = started(seen)
    shared = {name: tensor for name, tensor in seen.update.tensors.items() if not name.startswith("head.")}
    blind, noise = started(dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=shared)))
    assert (told.trace["start"], blind.trace["start"]) == ("nearest", "noise")
    assert images.std() < 0.2 < noise.std()
    assert not any("blindly" in caution for caution in told.cautions)
    assert any("Starts are drawn blindly" in caution for caution in blind.cautions)


def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of somebody else's, of hard labels or of probabilities."""
    wanted = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits)
    return (logits - wanted).square().mean()


def test_a_loss_that_is_known_is_what_the_gradient_is_matched_under(
    model: torch.nn.Module, both: LabeledImages
) -> None:
    own = copy.deepcopy(model)
    models.set_loss(own, squared)
    seen = observed(own, both, labels=None)  # the client's gradient is that of its loss
    found, optimized = brief(seen), brief(seen, optimize_labels=True)
    assert torch.equal(images_of(found), images_of(optimized))  # no rule of cross-entropy gave it labels
    under_another = dataclasses.replace(seen, model=lambda: copy.deepcopy(model))
    assert brief(under_another, optimize_labels=True).trace["loss"] > 1.05 * optimized.trace["loss"]
