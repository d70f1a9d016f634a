import dataclasses

import pytest
import torch
from fedsim_defenses.pruning import Pruning
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

SHAPES = {"a": (7, 3), "b": (5,), "c": (2, 2, 2)}


def drawn(seed: int = 0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    # A few magnitudes alone, so that there are ties.
    tensors = {n: torch.randint(-4, 5, shape, generator=generator).float() for n, shape in SHAPES.items()}
    return Update(3, 1, "delta", tensors, 4)


def sent(update: Update, state=None, **params) -> Update:
    context = client_context(state={} if state is None else state)
    found = Pruning(**params).protect_update(update, context, torch_generator(0, "p"))
    assert (found.round, found.client, found.kind, found.num_examples) == (3, 1, "delta", 4)
    return found


def by_loop(values: list[float], keep: float) -> list[float]:
    count = max(1, round(keep * len(values)))
    kept = sorted(range(len(values)), key=lambda place: -abs(values[place]))[:count]
    return [value if place in kept else 0.0 for place, value in enumerate(values)]


@given(keep=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_of_each_tensor_the_largest_entries_are_sent_as_a_loop_finds_them(keep, seed):
    update = drawn(seed)
    for name, tensor in sent(update, keep=keep).tensors.items():
        assert tensor.flatten().tolist() == by_loop(update.tensors[name].flatten().tolist(), keep)


@given(keep=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_over_the_update_the_largest_entries_are_sent_whichever_tensor_they_are_in(keep, seed):
    update = drawn(seed)
    entries = [x for tensor in update.tensors.values() for x in tensor.flatten().tolist()]
    found = [
        x for tensor in sent(update, keep=keep, scope="update").tensors.values() for x in tensor.flatten().tolist()
    ]
    assert found == by_loop(entries, keep)


@pytest.mark.parametrize("scope", ["tensor", "update"])
def test_with_error_feedback_all_that_was_sent_and_what_is_kept_is_all_there_was(scope):
    state, total = {}, {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for seed in range(5):
        found = sent(drawn(seed), state, keep=0.2, scope=scope, error_feedback=True)
        for name, tensor in found.tensors.items():
            total[name] += tensor
    whole = {name: sum(drawn(seed).tensors[name] for seed in range(5)) for name in SHAPES}
    left = torch.cat([(whole[name] - total[name]).flatten() for name in SHAPES])
    assert torch.equal(state["residual"], left) and bool(left.any())


def test_error_feedback_selects_by_what_was_held_back_too():
    state, update = {}, Update(3, 1, "delta", {"w": torch.tensor([3.0, 2.0])}, 4)
    first, second = (sent(update, state, keep=0.5, error_feedback=True).tensors["w"] for _ in range(2))
    assert (first.tolist(), second.tolist()) == ([3.0, 0.0], [0.0, 4.0])


def test_without_error_feedback_nothing_is_kept():
    state = {}
    assert torch.equal(sent(drawn(), state).tensors["a"], sent(drawn()).tensors["a"]) and state == {}


def test_empty_tensors_and_scalars_pass():
    tensors = {"a": torch.zeros(0), "b": torch.tensor(2.0), "c": torch.zeros(2, 0)}
    for scope in ("tensor", "update"):
        found = sent(Update(3, 1, "delta", tensors, 4), scope=scope).tensors
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert Pruning().effects == UpdateEffects(dropped="entries")
    assert Pruning(keep=1.0).effects == UpdateEffects()
    assert Pruning(error_feedback=True).effects.carries_over
    assert Pruning().budget(client_context()) is None
    assert "guarantees nothing" in Pruning().cautions(nn.Linear(2, 2))[0]
    assert dataclasses.asdict(Pruning()) == {"keep": 0.1, "scope": "tensor", "error_feedback": False}


@pytest.mark.parametrize(
    ("params", "field"), [({"keep": 0}, "keep"), ({"keep": 1.1}, "keep"), ({"scope": "x"}, "scope")]
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(Pruning, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
