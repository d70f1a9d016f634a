import pytest
from descent_cases import against_own_and_other, attacked, grey, mean_color, observed, pictures, tiny
from fedsim_attacks.token_matching import TokenMatching

from fedsim.errors import AttackRefusedError


@pytest.mark.slow
def test_two_images_are_found_without_the_second_stage() -> None:
    own, other = pictures(0, 50), pictures(20, 7)
    right, wrong = against_own_and_other(
        TokenMatching(steps=150, learning_rate=0.1, refinement="none"), tiny(), own, other
    )
    assert right >= mean_color(own) + 3
    assert wrong <= grey(own) + 1


def test_two_images_are_found_together_with_little_left_hidden_and_another_update_does_not_show_them() -> None:
    own, other = pictures(0, 50), pictures(20, 7)
    attack = TokenMatching(steps=60, learning_rate=0.1, refinement_steps=10)
    right, wrong = against_own_and_other(attack, tiny(), own, other)
    assert right >= 35
    assert wrong <= grey(own) + 1


def test_smoothness_falls_on_the_way() -> None:
    attack = TokenMatching()
    smoothness = attack.priors["total_variation"]
    assert smoothness["end"] < smoothness["weight"]
    assert attack.positions and attack.per_token


def test_positions_that_are_not_shared_are_refused() -> None:
    seen = observed(tiny(), pictures(0))
    kept = {name: tensor for name, tensor in seen.update.tensors.items() if name != "pos_embed"}
    update = type(seen.update)(1, 0, "gradient", kept, 1)
    with pytest.raises(AttackRefusedError, match="pos_embed is zero or missing"):
        attacked(TokenMatching(steps=1), observed(tiny(), pictures(0), update=update))
