import pytest
import torch
from descent_cases import ONE_PATCH, against_own_and_other, attacked, grey, mean_color, observed, pictures, tiny
from fedsim_attacks.grad_inversion import GradInversion

from fedsim.exchange import LabeledImages


@pytest.mark.slow
def test_one_patch_is_found_by_matching_and_agreement_and_another_update_does_not_show_it() -> None:
    own, other = pictures(0), pictures(50)
    attack = GradInversion(steps=150, priors={"total_variation": 0.01, "norm": 1e-4}, restarts=2)
    right, wrong = against_own_and_other(attack, tiny(ONE_PATCH), own, other)
    assert right >= mean_color(own) + 3
    assert wrong <= grey(own) + 1


def test_it_follows_the_paper_in_distance_agreement_and_noise() -> None:
    attack = GradInversion()
    assert (attack.distance, attack.optimizer, attack.schedule) == ("layer_l2", "adam", "cosine")
    assert attack.registered and attack.group and attack.restarts > 1
    assert attack.warm_up and attack.noise
    assert [use.name for use in attack.prior_uses] == ["total_variation", "norm", "batch_norm"]


def test_statistics_are_those_of_a_network_trained_on_the_auxiliary_data(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def load(network: str, *_: object) -> object:
        used.append(network)
        return lambda pixels: pixels.square().mean()

    monkeypatch.setattr("fedsim_attacks.matching.priors.load_prior", load)
    own = pictures(0)
    labeled = LabeledImages(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8))
    told = attacked(GradInversion(steps=1, restarts=2), observed(tiny(), own, auxiliary_data=labeled))
    assert used == ["auxiliary"]
    assert not any("statistics" in caution for caution in told.cautions)
    attacked(
        GradInversion(steps=1, restarts=2, priors={"batch_norm": {"weight": 1e-3, "network": "efficientnet_lite0"}}),
        observed(tiny(), own),
    )
    assert used == ["auxiliary", "efficientnet_lite0"]


def test_no_network_is_a_caution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim_attacks.matching.priors.has_efficientnet_lite0", lambda: False)
    finding = attacked(GradInversion(steps=1, restarts=2), observed(tiny(), pictures(0)))
    assert any("no network whose statistics" in caution for caution in finding.cautions)
