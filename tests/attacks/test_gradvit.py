import dataclasses

import pytest
import torch
from descent_cases import ONE_PATCH, against_own_and_other, attacked, grey, mean_color, observed, pictures, tiny
from fedsim_attacks.gradvit import GradViT
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.terms import Parts
from fedsim_attacks.update.target import read_target

WITHOUT_A_NETWORK = {"total_variation": 0.01, "patch": 0.01, "norm": 1e-4}
WITH_A_NETWORK = {**WITHOUT_A_NETWORK, "batch_norm": {"weight": 1e-3, "start": 0.5, "network": "efficientnet_lite0"}}


@pytest.mark.slow
def test_one_patch_is_found_without_a_network_and_another_update_does_not_show_it() -> None:
    own, other = pictures(0), pictures(50)
    right, wrong = against_own_and_other(GradViT(steps=150, priors=WITHOUT_A_NETWORK), tiny(ONE_PATCH), own, other)
    assert right >= mean_color(own) + 3
    assert wrong <= grey(own) + 1


def test_weights_switch_at_half_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks.matching.priors.load_prior", lambda *_: lambda pixels: pixels.mean())
    attack, seen = GradViT(positions=2.0, priors=WITH_A_NETWORK), observed(tiny(), pictures(0))
    assert seen.normalization is not None
    target = read_target(seen, (), torch.device("cpu"))
    known = Knowledge(seen, target, pictures(0).labels, seen.normalization, torch.Generator())
    parts = Parts(attack, known)
    matching, positions = parts.gradient_terms()
    (smooth, patch, norm, statistics), skipped = parts.image_terms()
    assert not skipped
    for progress, share in ((0.0, 1.0), (0.49, 1.0), (0.5, 0.5), (1.0, 0.5)):
        assert matching.weight(progress) == share * attack.matching
        assert positions.weight(progress) == share * 2.0
        assert statistics.weight(progress) == (1e-3 if progress >= 0.5 else 0)
        others = [term.weight(progress) for term in (smooth, patch, norm)]
        assert others == pytest.approx([0.01, 0.01, 1e-4])


def test_what_the_prior_did_not_see_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks.matching.priors.load_prior", lambda *_: lambda pixels: 1e6 + pixels.mean())
    attack = GradViT(steps=8, priors=WITH_A_NETWORK)
    trace = attacked(attack, observed(tiny(), pictures(0))).trace
    assert trace["step"] >= 4
    assert trace["loss"] == min(trace["curves"][0][4:]) > max(trace["curves"][0][:4])


def test_no_network_is_a_caution_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks.matching.priors.has_efficientnet_lite0", lambda: False)
    finding = attacked(GradViT(steps=2), observed(tiny(), pictures(0)))
    assert any("no network whose statistics" in caution for caution in finding.cautions)
    without = attacked(GradViT(steps=2, priors=WITHOUT_A_NETWORK), observed(tiny(), pictures(0)))
    assert not any("statistics" in caution for caution in without.cautions)


def test_it_follows_the_paper_in_distance_priors_and_schedule() -> None:
    attack = GradViT()
    assert (attack.distance, attack.optimizer, attack.schedule) == ("layer_l2", "adam", "cosine")
    assert (attack.second_phase, attack.matching_after, attack.learning_rate) == (0.5, 0.5, 0.1)
    assert [use.name for use in attack.prior_uses] == ["total_variation", "patch", "norm", "batch_norm"]
    assert attack.prior_uses[-1].start == 0.5 and not attack.positions


def test_the_published_steps_and_weights_are_one_word_and_what_else_is_set_stays() -> None:
    attack = GradViT(paper=True, learning_rate=0.05)
    assert (attack.steps, attack.learning_rate) == (120_000, 0.05)
    assert {use.name: use.weight for use in attack.prior_uses} == {
        "total_variation": 1e-4,
        "patch": 1e-4,
        "norm": 1e-6,
        "batch_norm": 0.1,
    }
    mine = GradViT(paper=True, steps=7, priors=WITH_A_NETWORK)
    assert (mine.steps, mine.priors) == (7, WITH_A_NETWORK)
    assert dataclasses.replace(attack, aware=False).steps == 120_000
