import dataclasses
import math

import pytest
import torch
from descent_cases import FOUR_PATCHES, brief, images_of, observed, pictures, tiny, with_update
from vit_cases import delta, gradient

from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update

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
        brief(seen, local=local, input_gradients="double_backward").trace["curves"][0]
        for local in ("one_gradient", "unrolled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
