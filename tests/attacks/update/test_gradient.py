import math
from dataclasses import replace

import pytest
import torch
from fedsim_attacks.update.gradient import is_taken_for_one_step, local_steps, mean_gradient, sgd_factors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation, TrainingKnowledge, Update
from fedsim.federation.training import local_update


def knowledge(
    steps: int | None = 1,
    epochs: int | None = None,
    rate: float = 0.1,
    momentum: float = 0.0,
    decay: float = 0.0,
    optimizer: str = "sgd",
    exempt: tuple[str, ...] = (),
) -> TrainingKnowledge:
    return TrainingKnowledge(optimizer, rate, momentum, decay, steps, epochs, exempt)


def observation(tensors: dict[str, torch.Tensor], examples: int = 4, **grants: object) -> Observation:
    update = Update(1, 0, "delta", tensors, examples)
    return Observation(update, lambda: nn.Linear(2, 1), (3, 4, 4), 5, **grants)  # type: ignore[arg-type]


@given(
    steps=st.integers(1, 12),
    rate=st.floats(1e-3, 0.5),
    momentum=st.floats(0, 0.95),
    decay=st.floats(0, 0.1),
    start=st.floats(-3, 3),
    gradient=st.floats(-3, 3),
)
def test_the_response_of_sgd_is_that_of_the_optimizer(
    steps: int, rate: float, momentum: float, decay: float, start: float, gradient: float
) -> None:
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, weight_decay=decay)
    for _ in range(steps):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    kept, gain = sgd_factors(knowledge(rate=rate, momentum=momentum), steps, decay)
    assert float(weight.detach()) == pytest.approx(kept * start - gain * gradient, abs=1e-9)


