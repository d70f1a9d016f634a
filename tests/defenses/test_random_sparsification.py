import pytest
import torch
from fedsim_defenses.random_sparsification import RandomSparsification
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import ScenarioError
from fedsim.exchange import Update, UpdateEffects
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

ONES = Update(3, 1, "delta", {"a": torch.ones(300, 100), "b": torch.ones(20_000)}, 4)


def sent(update: Update = ONES, seed: int = 0, **params) -> dict[str, torch.Tensor]:
    defense = RandomSparsification(**params)
    return dict(defense.protect_update(update, client_context(), torch_generator(seed, "s")).tensors)


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@given(keep=st.floats(0.001, 1.0), size=st.integers(1, 60))
def test_an_exact_mask_keeps_that_many_of_all_entries(keep, size):
    update = Update(1, 0, "gradient", {"a": torch.ones(size), "b": torch.ones(2, 3)}, 1)
    assert int(flat(sent(update, keep=keep, mask="exact")).sum()) == max(1, round(keep * (size + 6)))


def test_a_bernoulli_mask_keeps_each_entry_with_its_probability():
    kept = flat(sent(keep=0.3)).double()
    # 5 standard deviations of a binomial share; neighbors are independent, so both are kept with 0.09.
    assert float(kept.mean()) == pytest.approx(0.3, abs=5 * (0.21 / 50_000) ** 0.5)
    assert float((kept[1:] * kept[:-1]).mean()) == pytest.approx(0.09, abs=5 * (0.1 / 50_000) ** 0.5)


@pytest.mark.parametrize("mask", ["bernoulli", "exact"])
def test_rescaled_entries_are_right_on_average(mask):
    values = torch.tensor([0.3, -2.0, 0.0, 5.0])
    update = Update(1, 0, "gradient", {"w": values}, 1)
    drawn = torch.stack([sent(update, seed, keep=0.5, mask=mask, rescale=True)["w"] for seed in range(1500)])
    spread = drawn.double().std(0) / 1500**0.5
    assert bool(((drawn.double().mean(0) - values).abs() <= 5 * spread + 1e-9).all())


def test_what_is_sent_is_as_it_was_or_times_the_stated_factor():
    update = Update(1, 0, "gradient", {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}, 1)
    for rescale in (False, True):
        defense = RandomSparsification(keep=0.25, rescale=rescale)
        found, whole = sent(update, keep=0.25, rescale=rescale)["w"], update.tensors["w"]
        kept = found != 0
        torch.testing.assert_close(found[kept], whole[kept] * defense.effects.factor)


def test_the_mask_is_drawn_from_the_generator_alone():
    first, again, other = (flat(sent(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_update_without_entries_passes():
    assert sent(Update(1, 0, "gradient", {"a": torch.zeros(2, 0)}, 1), mask="exact")["a"].shape == (2, 0)


def test_it_says_what_it_does_and_claims_no_guarantee():
    assert RandomSparsification().effects == UpdateEffects(dropped="entries")
    assert RandomSparsification(keep=1.0, rescale=True).effects == UpdateEffects()
    assert RandomSparsification().budget(client_context()) is None
    assert "guarantees nothing" in RandomSparsification().cautions(nn.Linear(2, 2))[0]


@pytest.mark.parametrize(("params", "field"), [({"keep": 0}, "keep"), ({"mask": "x"}, "mask")])
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(RandomSparsification, params, "defenses.0.params")
    assert refused.value.where == f"defenses.0.params.{field}"
