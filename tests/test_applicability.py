from dataclasses import replace

import pytest

from fedsim.applicability import Applicability, Setting

PLAIN = Setting(
    pictures=1,
    batch_size=1,
    kind="gradient",
    steps=1,
    optimizer="sgd",
    has_soft_labels=False,
    model=frozenset({"linear classifier"}),
)


@pytest.mark.parametrize(
    ("asked", "changes", "says"),
    [
        (Applicability(pictures=1), {"pictures": 500}, "made for 1 picture in an update, and here are 500"),
        (
            Applicability(pictures=2),
            {"pictures": None},
            "made for 2 pictures in an update, and here nobody knows how many",
        ),
        (Applicability(batch_size=4), {"batch_size": 8}, "made for 4 pictures in a local step, and here are 8"),
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


def test_an_update_within_all_limits_meets_no_obstacle():
    asked = Applicability(
        pictures=1, batch_size=1, kinds=("gradient",), steps=1, soft_labels=False, model=("linear classifier",)
    )
    assert asked.obstacles(PLAIN) == ()
    assert Applicability(optimizers=("sgd", "adamw")).obstacles(replace(PLAIN, optimizer="adamw", pictures=999)) == ()


def test_all_obstacles_are_told_at_once():
    asked = Applicability(pictures=1, steps=1, soft_labels=False)
    assert len(asked.obstacles(replace(PLAIN, pictures=9, steps=2, has_soft_labels=True))) == 3
