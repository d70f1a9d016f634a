import math

import pytest
import torch
from fedsim_defenses.qsgd import QSGD
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context


def sent(tensor: torch.Tensor, seed: int = 0, **params) -> torch.Tensor:
    update = Update(3, 1, "delta", {"w": tensor}, 4)
    return QSGD(**params).protect_update(update, client_context(), torch_generator(seed, "q")).tensors["w"]


@given(
    size=st.integers(1, 40),
    bucket=st.integers(1, 16),
    levels=st.integers(1, 9),
    norm=st.sampled_from(["l2", "max"]),
    seed=st.integers(0, 100),
)
def test_every_entry_goes_to_a_level_beside_it_of_its_buckets_norm_as_a_loop_finds_it(size, bucket, levels, norm, seed):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    found = sent(values, bucket=bucket, levels=levels, norm=norm).tolist()
    for start in range(0, size, bucket):
        own = values.double().tolist()[start : start + bucket]
        whole = math.sqrt(sum(x * x for x in own)) if norm == "l2" else max(abs(x) for x in own)
        for x, y in zip(own, found[start : start + bucket], strict=True):
            below = math.floor(abs(x) / whole * levels * (1 - 1e-12)) * whole / levels
            beside = (below, below + whole / levels)
            assert any(abs(abs(y) - level) <= 1e-5 * whole for level in beside) and x * y >= 0


def test_rounding_is_unbiased_with_the_variance_of_a_coin():
    values = torch.tensor([0.6, -0.8, 0.0, 0.05])
    drawn = sent(values.repeat(20_000, 1), bucket=4, levels=3).double()
    steps = values.double().abs() / values.double().norm() * 3
    share = steps - steps.floor()
    variance = share * (1 - share) * (values.double().norm() / 3) ** 2
    assert bool(((drawn.mean(0) - values).abs() <= 5 * (variance / 20_000).sqrt() + 1e-9).all())
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.05, atol=1e-12)


def test_rounding_draws_from_the_generator_alone():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    first, again, other = (sent(values, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_zeros_empty_tensors_and_scalars_pass():
    for tensor in (torch.zeros(3, 2), torch.zeros(0), torch.tensor(0.0), torch.zeros(2, 0)):
        assert torch.equal(sent(tensor), tensor)


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert QSGD().effects == UpdateEffects(rounding="stochastic")
    assert QSGD().budget(client_context()) is None
    assert "guarantees nothing" in QSGD().cautions(nn.Linear(2, 2))[0]


@pytest.mark.parametrize("field", ["levels", "bucket"])
def test_a_bad_parameter_is_refused_by_its_name(field):
    with pytest.raises(ScenarioError) as refused:
        configure(QSGD, {field: 0}, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
