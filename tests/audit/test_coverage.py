"""What `fedsim check` says of attacks that will prove nothing, before anything is trained."""

import pytest

from fedsim.audit import coverage
from fedsim.planning import preparation as planning
from fedsim.scenario import parse


def gaps(**changes):
    raw = {
        "engine": "inline",
        "data": {"name": "shapes", "samples": 40, "test_samples": 8, "auxiliary_samples": 8},
        "model": "vit_nano",
        "federation": {"clients": 2, "rounds": 2},
        "attacks": ["patch_embedding"],
    }
    return coverage.gaps(planning.make(parse(raw | changes, "scenario")))


EPOCHS = {"batch_size": 8, "shares": "delta", "local_epochs": 2}


def test_an_attack_that_is_made_for_the_updates_leaves_no_gap():
    assert gaps() == []


def test_an_attack_on_too_many_images_is_told_with_those_that_are_made_for_them():
    (gap,) = gaps(training=EPOCHS)
    assert (gap.attack, gap.clients) == ("patch_embedding", (0, 1))
    assert gap.reason == "it is made for 1 image in an update, and here are 20"
    assert {"token_matching", "gradvit"} <= set(gap.instead)
    assert not {"april", "blind_guess", "label_count", "patch_embedding", "regularized_newton"} & set(gap.instead)


def test_the_grants_that_another_attack_lacks_are_named():
    (gap,) = gaps(training=EPOCHS, threat={"grants": ["normalization"]})
    assert "token_matching (grant batch_size)" in gap.instead


def test_only_the_clients_whose_updates_are_too_large_are_named():
    (gap,) = gaps(
        training=EPOCHS | {"batch_size": 1},
        data={"name": "shapes", "samples": 40, "auxiliary_samples": 8, "partition": {"name": "sizes", "sizes": [1, 9]}},
    )
    assert (gap.clients, gap.reason) == ((1,), "it is made for 1 image in an update, and here are 9")


def test_a_client_that_trains_with_adamw_is_beyond_every_attack_on_gradients():
    (gap,) = gaps(training={"shares": "delta", "optimizer": "adamw"}, attacks=["label_count"])
    assert gap.reason == "it is made for local sgd, and the client uses adamw"
    assert gap.instead == ()


def test_an_attack_that_reads_what_is_frozen_is_told_with_the_one_that_reads_what_is_sent():
    (gap,) = gaps(training={"trainable": ["head.*"]})
    assert gap.reason.startswith("it reads the gradient of the learned position embedding, which is frozen here")
    assert "regularized_newton" in gap.instead and "token_matching" not in gap.instead
    assert gaps(training={"trainable": ["head.*"]}, attacks=["label_count"]) == []


def test_a_client_that_keeps_weights_of_its_own_is_beyond_every_attack():
    keeping = {"name": "partial_sharing", "clients": [1], "params": {"hidden": ["cls_token"], "keeps": "local"}}
    (gap,) = gaps(defenses=[keeping], attacks=["label_count"])
    assert (gap.clients, gap.instead) == ((1,), ())
    assert "parameters of its own that only it knows" in gap.reason
    assert gaps(defenses=[keeping], attacks=["label_count"], federation={"clients": 2, "rounds": 1}) == []


def test_a_control_leaves_no_gap():
    assert gaps(attacks=["blind_guess"], training=EPOCHS) == []


@pytest.mark.parametrize(
    ("multiplier", "delta", "is_told"),
    [(0.0, 1e-5, False), (0.01, 1e-5, True), (100.0, 1e-5, False), (0.3, 0.999999, True), (100.0, 0.01, True)],
)
def test_noise_without_a_meaningful_budget_is_told_for_every_attack(multiplier, delta, is_told):
    params = {"clip_norm": 1.0, "noise_multiplier": multiplier, "delta": delta}
    noise = {"name": "dp_noise", "clients": [1], "params": params}
    found = gaps(defenses=[noise])
    assert [(gap.attack, gap.clients) for gap in found] == ([(None, (1,))] if is_told else [])
    assert all("which is no guarantee" in gap.reason for gap in found)


@pytest.mark.parametrize(
    "params", [{}, {"hook": "batch"}, {"hook": "step", "source": "own"}, {"hook": "step", "first": 2}]
)
def test_a_defense_that_declares_nothing_is_known_as_noise_by_what_it_does(stubs, params):
    (gap,) = gaps(defenses=[{"name": "stubs:Shaken", "clients": [0], "params": params}])
    assert gap.clients == (0,)
    assert "no finite epsilon" in gap.reason
    assert gaps(defenses=[{"name": "partial_sharing", "clients": [0], "params": {"hidden": ["head.*"]}}]) == []
