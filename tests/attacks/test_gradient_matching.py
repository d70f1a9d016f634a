import pytest
from descent_cases import ONE_PATCH, attacked, grey, mean_color, mean_decibels, observed, pictures, tiny
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.distances import DISTANCES

from fedsim import models


# With more than one patch plain matching stays near the mean color, which is what other attacks are for.
def test_plain_matching_recovers_a_image_of_one_patch_and_another_update_does_not() -> None:
    attack, own, other, model = (
        GradientMatching(steps=120, priors={"total_variation": 0.001}),
        pictures(0),
        pictures(50),
        tiny(ONE_PATCH),
    )
    right, wrong = (
        mean_decibels(attacked(attack, observed(model, batch, labels=None)).images, own) for batch in (own, other)
    )
    assert right >= 20
    assert right >= wrong + 3
    assert right >= mean_color(own) + 3
    assert wrong <= grey(own) + 1


@pytest.mark.parametrize("distance", sorted(set(DISTANCES.own) - {"sign"}))
def test_a_true_image_has_no_distance(distance: str) -> None:
    both, model = pictures(0, 50), tiny(ONE_PATCH)
    seen = observed(model, both)
    images = models.normalization(model).normalize(both.images)
    gradient = models.gradient_of(seen.model(), images, both.labels)
    assert float(DISTANCES.own[distance](list(gradient.values()), list(seen.update.tensors.values()))) < 1e-5


def test_every_part_but_the_plain_ones_is_off() -> None:
    attack = GradientMatching()
    assert attack.priors == {"total_variation": 0.1}
    assert not any((attack.positions, attack.group, attack.noise))
    assert (attack.distance, attack.refinement, attack.restarts, attack.resolution) == ("cosine", "none", 1, 1)
