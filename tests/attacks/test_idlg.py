import pytest
from descent_cases import ONE_PATCH, attacked, grey, mean_decibels, observed, pictures, tiny
from fedsim_attacks.idlg import IDLG


@pytest.mark.slow
def test_one_patch_is_found_with_a_label_that_is_counted_and_another_update_does_not_show_it() -> None:
    own, other, model = pictures(0), pictures(50), tiny(ONE_PATCH)
    finding = attacked(IDLG(steps=100), observed(model, own, labels=None))
    assert mean_decibels(finding.images, own) >= 45
    assert finding.labels is not None and finding.labels.tolist() == own.labels.tolist()
    wrong = attacked(IDLG(steps=30), observed(model, other, labels=None))
    assert mean_decibels(wrong.images, own) <= grey(own) + 1


def test_it_is_dlg_with_fixed_labels() -> None:
    attack = IDLG()
    assert (attack.distance, attack.optimizer, attack.initial_scale) == ("l2", "lbfgs", 1.0)
    assert not attack.optimize_labels and not attack.priors


def test_the_label_is_counted_and_granted_ones_are_taken() -> None:
    own, both, attack = pictures(0), pictures(0, 50), IDLG(steps=1)
    for batch, granted in ((own, False), (both, True)):
        labels = attacked(attack, observed(tiny(), batch, labels=batch.labels if granted else None)).labels
        assert labels is not None and labels.tolist() == batch.labels.tolist()
