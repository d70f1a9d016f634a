from descent_cases import ONE_PATCH, attacked, grey, mean_decibels, observed, pictures, tiny
from fedsim_attacks.idlg import IDLG


def test_one_patch_is_found_with_a_label_that_is_counted_and_another_update_does_not_show_it() -> None:
    own, other, model = pictures(0), pictures(50), tiny(ONE_PATCH)
    finding = attacked(IDLG(steps=80), observed(model, own, labels=None))
    assert mean_decibels(finding.images, own) >= 45
    assert finding.labels is not None and finding.labels.tolist() == own.labels.tolist()
    wrong = attacked(IDLG(steps=40), observed(model, other, labels=None))
    assert mean_decibels(wrong.images, own) <= grey(own) + 1


def test_it_is_dlg_with_fixed_labels() -> None:
    attack = IDLG()
    assert (attack.distance, attack.optimizer, attack.initial_scale) == ("l2", "lbfgs", 1.0)
    assert not attack.optimize_labels and not attack.total_variation
