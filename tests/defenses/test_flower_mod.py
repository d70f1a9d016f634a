import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedsim_defenses.flower_mod import FlowerMod
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.gdp import eps_from_mu
from scipy.stats import kstest, norm
from torch import nn
from vit_cases import tiny_model

from fedsim import gaussian_dp
from fedsim.errors import ScenarioError
from fedsim.exchange import Update
from fedsim.plugins import configure
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import check_defense, client_context

LOCAL = {"mod": "LocalDpMod", "clipping_norm": 1.0, "sensitivity": 2.0, "epsilon": 1.0, "delta": 1e-5}


def update_of(*shapes, scale=1.0, seed=0) -> Update:
    generator = torch_generator(seed, "update")
    tensors = {f"t{i}": scale * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    return Update(3, 1, "delta", tensors, 4)


def protected(update, seed=0, **params) -> Update:
    return FlowerMod(**params).protect_update(update, client_context(), torch_generator(seed, "noise"))


def by_flower(mod, update, weights=None, norm=1.0, seed=0):
    """What Flower's mod makes of the message of a client whose new weights are the given ones and the update."""
    weights = weights or {name: torch.zeros_like(tensor) for name, tensor in update.tensors.items()}

    def message(tensors):
        arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"clipping_norm": norm})})
        return SimpleNamespace(content=content, has_error=lambda: False)

    new = {name: weights[name] + tensor for name, tensor in update.tensors.items()}
    drawn = int(torch.randint(2**62, (), generator=torch_generator(seed, "noise")))
    with seeded(drawn, "flower_mod"):
        reply = mod(message(weights), None, lambda asked, context: message(new))
    return {name: torch.from_numpy(array.numpy()) for name, array in reply.content["arrays"].items()}


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    scale=st.floats(1e-3, 1e3),
    clip=st.floats(1e-2, 1e2),
    epsilon=st.floats(0.1, 20),
)
def test_the_update_is_bit_for_bit_what_flowers_mod_sends_from_weights_of_zero(shapes, scale, clip, epsilon):
    update = update_of(*shapes, scale=scale)
    found = protected(update, **{**LOCAL, "clipping_norm": clip, "epsilon": epsilon}).tensors
    expected = by_flower(LocalDpMod(clip, 2.0, epsilon, 1e-5), update)
    assert all(torch.equal(found[name], expected[name]) for name in update.tensors)
    found = protected(update, clipping_norm=clip).tensors
    expected = by_flower(fixedclipping_mod, update, norm=clip)
    assert all(torch.equal(found[name], expected[name]) for name in update.tensors)


def test_from_other_weights_the_mod_sends_the_same_but_for_the_rounding_of_the_weights():
    update, weights = update_of((40, 3), (7,), scale=3.0), update_of((40, 3), (7,), seed=1).tensors
    sent = by_flower(LocalDpMod(1.0, 2.0, 1.0, 1e-5), update, weights)
    found = protected(update, **LOCAL).tensors
    for name, weight in weights.items():
        torch.testing.assert_close(weight + found[name], sent[name], rtol=0, atol=1e-5)


def test_the_noise_is_normal_with_flowers_deviation():
    defense = FlowerMod(**LOCAL)
    assert defense.sigma == pytest.approx(2 * math.sqrt(2 * math.log(1.25e5)))
    noise = protected(update_of((20_000,), scale=1e-9), **LOCAL).tensors["t0"].double()
    assert kstest(noise.numpy(), norm(scale=defense.sigma).cdf).pvalue > 1e-3


def test_the_generators_of_others_are_left_as_they_were():
    np.random.seed(3)  # noqa: TID251  (what an app of somebody else does)
    before, state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = (protected(update_of((9,)), seed=seed, **LOCAL).tensors["t0"] for seed in (0, 0, 1))
    assert (np.random.get_state()[1] == before).all() and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


@settings(deadline=None, max_examples=40)
@given(
    epsilon=st.floats(0.1, 20),
    clip=st.floats(0.1, 10),
    sensitivity=st.floats(0.1, 10),
    rounds=st.integers(1, 50),
    neighbors=st.sampled_from(["replace", "add_remove"]),
)
def test_the_budget_is_the_exact_one_of_the_noise_and_the_clipping(epsilon, clip, sensitivity, rounds, neighbors):
    params = {**LOCAL, "epsilon": epsilon, "clipping_norm": clip, "sensitivity": sensitivity, "neighbors": neighbors}
    stated = FlowerMod(**params).budget(client_context(participation=rounds))
    sigma = sensitivity * math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
    mu = math.sqrt(rounds) * clip * (2 if neighbors == "replace" else 1) / sigma
    assert stated.epsilon == pytest.approx(gaussian_dp.gaussian_epsilon(mu, 1e-5), rel=1e-6, abs=1e-9)
    assert (stated.delta, stated.neighbors) == (1e-5, neighbors)
    if 0.1 < mu < 8:
        assert stated.epsilon == pytest.approx(eps_from_mu(mu=mu, delta=1e-5), rel=1e-3)


def dp_accounting():
    return pytest.importorskip("dp_accounting", reason="Google's accountant, which Flower's extra brings")


def test_the_budget_is_no_larger_than_that_of_googles_accountant():
    library = dp_accounting()
    from dp_accounting.rdp import RdpAccountant

    defense = FlowerMod(**LOCAL)
    accountant = RdpAccountant(neighboring_relation=library.NeighboringRelation.REPLACE_ONE)
    accountant.compose(library.SelfComposedDpEvent(library.GaussianDpEvent(defense.sigma / 2), 10))
    exact = defense.budget(client_context(participation=10)).epsilon
    assert exact <= accountant.get_epsilon(1e-5) <= 1.2 * exact


