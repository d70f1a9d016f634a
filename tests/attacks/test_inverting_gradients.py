import pytest
from descent_cases import FOUR_PATCHES, ONE_PATCH, against_own_and_other, grey, mean_color, pictures, tiny
from fedsim_attacks.inverting_gradients import InvertingGradients


def test_one_patch_is_found_and_another_update_does_not_show_it() -> None:
    own, other = pictures(0), pictures(50)
    right, wrong = against_own_and_other(InvertingGradients(steps=100), tiny(ONE_PATCH), own, other)
    assert right >= mean_color(own) + 8
    assert wrong <= grey(own) + 1


@pytest.mark.slow
def test_four_patches_are_beyond_it() -> None:
    own, other = pictures(0), pictures(50)
    right, wrong = against_own_and_other(InvertingGradients(steps=60), tiny(FOUR_PATCHES), own, other)
    assert right <= mean_color(own) + 1
    assert wrong <= grey(own) + 1


def test_it_follows_the_paper_in_distance_optimizer_and_schedule() -> None:
    attack = InvertingGradients()
    assert (attack.distance, attack.optimizer, attack.schedule) == ("cosine", "signed_adam", "step")
    assert (attack.learning_rate, attack.priors) == (0.1, {"total_variation": 0.01})
    assert not attack.positions