def test_a_delta_becomes_the_mean_gradient_and_loses_its_weight_decay() -> None:
    model = nn.Linear(2, 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = [{"params": [model.weight], "weight_decay": 0.3}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for _ in range(6):
        model.weight.grad, model.bias.grad = torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])
        optimizer.step()
    delta = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    told = knowledge(steps=6, rate=0.05, momentum=0.9, decay=0.3, exempt=("bias",))
    start = nn.Linear(2, 1)
    start.load_state_dict(before)
    seen = Observation(Update(1, 0, "delta", delta, 6), lambda: start, (3, 4, 4), 5, training=told)
    found = mean_gradient(seen, ["weight", "bias"])
    assert found.is_scaled and found.is_decay_known
    torch.testing.assert_close(found.tensors["weight"].float(), torch.tensor([[1.0, -2.0]]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.tensors["bias"].float(), torch.tensor([3.0]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", [{}, {"momentum": 0.9, "local_steps": 2}, {"weight_decay": 0.1}], ids=str)
def test_the_recipe_of_a_late_round_gives_the_gradient_back(tiny_plan, recipe) -> None:  # type: ignore[no-untyped-def]
    training = {"shares": "delta", "batch_size": 2, "learning_rate": 0.2, "mode": "eval"}
    schedule = {"name": "cosine", "warmup_rounds": 2, "final": 0.01}
    parts = {"federation": {"clients": 3, "rounds": 8}, "threat": {"grants": ["batch_size", "training"]}}
    plan = tiny_plan(training={**training, "schedule": schedule, **recipe}, **parts)
    weights, own = plan.initial_weights(), plan.scenario.training
    for round in (1, 7):
        update = local_update(plan, 1, round, weights).update
        seen = ThreatModel(plan).observe(update, weights)
        found = mean_gradient(seen, update.tensors)
        model, batch = plan.model(weights), plan.data.read(plan.data.client_inputs(1, round, own)[0], own)
        loss = nn.functional.cross_entropy(model(plan.normalization.normalize(batch.images)), batch.labels)
        names, parameters = zip(*model.named_parameters(), strict=True)
        expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        assert found.is_scaled
        if own.local_steps is None:  # of several steps the recipe gives a mean over gradients of moving weights
            for name, tensor in expected.items():
                torch.testing.assert_close(found.tensors[name].float(), tensor, rtol=1e-3, atol=1e-4)
        constant = replace(seen, training=replace(seen.training, learning_rate=0.2))
        wrong = mean_gradient(constant, ["head.bias"]).tensors["head.bias"]
        assert not torch.allclose(wrong.float(), expected["head.bias"], rtol=0.1)


CLIPPED = {"shares": "delta", "batch_size": 2, "learning_rate": 0.2, "mode": "eval", "weight_decay": 0.05}


@pytest.mark.parametrize(
    ("recipe", "parts", "is_scaled"),
    [
        ({"clip_norm": 1e3}, {}, True),  # the gradient is much shorter, so it was not clipped
        ({"clip_norm": 0.1}, {}, False),
        ({"clip_norm": 1e3, "local_steps": 2}, {}, False),  # the mean of clipped gradients may be as short
        ({"clip_norm": 1e3}, {"defenses": [{"name": "fedsim_defenses.clipping:Clipping"}]}, False),
        ({"clip_norm": 1e3}, {"defenses": [{"name": "partial_sharing", "params": {"hidden": ["head.*"]}}]}, False),
        ({}, {}, True),
    ],
)
def test_the_scale_is_known_only_where_no_step_can_have_been_clipped(  # type: ignore[no-untyped-def]
    tiny_plan, recipe, parts, is_scaled
) -> None:
    plan = tiny_plan(training={**CLIPPED, **recipe}, threat={"grants": ["batch_size", "training", "defenses"]}, **parts)
    plain = tiny_plan(training={**CLIPPED, **recipe, "clip_norm": None}, threat={"grants": ["training"]})
    weights = plan.initial_weights()
    found, whole = (
        mean_gradient(
            ThreatModel(own).observe(local_update(own, 1, 1, weights).update, weights), ["head.bias", "norm.bias"]
        )
        for own in (plan, plain)
    )
    assert found.is_scaled == is_scaled and found.is_decay_known and whole.is_scaled
    if "local_steps" not in recipe:  # one factor for all, and weight decay, which is not clipped, subtracted
        one, other = (found.tensors["norm.bias"], whole.tensors["norm.bias"])
        assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(1, abs=1e-6)


@given(norm=st.floats(1e-3, 10), limit=st.floats(1e-3, 10))
def test_an_update_of_a_clipped_step_never_counts_as_scaled(norm: float, limit: float) -> None:
    """Clipped by torch itself, and rounded as weights that travel."""
    model = nn.Linear(2, 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradient = torch.tensor([[0.6, -0.5]]), torch.tensor([0.3])
    length = math.sqrt(sum(float(tensor.square().sum()) for tensor in gradient))
    model.weight.grad, model.bias.grad = (norm / length * tensor for tensor in gradient)
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    is_clipped = float(model.bias.grad) < 0.3 * norm / length * (1 - 1e-5)
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    delta = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    told = replace(knowledge(rate=0.05), clip_norm=limit)
    start = nn.Linear(2, 1)
    start.load_state_dict(before)
    seen = Observation(Update(1, 0, "delta", delta, 1), lambda: start, (3, 4, 4), 5, training=told)
    found = mean_gradient(seen, ["bias"])
    assert not (found.is_scaled and is_clipped)
    assert found.is_scaled or norm > 0.98 * limit - 1e-5


def test_without_the_recipe_a_delta_is_a_gradient_up_to_a_factor() -> None:
    found = mean_gradient(observation({"weight": torch.tensor([[2.0, -1.0]])}), ["weight", "bias"])
    assert not found.is_scaled and not found.is_decay_known
    assert list(found.tensors) == ["weight"]
    assert found.tensors["weight"].tolist() == [[-2.0, 1.0]]


def test_adaptive_optimizers_are_refused() -> None:
    seen = observation({"weight": torch.ones(1, 2)}, training=knowledge(optimizer="adamw"))
    with pytest.raises(AttackRefusedError, match="adamw"):
        mean_gradient(seen, ["weight"])


@pytest.mark.parametrize(
    ("training", "examples", "batch_size", "expected"),
    [
        (None, 4, 4, None),
        (knowledge(steps=5), 20, 4, 5),
        (knowledge(steps=None, epochs=3), 10, 4, 9),
        (knowledge(steps=None, epochs=3), 1, None, 3),
        (knowledge(steps=None, epochs=3), 0, 4, None),
        (knowledge(steps=None, epochs=3), 30, None, None),
    ],
)
def test_local_steps_follow_from_the_grants(
    training: TrainingKnowledge | None, examples: int, batch_size: int | None, expected: int | None
) -> None:
    assert local_steps(observation({}, examples, training=training, batch_size=batch_size)) == expected


@pytest.mark.parametrize(
    ("training", "examples", "expected"),
    [
        (None, 4, True),  # as many images as a batch has: one step, or epochs that nothing tells of
        (None, 5, False),
        (knowledge(steps=None, epochs=1), 4, True),
        (knowledge(steps=None, epochs=2), 4, False),
        (knowledge(steps=2), 4, False),
    ],
)
def test_an_update_is_taken_for_one_step_unless_the_grants_tell_otherwise(
    training: TrainingKnowledge | None, examples: int, expected: bool
) -> None:
    assert is_taken_for_one_step(observation({}, examples, training=training, batch_size=4)) == expected
