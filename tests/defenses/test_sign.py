import math

import pytest
import torch
from fedsim_defenses.sign import Sign
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context


def sent(tensor: torch.Tensor, state=None, **params) -> torch.Tensor:
    context = client_context(state={} if state is None else state)
    update = Update(3, 1, "delta", {"w": tensor, "other": torch.ones(2)}, 4)
    return Sign(**params).protect_update(update, context, torch_generator(0, "s")).tensors["w"]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_an_entry_becomes_its_sign_times_the_mean_magnitude_as_a_loop_finds_it(values):
    mean = sum(abs(value) for value in values) / len(values)
    expected = [math.copysign(mean, value) if value else 0.0 for value in values]
    torch.testing.assert_close(sent(torch.tensor(values)), torch.tensor(expected), rtol=1e-6, atol=0)


def test_a_fixed_scale_takes_the_place_of_the_mean():
    assert sent(torch.tensor([[5.0, -0.1, 0.0]]), scale=0.5).tolist() == [[0.5, -0.5, 0.0]]


def test_with_error_feedback_all_that_was_sent_and_what_is_kept_is_all_there_was():
    # Karimireddy et al., algorithm 1: p = g + e, sent |p|_1 / n sign(p), e = p - sent.
    state, error = {}, torch.zeros(4)
    for seed in range(4):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        whole = gradient + error
        expected = whole.sign() * whole.abs().mean()
        torch.testing.assert_close(sent(gradient, state, error_feedback=True), expected)
        error = whole - expected
    torch.testing.assert_close(state["residual"][:4], error)


def test_zeros_empty_tensors_and_scalars_pass():
    for tensor in (torch.zeros(3, 2), torch.zeros(0), torch.tensor(0.0), torch.tensor(-2.0)):
        assert torch.equal(sent(tensor), tensor)


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert Sign().effects == UpdateEffects(signs=True)
    assert Sign(error_feedback=True).effects.carries_over
    assert Sign().budget(client_context()) is None
    assert "guarantee nothing" in Sign().cautions(nn.Linear(2, 2))[0]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_a_bad_parameter_is_refused_by_its_name(scale):
    with pytest.raises(ScenarioError) as refused:
        configure(Sign, {"scale": scale}, "defenses.0.params")
    assert refused.value.where == "defenses.0.params.scale"
