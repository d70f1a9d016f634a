import math
from typing import Any

import pytest
import torch
from descent_cases import brief, observed, pictures, tiny
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.objective import Candidate
from fedsim_attacks.matching.priors import PRIORS, Penalty, read_priors

from fedsim import plugins
from fedsim.errors import ScenarioError
from fedsim.exchange import Observation


def darkness(known: Knowledge, *, power: float = 1.0, is_squared: bool = False) -> Penalty:
    """A prior of another module."""
    assert known.labels.shape == (1,)

    def value(candidate: Candidate) -> torch.Tensor:
        return candidate.pixels.mean() ** (2 if is_squared else power)

    return value


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRIORS.own, "darkness", darkness)


@pytest.fixture(scope="module")
def seen() -> Observation:
    return observed(tiny(), pictures(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patches": 1.0}, "priors.patches: no prior 'patches'. Did you mean 'patch'? Known: total_variation, patch, "),
        ({"patch": -0.1}, "priors.patch: expected a number of at least 0, got -0.1."),
        ({"patch": True}, "priors.patch: expected a number, got true."),
        ({"patch": "much"}, "priors.patch: expected a number, got 'much'."),
        ({"patch": {"start": 0.5}}, "priors.patch.weight: missing; a prior has a weight."),
        (
            {"patch": {"weight": 1.0, "start": 1.5}},
            "priors.patch.start: expected a number of at least 0 and at most 1.0",
        ),
        ({"patch": {"weight": 1.0, "end": 2.0}}, "priors.patch.end: expected a number of at least 0 and at most 1.0"),
        ({"patch": {"weight": 1.0, "end": 0.0}}, "priors.patch.end: expected a number above 0"),
        ({"patch": {"weight": 1.0, "hold": 1.1}}, "priors.patch.hold: expected"),
        ({"patch": {"weight": 1.0, "network": "x"}}, "priors.patch.network: unknown parameter. Allowed: weight, end,"),
        ({"batch_norm": {"weight": 1.0, "networks": "x"}}, "Did you mean 'network'?"),
    ],
)
def test_priors_that_mean_nothing_are_refused_with_their_place(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        GradientMatching(priors=given)
    assert message in str(refusal.value)
    with pytest.raises(ScenarioError) as error:
        plugins.configure(GradientMatching, {"priors": given}, "attacks.0.params")
    assert str(error.value).startswith("attacks.0.params.priors.") and message.removeprefix("priors.") in str(
        error.value
    )


@pytest.mark.parametrize("value", [math.inf, math.nan, [0.1]])
def test_weights_that_are_no_numbers_are_refused(value: Any) -> None:
    with pytest.raises(ScenarioError, match=r"^attacks\.0\.params\.priors\.patch: expected .* a number .*, got "):
        plugins.configure(GradientMatching, {"priors": {"patch": value}}, "attacks.0.params")
    if isinstance(value, float):
        with pytest.raises(ValueError, match=r"^priors\.patch: expected a finite number"):
            GradientMatching(priors={"patch": value})


def test_weights_move_hold_and_start_as_a_scenario_says() -> None:
    moving, late, plain = read_priors(
        {
            "total_variation": {"weight": 0.4, "end": 0.1, "hold": 0.5},
            "patch": {"weight": "1e-2", "start": 0.25},
            "norm": "1e-4",
        }
    )
    assert [moving.scheduled()(share) for share in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([0.4, 0.4, 0.2, 0.1])
    assert [late.scheduled()(share) for share in (0.0, 0.24, 0.25, 1.0)] == [0.0, 0.0, 0.01, 0.01]
    assert [plain.scheduled()(share) for share in (0.0, 1.0)] == [1e-4, 1e-4]


def test_an_attack_keeps_priors_as_short_as_they_can_be_written_without_those_of_weight_zero() -> None:
    given = {"norm": {"weight": "0.5"}, "patch": 0, "total_variation": {"weight": 1, "end": "1e-2", "hold": 0.3}}
    attack = GradientMatching(priors=given)
    assert attack.priors == {"norm": 0.5, "total_variation": {"weight": 1.0, "end": 0.01}}
    assert GradientMatching(priors=attack.priors) == attack


def test_a_prior_of_another_module_has_its_way_with_parameters_of_its_type(
    third_party: None, seen: Observation
) -> None:
    def mean(**prior: Any) -> float:
        found = brief(
            seen, steps=15, optimizer="adam", priors={"darkness": {"weight": 100.0, **prior}} if prior else {}
        )
        assert found.images is not None
        return float(found.images.mean())

    assert mean(power="2") < mean() - 0.1 and mean(is_squared=True) < mean() - 0.1
    with pytest.raises(ValueError, match=r"priors\.darkness\.is_squared: expected true or false"):
        GradientMatching(priors={"darkness": {"weight": 1.0, "is_squared": "yes"}})


def test_a_prior_may_be_named_by_its_module(seen: Observation) -> None:
    target = "fedsim_attacks.matching.priors:norm"
    named, known = (brief(seen, priors={name: 1.0}) for name in (target, "norm"))
    assert named.trace["loss"] == known.trace["loss"]
