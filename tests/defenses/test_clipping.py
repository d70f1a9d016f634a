import math

import pytest
import torch
from fedsim_defenses.clipping import Clipping
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context


def of_norm(norm: float) -> Update:
    return Update(3, 1, "delta", {"a": torch.tensor([0.6, 0.0]) * norm, "b": torch.tensor([[0.8]]) * norm}, 4)


def sent(update: Update, state=None, **params) -> Update:
    context = client_context(state={} if state is None else state)
    return Clipping(**params).protect_update(update, context, torch_generator(0, "c"))


@given(norm=st.floats(1e-3, 1e3), limit=st.floats(1e-2, 1e2))
def test_an_update_keeps_its_direction_and_at_most_the_norm(norm, limit):
    update = of_norm(norm)
    found = sent(update, norm=limit)
    assert found.norm() == pytest.approx(min(norm, limit), rel=1e-5)
    torch.testing.assert_close(found.tensors["a"] * update.tensors["b"], update.tensors["a"] * found.tensors["b"])


def test_an_update_within_the_norm_stays_bit_for_bit():
    update = of_norm(0.9)
    assert sent(update) is update


def test_an_adapted_norm_is_that_of_a_loop_over_the_rounds():
    state, limit = {}, 1.0
    for norm in (3.0, 0.5, 0.1, 0.1, 7.0):
        assert sent(of_norm(norm), state, rate=0.3, quantile=0.8).norm() == pytest.approx(min(norm, limit), rel=1e-5)
        limit *= math.exp(-0.3 * ((norm <= limit) - 0.8))
        assert state["norm"] == pytest.approx(limit)


def test_an_adapted_norm_comes_to_leave_the_stated_share_of_the_updates():
    norms = torch.rand(1500, generator=torch.Generator().manual_seed(0)).tolist()
    state, within = {}, 0
    for step, norm in enumerate(norms):
        update = of_norm(norm)
        within += step >= 500 and sent(update, state, norm=100.0, rate=0.05, quantile=0.7) is update
        if step < 500:
            sent(update, state, norm=100.0, rate=0.05, quantile=0.7)
    assert within / 1000 == pytest.approx(0.7, abs=0.03)


def test_a_fixed_norm_keeps_nothing_and_an_update_that_is_not_finite_is_refused():
    state = {}
    sent(of_norm(5.0), state)
    assert state == {}
    with pytest.raises(ValueError, match="not finite"):
        sent(of_norm(math.inf))


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert Clipping(norm=2.0).effects == UpdateEffects(clip_norm=2.0)
    assert Clipping(rate=0.1).effects == UpdateEffects(factor=None)
    assert Clipping().budget(client_context()) is None
    assert "no guarantee" in Clipping().cautions(nn.Linear(2, 2))[0]


@pytest.mark.parametrize(
    ("params", "field"), [({"norm": 0}, "norm"), ({"quantile": 1}, "quantile"), ({"rate": -1}, "rate")]
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(Clipping, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
