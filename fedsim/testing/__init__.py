"""Conformance kit: checks that anybody's test-suite can run on an attack, a defense or an evaluator. Needs no test framework.

    from fedsim.testing import check_attack, check_defense

    def test_my_attack_keeps_the_contract():
        check_attack(MyAttack)
        check_attack(MyAttack, variant="strong")

    def test_my_defense_keeps_the_contract():
        check_defense(MyDefense, strength=0.5)

Each raises one AssertionError that says all that is wrong and what the simulator relies on. Keeping the contract does not mean
that an attack works; that takes a positive control, which is three lines (`fedsim.metrics` has the scores):

    images = random_images(generator, count=4)
    finding = MyAttack().run(observation(images), generator)
    assert label_recall(finding.labels, pictures.labels) == 1.0

For a defense, `make_update(small_model(), images)` is an update to protect, `client_context()` is what its hooks get, and
`observation(images, update=...)` shows an attack what it leaves.
An attack with another scope than one update is shown `observation_of([observation(...), ...])`.
"""

from fedsim.testing.attack import check_attack
from fedsim.testing.defense import check_defense
from fedsim.testing.evaluator import check_evaluator
from fedsim.testing.fixtures import ALL_GRANTS, client_context, make_update, observation, random_images, small_model
from fedsim.views import observation_of

__all__ = [
    "check_attack",
    "check_defense",
    "check_evaluator",
    "client_context",
    "observation",
    "observation_of",
    "random_images",
    "make_update",
    "small_model",
    "ALL_GRANTS",
]
