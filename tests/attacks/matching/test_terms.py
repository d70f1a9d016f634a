import dataclasses
from typing import Any

import pytest
import torch
from descent_cases import FOUR_PATCHES, brief, observed, pictures, tiny, with_update

from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(FOUR_PATCHES)


@pytest.fixture(scope="module")
def both() -> LabeledImages:
    return pictures(0, 50)


@pytest.fixture(scope="module")
def seen(model: torch.nn.Module, both: LabeledImages) -> Observation:
    return observed(model, both)


@pytest.mark.parametrize("distance", ["l2", "layer_l2"])
def test_lengths_are_not_compared_where_the_scale_of_the_gradient_is_unknown(distance: str, seen: Observation) -> None:
    tensors = {name: -0.01 * tensor for name, tensor in seen.update.tensors.items()}
    unknown = dataclasses.replace(seen, update=Update(1, 0, "delta", tensors, 2))
    with pytest.raises(AttackRefusedError, match=r"scale of this update is not known"):
        brief(unknown, distance=distance)
    for blind in ("cosine", "tensor_cosine", "sign"):
        assert brief(unknown, distance=blind).images is not None
    told = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    known = brief(dataclasses.replace(unknown, training=told), distance=distance)
    assert known.trace["loss"] == pytest.approx(brief(seen, distance=distance).trace["loss"], rel=1e-3)
    assert not any("local steps" in caution for caution in known.cautions)


def test_positions_without_a_gradient_are_refused(seen: Observation) -> None:
    zero = torch.zeros_like(seen.update.tensors["pos_embed"])
    for spoiled in (with_update(seen, pos_embed=None), with_update(seen, pos_embed=zero)):
        with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
            brief(spoiled, positions=1.0)
        assert brief(spoiled).images is not None


@pytest.mark.parametrize(
    "prior",
    [
        *({"priors": {name: 10.0}} for name in ("patch", "norm", "total_variation")),
        {"group": 10.0, "restarts": 2},
    ],
)
def test_a_prior_of_much_weight_has_its_way(prior: dict[str, Any], seen: Observation) -> None:
    params: dict[str, Any] = {"priors": {}, "optimizer": "adam", "steps": 15, "learning_rate": 0.05, **prior}
    curves = brief(seen, **params).trace["curves"]
    assert all(curve[-1] < 0.8 * curve[0] for curve in curves)


def test_restarts_are_drawn_to_what_they_agree_on(model: torch.nn.Module) -> None:
    seen, params = observed(model, pictures(0)), {"restarts": 2, "optimizer": "adam", "priors": {}}
    alone, lazy, registered = (
        brief(seen, steps=10, **params, **how).trace["curves"]
        for how in ({}, {"group": 5.0}, {"group": 5.0, "registered": True})
    )
    for drawn in (lazy, registered):
        # What the term adds is the distance of the restarts from each other, which falls faster than the rest.
        assert all(curve[0] > start[0] + 0.5 for curve, start in zip(drawn, alone, strict=True))
        assert all(curve[-1] < 0.7 * curve[0] for curve in drawn)


def test_head_inputs_recovered_from_the_classifier_are_a_prior(model: torch.nn.Module) -> None:
    own = pictures(0)
    curve = brief(observed(model, own), priors={"features": 1.0}, steps=15, optimizer="adam").trace["curves"][0]
    assert curve[-1] < 0.7 * curve[0]


def test_a_span_that_is_everything_is_refused_and_a_proper_one_is_a_prior(model: torch.nn.Module) -> None:
    own, many = pictures(0), pictures(*range(24))
    curve = brief(observed(model, own), priors={"row_space": 1.0}, steps=15, optimizer="adam").trace["curves"][0]
    assert curve[-1] < curve[0]
    with pytest.raises(AttackRefusedError, match="row_space: this update holds"):
        brief(observed(model, many), priors={"row_space": 1.0})


def test_statistics_without_a_network_are_doubted(seen: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks.matching.priors.has_efficientnet_lite0", lambda: False)
    finding = brief(seen, priors={"batch_norm": 0.1})
    assert any("no network whose statistics" in caution for caution in finding.cautions)
    assert (
        brief(
            seen, steps=4, priors={"batch_norm": {"weight": 0.1, "start": 0.5}}, second_phase=0.5, matching_after=0.5
        ).trace["step"]
        >= 2
    )
    assert not any("statistics" in caution for caution in brief(seen).cautions)
