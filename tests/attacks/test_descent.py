import dataclasses
import math
from typing import Any

import pytest
import torch
from descent_cases import FOUR_PATCHES, ONE_PATCH, SIDE, attacked, observed, pictures, tiny
from fedsim_attacks._descent import Descent
from fedsim_attacks.gradient_matching import GradientMatching
from vit_cases import delta, gradient

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Film, Finding, LabeledImages, Observation, TrainingKnowledge, Update

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


def brief(seen: Observation, seed: int = 1, **params: Any) -> Finding:
    return attacked(GradientMatching(**{"steps": 2, "slopes": "double_backward", **params}), seen, seed)


def with_update(seen: Observation, **tensors: torch.Tensor | None) -> Observation:
    """Return the observation with tensors replaced, or left out where None; `a__b` stands for `a.b`."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    merged = {**seen.update.tensors, **named}
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    return dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=kept))


def images_of(finding: Finding) -> torch.Tensor:
    assert finding.images is not None
    return finding.images


def film_of(finding: Finding) -> Film:
    assert finding.film is not None
    return finding.film


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("restarts", 0),
        ("patience", -1),
        ("resolution", 0),
        ("polish_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("largest", 0.0),
        ("largest", 1.5),
        ("hold", 1.1),
        ("prior_from", 2.0),
        ("warm_up", -0.1),
        ("warm_up", 1.1),
        ("total_variation", -1.0),
        ("total_variation", math.inf),
        ("total_variation_end", 0.0),
        ("total_variation_end", 0.2),
        ("total_variation_end", math.nan),
        *((name, -0.1) for name in ("matching", "positions", "seams", "norm", "statistics", "matching_after", "group")),
        *((name, math.nan) for name in ("features", "row_space", "noise", "initial_scale")),
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
        ({"total_variation": 0.0, "total_variation_end": 0.1}, "total_variation_end"),
        ({"polish": "closed_form", "resolution": 2}, "polish"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(params: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: expected "):
        GradientMatching(**params)


@pytest.mark.parametrize(
    "params",
    [
        {"matching": 0.0, "positions": 1.0},
        {"total_variation_end": 0.1},
        {"group": 0.1, "restarts": 2},
        {"largest": 1.0},
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
            "seams": 0.1,
            "norm": 0.1,
            "initial": "tiles",
            "distance": "sign",
            "total_variation_end": 0.01,
        },
        {"optimize_labels": True, "largest": 0.1, "per_token": False, "positions": 1.0, "patience": 1},
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
    assert torch.equal(film_of(one).images, film_of(two).images)
    assert not torch.equal(images_of(one), images_of(other))
    assert bool(torch.isfinite(film_of(one).images).all()) and images_of(one).shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize("restarts", [1, 2])
def test_dropout_on_the_client_draws_from_the_attack_s_generator(restarts: int) -> None:
    own = observed(tiny(ONE_PATCH, drop_rate=0.5), pictures(0), train_mode=True)
    before = torch.get_rng_state()
    one, two, other = (brief(own, seed, restarts=restarts) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images_of(one), images_of(two)) and not torch.equal(images_of(one), images_of(other))
    assert one.trace["slopes"] == "double_backward"


@pytest.mark.parametrize(
    "params", [{"distance": "l2"}, {"optimizer": "adam", "schedule": "cosine"}, {"restarts": 3}, {"optimizer": "lbfgs"}]
)
def test_the_iterate_of_least_objective_is_returned(params: dict[str, Any]) -> None:
    own = observed(tiny(ONE_PATCH), pictures(0))
    finding = brief(own, **{"steps": 12, **params})
    trace, curves, film = finding.trace, finding.trace["curves"], film_of(finding)
    assert len(curves) == params.get("restarts", 1)
    assert all(len(curve) == 13 for curve in curves)
    assert trace["loss"] == min(min(curve) for curve in curves) == curves[trace["restart"]][trace["step"]]
    assert trace["loss"] < curves[trace["restart"]][0]
    assert film.steps == tuple(range(13))
    assert film.losses == tuple(curves[trace["restart"]])
    assert torch.equal(film.images[trace["step"]], images_of(finding))


def test_long_curves_and_films_are_thinned() -> None:
    finding = brief(observed(tiny(ONE_PATCH), pictures(0)), steps=102)
    assert 50 <= len(finding.trace["curves"][0]) <= 76
    assert film_of(finding).steps[0] == 0 and film_of(finding).steps[-1] == 102
    assert len(film_of(finding).steps) <= 32


def test_each_restart_has_a_start_and_a_curve_of_its_own(model: torch.nn.Module) -> None:
    seen = observed(model, pictures(0))
    curves = brief(seen, restarts=3).trace["curves"]
    assert len({curve[0] for curve in curves}) == 3
    one_by_one = brief(seen, restarts=3, optimizer="lbfgs").trace["curves"]
    # The same starts, but for the range of pixels, in which L-BFGS is not kept.
    assert [curve[0] for curve in one_by_one] == pytest.approx([curve[0] for curve in curves], rel=0.2)


def test_no_step_returns_the_start(seen: Observation) -> None:
    finding = brief(seen, steps=0)
    assert finding.trace["step"] == 0 and film_of(finding).steps == (0,)
    assert images_of(finding).shape == (2, 3, SIDE, SIDE)
    assert abs(float(images_of(finding).mean()) - 0.5) < 0.1


def test_a_start_of_tiles_repeats_one_patch(seen: Observation) -> None:
    start = images_of(brief(seen, steps=0, initial="tiles", initial_scale=0.1))
    assert torch.equal(start[..., :4, :4], start[..., 4:, :4]) and torch.equal(start[..., :4, :4], start[..., :4, 4:])
    assert float(start[..., :4, :4].std()) > 0.01
    grey = images_of(brief(seen, steps=0, initial_scale=0.0))
    torch.testing.assert_close(grey, torch.full_like(grey, 0.5))


def test_pictures_stay_in_the_range_of_pixels_at_every_frame(seen: Observation) -> None:
    frames = film_of(brief(seen, learning_rate=3.0, steps=5)).images
    assert bool(((frames >= 0) & (frames <= 1)).all())
    assert float(((frames == 0) | (frames == 1)).float().mean()) > 0.1


def test_a_lower_resolution_has_fewer_unknowns_and_must_divide_the_picture(seen: Observation) -> None:
    smooth, rough = (images_of(brief(seen, steps=0, resolution=factor, initial_scale=1.0)) for factor in (4, 1))
    assert smooth.shape == rough.shape
    steps = [float((images[..., 1:] - images[..., :-1]).abs().mean()) for images in (smooth, rough)]
    assert steps[0] < 0.5 * steps[1]
    assert brief(seen, resolution=2).trace["curves"][0][-1] < brief(seen, resolution=2).trace["curves"][0][0]
    with pytest.raises(AttackRefusedError, match="resolution: 3 does not divide pictures of 8 pixels"):
        brief(seen, resolution=3)


def test_only_the_parameters_that_fit_a_pattern_are_looked_at(model: torch.nn.Module, both: LabeledImages) -> None:
    seen = observed(model, both)
    spoiled = {name: tensor.flip(0) for name, tensor in seen.update.tensors.items() if name.startswith("blocks.0.mlp")}
    changed = with_update(seen, **{name.replace(".", "__"): tensor for name, tensor in spoiled.items()})
    layers = ("patch_embed.*", "*attn*", "head.*")
    assert brief(seen, layers=layers).trace == brief(changed, layers=layers).trace
    assert brief(seen).trace != brief(changed).trace
    with pytest.raises(AttackRefusedError, match=r"layers: no\.such fits no parameter .* among others"):
        brief(seen, layers=("no.such",))


def test_a_part_that_took_no_part_is_left_out(seen: Observation) -> None:
    zero = torch.zeros_like(seen.update.tensors["blocks.0.mlp.fc1.weight"])
    missing = with_update(seen, blocks__0__mlp__fc1__weight=None)
    assert brief(with_update(seen, blocks__0__mlp__fc1__weight=zero)).trace == brief(missing).trace


def test_an_update_that_says_nothing_or_is_not_finite_is_refused(seen: Observation) -> None:
    nothing = {name: torch.zeros_like(tensor) for name, tensor in seen.update.tensors.items()}
    for tensors in (nothing, {}):
        with pytest.raises(AttackRefusedError, match="holds no gradient"):
            brief(dataclasses.replace(seen, update=Update(1, 0, "gradient", tensors, 2)))
    for value in (math.nan, math.inf):
        spoiled = seen.update.tensors["pos_embed"].clone()
        spoiled[0, 0, 0] = value
        with pytest.raises(AttackRefusedError, match="not finite"):
            brief(with_update(seen, pos_embed=spoiled))


@pytest.mark.parametrize("device", ["cuda:93", "no_such_device"])
def test_a_device_that_is_not_there_is_refused(device: str, seen: Observation) -> None:
    with pytest.raises(AttackRefusedError, match=f"device: {device} cannot be used"):
        brief(seen, device=device)


def test_normalization_is_needed(seen: Observation) -> None:
    with pytest.raises(AttackRefusedError, match="normalization is not granted"):
        brief(dataclasses.replace(seen, normalization=None))


@pytest.mark.parametrize("distance", ["l2", "layer_l2"])
def test_lengths_are_not_compared_where_the_scale_of_the_gradient_is_unknown(distance: str, seen: Observation) -> None:
    tensors = {name: -0.01 * tensor for name, tensor in seen.update.tensors.items()}
    unknown = dataclasses.replace(seen, update=Update(1, 0, "delta", tensors, 2))
    with pytest.raises(AttackRefusedError, match=r"scale .* unknown"):
        brief(unknown, distance=distance)
    for blind in ("cosine", "tensor_cosine", "sign"):
        assert brief(unknown, distance=blind).images is not None
    told = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    known = brief(dataclasses.replace(unknown, training=told), distance=distance)
    assert known.trace["loss"] == pytest.approx(brief(seen, distance=distance).trace["loss"], rel=1e-3)
    assert not any("local steps" in caution for caution in known.cautions)


def test_positions_without_a_gradient_are_refused(seen: Observation) -> None:
    zero = torch.zeros_like(seen.update.tensors["pos_embed"])
    for spoiled in (with_update(seen, pos_embed=None), with_update(seen, pos_embed=zero)):
        with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
            brief(spoiled, positions=1.0)
        assert brief(spoiled).images is not None


def test_a_masked_position_has_no_direction_to_match(seen: Observation) -> None:
    masked = seen.update.tensors["pos_embed"].clone()
    masked[:, 2] = 0
    normalization = seen.normalization
    assert normalization is not None
    attack = GradientMatching(matching=0.0, positions=1.0, total_variation=0.0, steps=0)
    goal = with_update(seen, pos_embed=masked)
    noise = attacked(attack, goal).trace["loss"]
    assert 0 < noise < 2 and math.isfinite(noise)


def test_labels_are_counted_where_they_are_not_granted(model: torch.nn.Module, both: LabeledImages) -> None:
    labels = brief(observed(model, both, labels=None)).labels
    assert labels is not None and sorted(labels.tolist()) == sorted(both.labels.tolist())


def test_soft_labels_are_matched_as_they_are_granted(model: torch.nn.Module, both: LabeledImages) -> None:
    soft = torch.full((2, 10), 0.02)
    soft[torch.arange(2), both.labels] = 0.82
    mixed = LabeledImages(both.images, soft)
    finding = brief(observed(model, mixed), initial_scale=0.0, steps=0)
    hard = brief(observed(model, both, update=gradient(model, mixed)), initial_scale=0.0, steps=0)
    assert finding.labels is not None and torch.equal(finding.labels, soft)
    assert finding.trace["loss"] != hard.trace["loss"]


def test_labels_are_optimized_beside_the_pictures_where_that_is_asked(model: torch.nn.Module) -> None:
    own = pictures(0)
    finding = brief(observed(model, own, labels=None), steps=40, optimize_labels=True, optimizer="adam")
    assert finding.labels is not None and finding.labels.dtype == torch.int64
    assert finding.labels.tolist() == own.labels.tolist()
    granted = brief(observed(model, own), optimize_labels=True)
    assert granted.labels is not None and granted.labels.tolist() == own.labels.tolist()


def test_the_slopes_that_were_asked_for_are_taken(
    model: torch.nn.Module, both: LabeledImages, seen: Observation
) -> None:
    found = {slopes: brief(seen, slopes=slopes) for slopes in ("auto", "double_backward", "forward_difference")}
    assert found["auto"].trace["slopes"] == "forward_difference"
    assert all(found[name].trace["slopes"] == name for name in found if name != "auto")
    assert brief(seen, precision="bfloat16").trace["slopes"] == "double_backward"
    several = observed(model, both, update=delta(model, both, dataclasses.replace(RECIPE, local_steps=2)))
    with pytest.raises(AttackRefusedError, match="forward_difference reads one gradient"):
        brief(several, slopes="forward_difference", local="surrogate")


def test_half_precision_still_comes_nearer(seen: Observation) -> None:
    curve = brief(seen, precision="bfloat16", steps=10).trace["curves"][0]
    assert min(curve) < curve[0]


@pytest.mark.parametrize(
    ("recipe", "examples", "path", "doubt"),
    [
        (RECIPE, 2, False, None),  # one step is one gradient
        (
            dataclasses.replace(RECIPE, local_steps=3),
            6,
            False,
            "simulated in the order",
        ),  # unrolled, batches in an order of our own
        (dataclasses.replace(RECIPE, local_steps=20), 8, True, None),  # a surrogate of many
        (None, 6, True, None),  # or of an unknown number
        (None, 2, False, "several local steps"),  # as many examples as a batch has: one step, it seems
    ],
)
def test_a_delta_is_read_as_its_recipe_says(
    recipe: TrainingKnowledge | None,
    examples: int,
    path: bool,
    doubt: str | None,
    model: torch.nn.Module,
    both: LabeledImages,
) -> None:
    update = dataclasses.replace(delta(model, both, recipe or RECIPE), num_examples=examples)
    found = brief(observed(model, both, update=update, training=recipe, labels=both.labels.repeat(examples // 2)))
    assert ("path" in found.trace) == path
    told = [caution for caution in found.cautions if "simulated" in caution or "local steps" in caution]
    assert len(told) == (doubt is not None) and all(doubt is not None and doubt in caution for caution in told)
    assert images_of(found).shape[0] == examples
    if path:
        assert 0 <= found.trace["path"] <= 1


def test_a_gradient_is_one_gradient_however_a_delta_would_be_read(seen: Observation) -> None:
    plain, *others = (brief(seen, local=local) for local in ("auto", "one_gradient", "surrogate", "unrolled"))
    assert all(other.trace == plain.trace for other in others) and "path" not in plain.trace


def test_a_reading_without_its_recipe_is_refused(model: torch.nn.Module, both: LabeledImages) -> None:
    unknown = observed(model, both, update=delta(model, both, RECIPE))
    with pytest.raises(AttackRefusedError, match=r"unrolled simulates .* Grant `training`"):
        brief(unknown, local="unrolled")
    adaptive = dataclasses.replace(unknown, training=dataclasses.replace(RECIPE, optimizer="adamw"))
    with pytest.raises(AttackRefusedError, match="adamw"):
        brief(adaptive)


def test_one_unrolled_step_is_one_gradient(model: torch.nn.Module, both: LabeledImages) -> None:
    recipe = dataclasses.replace(RECIPE, momentum=0.9, weight_decay=0.1)
    seen = observed(model, both, update=delta(model, both, recipe), training=recipe)
    losses = [
        brief(seen, local=local, slopes="double_backward").trace["curves"][0] for local in ("one_gradient", "unrolled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    "prior", [{"seams": 10.0}, {"norm": 10.0}, {"total_variation": 10.0}, {"group": 10.0, "restarts": 2}]
)
def test_a_prior_of_much_weight_has_its_way(prior: dict[str, Any], seen: Observation) -> None:
    params: dict[str, Any] = {"total_variation": 0.0, "optimizer": "adam", "steps": 15, "learning_rate": 0.05, **prior}
    curves = brief(seen, **params).trace["curves"]
    assert all(curve[-1] < 0.8 * curve[0] for curve in curves)


def test_restarts_that_agree_are_polished_too(seen: Observation) -> None:
    finding = brief(seen, restarts=2, group=0.1, polish="gauss_newton", polish_steps=1)
    assert len(finding.trace["polish"]) == 2
    assert film_of(finding).steps == (0, 1, 2, 3)


def test_restarts_are_drawn_to_what_they_agree_on(model: torch.nn.Module) -> None:
    seen, params = observed(model, pictures(0)), {"restarts": 2, "optimizer": "adam", "total_variation": 0.0}
    alone, lazy, registered = (
        brief(seen, steps=10, **params, **how).trace["curves"]
        for how in ({}, {"group": 5.0}, {"group": 5.0, "registered": True})
    )
    for drawn in (lazy, registered):
        # What the term adds is the distance of the restarts from each other, which falls faster than the rest.
        assert all(curve[0] > start[0] + 0.5 for curve, start in zip(drawn, alone, strict=True))
        assert all(curve[-1] < 0.7 * curve[0] for curve in drawn)


def test_head_inputs_recovered_from_the_classifier_are_a_prior(model: torch.nn.Module) -> None:
    own = pictures(0)
    curve = brief(observed(model, own), features=1.0, total_variation=0.0, steps=15, optimizer="adam").trace["curves"][
        0
    ]
    assert curve[-1] < 0.7 * curve[0]


def test_a_span_that_is_everything_is_refused_and_a_proper_one_is_a_prior(model: torch.nn.Module) -> None:
    own, many = pictures(0), pictures(*range(24))
    curve = brief(observed(model, own), row_space=1.0, total_variation=0.0, steps=15, optimizer="adam").trace["curves"][
        0
    ]
    assert curve[-1] < curve[0]
    with pytest.raises(AttackRefusedError, match="row_space: this update holds"):
        brief(observed(model, many), row_space=1.0)


def test_statistics_without_a_network_are_doubted(seen: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks._terms.has_efficientnet_lite0", lambda: False)
    finding = brief(seen, statistics=0.1)
    assert any("no network whose statistics" in caution for caution in finding.cautions)
    assert brief(seen, steps=4, statistics=0.1, prior_from=0.5, matching_after=0.5).trace["step"] >= 2
    assert not any("statistics" in caution for caution in brief(seen).cautions)


def test_patience_ends_a_run_that_does_not_get_on(seen: Observation) -> None:
    stuck = brief(seen, learning_rate=1e-12, patience=2, steps=30, total_variation=0.0)
    assert len(stuck.trace["curves"][0]) <= 10
    assert film_of(stuck).steps[-1] < 30
