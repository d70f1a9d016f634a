import dataclasses

import pytest
import torch
from fedsim_defenses.quantization import Quantization
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

MODEL = nn.Linear(2, 2)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_STEP = {"fp16": 0.009, "bf16": 0.009, "int8": 0.009, "int4": 1 / 7}  # at least the spacing, of values up to one


def sent(tensor: torch.Tensor, format: str, rounding: str = "nearest", seed: int = 0) -> torch.Tensor:
    update = Update(3, 1, "delta", {"w": tensor}, 4)
    found = Quantization(format=format, rounding=rounding).protect_update(
        update, client_context(), torch_generator(seed, "q")
    )
    assert (found.round, found.client, found.kind, found.num_examples) == (3, 1, "delta", 4)
    return found.tensors["w"]


@settings(deadline=None)
@given(exponent=st.integers(-30, 14), seed=st.integers(0, 1000), format=st.sampled_from(sorted(DTYPES)))
def test_nearest_rounding_is_the_conversion_of_the_format(exponent, seed, format):
    values = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    expected = values.to(DTYPES[format]).float()
    limit = torch.finfo(DTYPES[format]).max
    assert torch.equal(sent(values, format), expected.clamp(-limit, limit))


def test_values_beyond_half_precision_are_sent_as_its_largest():
    assert torch.equal(sent(torch.tensor([1e6, -1e6]), "fp16"), torch.tensor([65504.0, -65504.0]))


@settings(deadline=None)
@given(log_scale=st.floats(-8, 8), seed=st.integers(0, 1000), grid=st.sampled_from([("int8", 127), ("int4", 7)]))
def test_whole_number_formats_are_multiples_of_a_part_of_the_largest_magnitude_as_a_loop_finds_it(
    log_scale, seed, grid
):
    format, levels = grid
    values = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 10**log_scale
    scale = max(abs(v) for v in values.double().tolist()) / levels
    expected = torch.tensor([round(v / scale) * scale for v in values.double().tolist()])
    torch.testing.assert_close(sent(values, format), expected, rtol=1e-6, atol=0)
    assert float(sent(values, format).abs().max()) == pytest.approx(float(values.abs().max()), rel=1e-6)


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8", "int4"])
def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbor(format):
    values = torch.tensor([0.3, -0.7001, 0.0123, 1.0]).repeat(20_000, 1)
    found = sent(values, format, "stochastic")
    means, spread = found.double().mean(0), found.double().std(0) / 20_000**0.5
    assert bool(((means - values[0]).abs() <= 5 * spread + 1e-9).all())
    assert all(len(found[:, column].unique()) <= 2 for column in range(4))
    nearest = sent(values, format)
    assert bool(((found - values).abs() <= 2.01 * (nearest - values).abs().max() + _STEP[format]).all())


def test_stochastic_rounding_draws_from_the_generator_alone():
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    first, again, other = (sent(values, "int8", "stochastic", seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_zeros_empty_tensors_and_scalars_pass(format, rounding):
    for tensor in (torch.zeros(3, 2), torch.zeros(0), torch.tensor(0.0), torch.zeros(2, 0)):
        assert torch.equal(sent(tensor, format, rounding), tensor)


@pytest.mark.parametrize("format", ["fp16", "bf16", "int8", "int4"])
def test_rounding_twice_changes_nothing(format):
    once = sent(torch.randn(500, generator=torch.Generator().manual_seed(1)), format)
    torch.testing.assert_close(sent(once, format), once, rtol=1e-6, atol=0)


def test_scales_are_per_tensor():
    update = Update(1, 0, "gradient", {"a": torch.tensor([1.0, 0.3]), "b": torch.tensor([1e-6, 3e-7])}, 1)
    found = Quantization(format="int8").protect_update(update, client_context(), torch.Generator()).tensors
    torch.testing.assert_close(found["b"] * 1e6, found["a"])


def test_it_claims_no_guarantee():
    defense = Quantization()
    assert defense.budget(client_context(participation=3)) is None
    assert any("guarantees nothing" in caution for caution in defense.cautions(MODEL))
    assert dataclasses.asdict(defense) == {"format": "int8", "rounding": "nearest"}


@pytest.mark.parametrize(("params", "field"), [({"format": "fp8"}, "format"), ({"rounding": "down"}, "rounding")])
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(Quantization, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
