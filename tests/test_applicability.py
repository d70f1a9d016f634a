from dataclasses import replace

import pytest

from fedsim.applicability import Applicability, Setting, fault, together

PLAIN = Setting(
    pictures=1,
    batch_size=1,
    kind="gradient",
    steps=1,
    optimizer="sgd",
    has_soft_labels=False,
    model=frozenset({"linear classifier"}),
)


def unchecked(**facts):
    """Return an Applicability of facts that no type checker has seen, as a plug-in may state them."""
    made = Applicability()
    for name, value in facts.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize(
    ("asked", "changes", "says"),
    [
        (Applicability(pictures=1), {"pictures": 500}, "made for 1 image in an update, and here are 500"),
        (
            Applicability(pictures=2),
            {"pictures": None},
            "made for 2 images in an update, and here nobody knows how many",
        ),
        (Applicability(batch_size=4), {"batch_size": 8}, "made for 4 images in a local step, and here are 8"),
        (Applicability(steps=1), {"steps": 80}, "made for 1 local step in an update, and here are 80"),
        (Applicability(kinds=("gradient",)), {"kind": "delta"}, "reads a gradient, and the client shares a delta"),
        (Applicability(), {"optimizer": "adamw"}, "made for local sgd, and the client uses adamw"),
        (Applicability(soft_labels=False), {"has_soft_labels": True}, "made for hard labels"),
        (Applicability(model=("patch projection",)), {}, "needs a model with a patch projection"),
    ],
)
def test_each_limit_is_told_with_what_is_given(asked, changes, says):
    (obstacle,) = asked.obstacles(replace(PLAIN, **changes))
    assert says in obstacle


def test_what_is_frozen_is_told_apart_from_what_a_model_lacks():
    asked = Applicability(model=("linear classifier", "patch projection"))
    setting = replace(PLAIN, model=frozenset(), frozen=frozenset({"patch projection"}))
    assert asked.obstacles(setting) == (
        "it needs a model with a linear classifier",
        "it reads the gradient of the patch projection, which is frozen here, so that none is sent",
    )


def test_no_attack_is_made_for_weights_that_the_client_keeps_to_itself():
    (obstacle,) = Applicability().obstacles(replace(PLAIN, has_own_weights=True))
    assert "the client trained parameters of its own that only it knows" in obstacle
    assert together([PLAIN, replace(PLAIN, has_own_weights=True)]).has_own_weights
    assert not together([PLAIN, PLAIN]).has_own_weights


def test_no_attack_is_made_for_a_loss_of_the_client_s_own(tiny_plan):
    (obstacle,) = Applicability().obstacles(replace(PLAIN, has_own_loss=True))
    assert "the client trains on one of its own, without labels" in obstacle
    assert together([PLAIN, replace(PLAIN, has_own_loss=True)]).has_own_loss and not together([PLAIN]).has_own_loss
    plan = tiny_plan(defenses=[{"name": "fedsim_defenses.mimir:MIMIR", "clients": [1]}])
    assert [plan.setting_of(client, 1).has_own_loss for client in (0, 1)] == [False, True]


def test_no_attack_is_made_for_what_earlier_rounds_held_back(tiny_plan):
    (obstacle,) = Applicability().obstacles(replace(PLAIN, carries_over=True))
    assert "held back in earlier rounds" in obstacle
    assert together([PLAIN, replace(PLAIN, carries_over=True)]).carries_over and not together([PLAIN]).carries_over
    feeding = {"name": "fedsim_defenses.pruning:Pruning", "clients": [1], "params": {"error_feedback": True}}
    plan = tiny_plan(defenses=[feeding])
    carried = {(client, round): plan.setting_of(client, round).carries_over for client in (0, 1) for round in (1, 2)}
    assert carried == {(0, 1): False, (0, 2): False, (1, 1): False, (1, 2): True}, (
        "nothing is held back before the first"
    )


def test_an_update_within_all_limits_meets_no_obstacle():
    asked = Applicability(
        pictures=1, batch_size=1, kinds=("gradient",), steps=1, soft_labels=False, model=("linear classifier",)
    )
    assert asked.obstacles(PLAIN) == ()
    assert Applicability(optimizers=("sgd", "adamw")).obstacles(replace(PLAIN, optimizer="adamw", pictures=999)) == ()


def test_all_obstacles_are_told_at_once():
    asked = Applicability(pictures=1, steps=1, soft_labels=False)
    assert len(asked.obstacles(replace(PLAIN, pictures=9, steps=2, has_soft_labels=True))) == 3


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"pictures": 1}, "expected an Applicability or None"),
        (Applicability, "expected an Applicability or None"),
        (unchecked(pictures="1"), "pictures: expected None or a whole number from 1"),
        (unchecked(pictures=0), "pictures: expected None or a whole number from 1"),
        (unchecked(batch_size=True), "batch_size: expected None or a whole number from 1"),
        (unchecked(steps=1.0), "steps: expected None or a whole number from 1"),
        (unchecked(kinds="gradient"), "kinds: expected a tuple out of gradient, delta"),
        (unchecked(kinds=("gradients",)), "kinds: 'gradients' is none of gradient, delta"),
        (unchecked(kinds=()), "kinds: expected at least one of"),
        (unchecked(optimizers=("adam",)), "optimizers: 'adam' is none of sgd, adamw"),
        (unchecked(model=("a linear head",)), "model: 'a linear head' is none of linear classifier"),
        (unchecked(model=["linear classifier"]), "model: expected a tuple"),
        (unchecked(soft_labels=1), "soft_labels: expected true or false"),
    ],
)
def test_a_statement_that_nobody_can_read_is_a_fault_of_the_plug_in(stated, says):
    assert says in fault(stated)


def test_a_sound_statement_or_none_is_no_fault():
    assert fault(None) is None
    assert fault(Applicability(pictures=1, steps=3, kinds=("delta",), model=("patch projection",))) is None