def stated(**params) -> str:
    return " ".join(FlowerMod(**{**LOCAL, **params}).cautions(nn.Linear(2, 2)))


def test_flowers_epsilon_is_called_false_where_it_is():
    assert "is true" not in stated()
    assert "0.01 is less than 2, by which" in stated(sensitivity=0.01)
    assert "is true" in stated(sensitivity=1.0, epsilon=2.0)
    assert "is true" not in stated(sensitivity=1.0, neighbors="add_remove")
    assert "10.4 is true" in stated(epsilon=10.0) and "below 1 alone" in stated(epsilon=10.0)
    assert "is true" not in stated(epsilon=8.5 - 0.1) and "is true" in stated(epsilon=8.5)


def test_rounds_add_up_and_clipping_alone_claims_nothing():
    defense = FlowerMod(**LOCAL)
    (text,) = defense.client_cautions(client_context(rounds=9))
    assert f"{gaussian_dp.gaussian_epsilon(3 * 2 / defense.sigma, 1e-5):.3g}" in text
    assert defense.client_cautions(client_context(rounds=1)) == ()
    clipping = FlowerMod(clipping_norm=2.0)
    assert clipping.budget(client_context()) is None and "no guarantee" in clipping.cautions(nn.Linear(2, 2))[0]


def test_an_update_of_zeros_gets_the_noise_alone_where_flower_fails():
    update = update_of((50,), (3, 4), scale=0.0)
    with pytest.raises(ZeroDivisionError):
        by_flower(LocalDpMod(1.0, 2.0, 1.0, 1e-5), update)
    sent = protected(update, **LOCAL)
    drawn = int(torch.randint(2**62, (), generator=torch_generator(0, "noise")))
    arrays = [tensor.numpy().copy() for tensor in update.tensors.values()]
    with seeded(drawn, "flower_mod"):
        add_gaussian_noise_inplace(arrays, FlowerMod(**LOCAL).sigma)
    assert all((found.numpy() == array).all() for found, array in zip(sent.tensors.values(), arrays, strict=True))
    assert not any(bool(tensor.any()) for tensor in protected(update).tensors.values())


def test_flower_sends_a_single_number_without_an_axis_as_it_is_so_such_models_are_refused():
    update = update_of((5,), (), scale=9.0)
    sent = by_flower(LocalDpMod(1.0, 2.0, 1.0, 1e-5), update)
    assert torch.equal(sent["t1"], update.tensors["t1"]) and not torch.equal(sent["t0"], update.tensors["t0"])
    model = nn.Linear(2, 2)
    FlowerMod(**LOCAL).check(model, client_context(), ())
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="sends scale, a single number"):
        FlowerMod(**LOCAL).check(model, client_context(), ())
    with pytest.raises(ValueError, match="without BatchNorm"):
        FlowerMod().check(nn.Sequential(nn.BatchNorm1d(3)), client_context(), ())


def test_an_update_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        protected(update_of((3,), scale=math.inf), **LOCAL)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"mod": "LocalDP"}, "mod: expected LocalDpMod or fixedclipping_mod"),
        ({"mod": "secaggplus_mod"}, "threat.sees: aggregate"),
        ({"mod": "secagg_mod"}, "threat.sees: aggregate"),
        ({"mod": "adaptiveclipping_mod"}, "DifferentialPrivacyClientSideAdaptiveClipping"),
        ({"mod": "message_size_mod"}, "Leave it out"),
        ({"clipping_norm": 0}, "clipping_norm: expected a number above 0"),
        ({"clipping_norm": math.inf}, "clipping_norm"),
        ({"epsilon": 1.0}, "epsilon: fixedclipping_mod adds no noise"),
        ({"mod": "LocalDpMod"}, "sensitivity: LocalDpMod has no default"),
        ({**LOCAL, "epsilon": None}, "epsilon: LocalDpMod has no default"),
        ({**LOCAL, "sensitivity": 0}, "use fixedclipping_mod"),
        ({**LOCAL, "epsilon": 0}, "epsilon: expected a number above 0"),
        ({**LOCAL, "delta": 1}, "delta: expected a number between 0 and 1"),
        ({**LOCAL, "delta": 0}, "delta: expected a number above 0"),
    ],
)
def test_what_would_promise_nothing_or_something_else_is_refused(params, text):
    with pytest.raises(ScenarioError) as caught:
        configure(FlowerMod, params, "defenses.0.params")
    assert text in str(caught.value)


def test_the_contract_is_kept_with_a_sensitivity_below_the_norm():
    check_defense(FlowerMod, model=tiny_model(), **{**LOCAL, "sensitivity": 0.5, "epsilon": 4.0})


def test_the_documented_epsilons_are_those_of_the_budget():
    document = (Path(__file__).parents[2] / "defenses" / "README.md").read_text()
    table = document.split("| `epsilon` stated | `sensitivity` stated |")[1].split("\n\n")[0]
    rows = [[float(cell) for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    assert len(rows) == 5
    for epsilon, sensitivity, *stated_epsilons in rows:
        defense = FlowerMod(**{**LOCAL, "epsilon": epsilon, "sensitivity": sensitivity})
        found = [defense.budget(client_context(participation=rounds)).epsilon for rounds in (1, 20)]
        assert stated_epsilons == pytest.approx(found, rel=5e-3)
