from typing import Any

import pytest
import torch
from descent_cases import (
    against_own_and_other,
    attacked,
    grey,
    images_of,
    mean_color,
    observed,
    pictures,
    tiny,
    trajectory_of,
    with_update,
)
from fedsim_attacks.regularized_newton import RegularizedNewton
from fedsim_defenses.dp_noise import DPNoise
from vit_cases import gradient

from fedsim.defense import knowledge_of
from fedsim.errors import AttackRefusedError
from fedsim.exchange import TrainingKnowledge, Update
from fedsim.testing import client_context


def brief(**params: Any) -> RegularizedNewton:
    budgets = {
        "multi_start": 1,
        "fit_steps": 50,
        "multi_start_steps": 2,
        "steps": 2,
        "refinement_steps": 1,
        "solver_iterations": 10,
    }
    return RegularizedNewton(**{**budgets, **params})


def test_one_image_is_found_and_another_clients_is_not() -> None:
    own, other = pictures(0), pictures(50)
    attack = brief(fit_steps=0, multi_start_steps=6, steps=6, solver_iterations=20)
    right, wrong = against_own_and_other(attack, tiny(), own, other)
    assert right >= mean_color(own) + 6
    assert wrong <= grey(own) + 1


def test_one_stage_follows_the_other_and_the_least_residual_wins() -> None:
    finding = attacked(brief(steps=3, refinement_steps=2), observed(tiny(), pictures(0)))
    left, trajectory = finding.trace["left"], trajectory_of(finding)
    assert len(left) == 4 + 2 and len(finding.trace["multi_start"]) == 1
    assert left[0] == finding.trace["multi_start"][0]
    assert trajectory.steps == tuple(range(6)) and trajectory.losses == tuple(left)
    best = min(range(6), key=left.__getitem__)
    assert torch.equal(trajectory.images[best], images_of(finding))


def test_starts_are_tried_until_one_is_promising() -> None:
    seen = observed(tiny(), pictures(0))
    tried = attacked(brief(multi_start=3, acceptance_threshold=0.0), seen).trace["multi_start"]
    assert len(tried) == 3 and len(set(tried)) == 3
    assert len(attacked(brief(multi_start=3, acceptance_threshold=100.0), seen).trace["multi_start"]) == 1


def test_starts_are_blind_where_the_classifier_does_not_show_head_inputs() -> None:
    seen = with_update(observed(tiny(), pictures(0)), head__weight=None)
    finding = attacked(brief(multi_start=2, acceptance_threshold=0.0), seen)
    assert any("drawn blindly" in caution for caution in finding.cautions)
    assert len(finding.trace["multi_start"]) == 2


def test_the_first_start_is_fitted_to_what_the_last_block_has_seen_where_that_can_be_told() -> None:
    model, batch = tiny(depth=2), pictures(50)
    seen = observed(model, batch)
    looked, not_looked = (attacked(brief(fit_steps=steps), seen) for steps in (100, 0))
    assert looked.trace["multi_start"][0] < not_looked.trace["multi_start"][0]
    assert not any("fitted" in caution for caution in (*looked.cautions, *not_looked.cautions))
    kept = seen.update.tensors["blocks.1.mlp.fc2.weight"]
    spoiled = attacked(brief(), with_update(seen, blocks__1__mlp__fc2__weight=kept.flip(0)))
    assert any("No start is fitted" in caution for caution in spoiled.cautions)


def test_what_is_no_gradient_of_known_scale_is_refused_with_the_reason() -> None:
    batch, model = pictures(0), tiny()
    tensors = {name: -0.01 * tensor for name, tensor in observed(model, batch).update.tensors.items()}
    several = observed(
        model,
        batch,
        update=Update(1, 0, "delta", tensors, 2),
        training=TrainingKnowledge("sgd", 0.01, 0.0, 0.0, None, 2),
    )
    unknown = observed(model, batch, update=Update(1, 0, "delta", tensors, 1))
    for seen, reason in (
        (several, "local steps"),
        (unknown, "scale"),
        (observed(model, batch, train_mode=True), "dropout"),
    ):
        with pytest.raises(AttackRefusedError, match=reason):
            attacked(brief(), seen)


def test_it_goes_no_further_than_known_noise_allows() -> None:
    model, batch = tiny(), pictures(0)
    update = gradient(model, batch)
    size = sum(float(tensor.square().sum()) for tensor in update.tensors.values()) ** 0.5
    noise = DPNoise(clip_norm=2 * size, noise_multiplier=5e-4)
    sent = noise.protect_update(update, client_context(), torch.Generator().manual_seed(0))
    told = (knowledge_of("dp_noise", noise),)
    attack = brief(multi_start_steps=12, steps=10, refinement_steps=3, solver_iterations=20)
    aware, blind = (attacked(attack, observed(model, batch, sent, **granted)) for granted in ({"defenses": told}, {}))
    assert len(aware.trace["left"]) < len(blind.trace["left"]) == 11 + 3
    assert min(aware.trace["left"]) > min(blind.trace["left"])
    assert aware.trace["aware"] == ["noise"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("multi_start", 0),
        ("fit_steps", -1),
        ("multi_start_steps", 0),
        ("steps", -1),
        ("refinement_steps", -1),
        ("solver_iterations", 0),
        ("positions", -1.0),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        RegularizedNewton(**{name: value})
