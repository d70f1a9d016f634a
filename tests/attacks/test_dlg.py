import pytest
from descent_cases import (
    ONE_PATCH,
    against_own_and_other,
    attacked,
    grey,
    mean_color,
    mean_decibels,
    observed,
    pictures,
    tiny,
)
from fedsim_attacks.dlg import DLG

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Update


def test_images_and_labels_are_found_together_in_one_patch_and_not_in_another_update() -> None:
    own, other, model = pictures(0), pictures(50), tiny(ONE_PATCH)
    finding = attacked(DLG(steps=100), observed(model, own, labels=None))
    assert mean_decibels(finding.images, own) >= 45
    assert finding.labels is not None and finding.labels.tolist() == own.labels.tolist()
    wrong = attacked(DLG(steps=30), observed(model, other, labels=None))
    assert mean_decibels(wrong.images, own) <= grey(own) + 1


@pytest.mark.slow
def test_four_patches_are_beyond_it() -> None:
    right, wrong = against_own_and_other(DLG(steps=40), tiny(), pictures(0), pictures(50))
    assert max(right, wrong) <= mean_color(pictures(0)) + 1


def test_granted_labels_are_taken() -> None:
    own = pictures(0, 50)
    finding = attacked(DLG(steps=2), observed(tiny(), own))
    assert finding.labels is not None and finding.labels.tolist() == own.labels.tolist()


def test_it_follows_the_paper_in_distance_optimizer_and_start() -> None:
    attack = DLG()
    assert (attack.distance, attack.optimizer, attack.learning_rate, attack.initial_scale) == ("l2", "lbfgs", 1.0, 1.0)
    assert attack.optimize_labels and not attack.priors


def test_an_update_without_its_scale_is_refused() -> None:
    seen = observed(tiny(), pictures(0))
    delta = Update(1, 0, "delta", {name: -0.01 * tensor for name, tensor in seen.update.tensors.items()}, 1)
    with pytest.raises(AttackRefusedError, match=r"scale of this update is not known"):
        attacked(DLG(steps=1), observed(tiny(), pictures(0), update=delta))
