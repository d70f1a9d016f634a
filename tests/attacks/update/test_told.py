"""What the grant `defenses` tells, and what attacks say that do not model it."""

import dataclasses

import pytest
import torch
from descent_cases import brief, observed, pictures, tiny
from fedsim_attacks.head_features import HeadFeatures
from fedsim_attacks.label_count import LabelCount
from fedsim_attacks.patch_embedding import PatchEmbedding
from fedsim_attacks.soft_labels import SoftLabels
from fedsim_attacks.update.gradient import mean_gradient
from fedsim_attacks.update.told import COLUMNS, DROPPED, SIGNS, told_cautions, told_factor
from fedsim_defenses.clipping import Clipping
from fedsim_defenses.layer_noise import LayerNoise
from fedsim_defenses.pruning import Pruning
from fedsim_defenses.random_sparsification import RandomSparsification
from fedsim_defenses.sign import Sign
from fedsim_defenses.soteria import Soteria
from vit_cases import gradient

from fedsim.attack import Attack
from fedsim.defense import Defense, knowledge_of
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation, TrainingKnowledge, Update
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

ONE, TWO = pictures(0), pictures(0, 50)
MODEL = tiny()
HALF = RandomSparsification(keep=0.5, rescale=True)


def seen_of(*defenses: Defense, batch=ONE, **granted) -> Observation:
    update = gradient(MODEL, batch)
    for defense in defenses:
        update = defense.protect_update(update, client_context(), torch_generator(0, "test"))
    told = tuple(knowledge_of(type(defense).__name__, defense) for defense in defenses)
    return observed(MODEL, batch, update, **{"defenses": told, **granted})


def run(attack: Attack, seen: Observation) -> Finding:
    return attack.run(seen, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("defenses", "factor"),
    [
        ((), 1.0),
        ((Pruning(), Clipping()), 1.0),
        ((HALF,), 2.0),
        ((HALF, HALF), 4.0),
        ((HALF, Clipping(rate=0.1)), None),
        ((Sign(),), None),
    ],
)
def test_the_factor_is_the_product_of_those_that_are_known(defenses: tuple[Defense, ...], factor: float | None) -> None:
    seen = seen_of(*defenses)
    assert told_factor(seen) == factor
    assert told_factor(dataclasses.replace(seen, defenses=None)) == 1.0
    mean = dataclasses.replace(seen, update=dataclasses.replace(seen.update, client=-1))
    assert told_factor(mean) == (1.0 if factor == 1.0 else None)


def test_a_known_factor_is_divided_out_of_the_gradient() -> None:
    seen, plain = seen_of(HALF), gradient(MODEL, ONE).tensors["head.weight"].double()
    found = mean_gradient(seen, ["head.weight"])
    kept = found.tensors["head.weight"] != 0
    assert found.is_scaled and bool(kept.any()) and not bool(kept.all())
    torch.testing.assert_close(found.tensors["head.weight"][kept], plain[kept], rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_an_unknown_factor_leaves_the_scale_and_the_weight_decay_open(weight_decay: float) -> None:
    recipe = TrainingKnowledge("sgd", 0.1, 0.0, weight_decay, 1, None)
    delta = Update(1, 0, "delta", {n: -0.1 * t for n, t in gradient(MODEL, ONE).tensors.items()}, 1)
    told = (knowledge_of("clipping", Clipping(rate=0.1)),)
    found = mean_gradient(observed(MODEL, ONE, delta, training=recipe, defenses=told), ["head.weight"])
    assert not found.is_scaled and found.is_decay_known == (weight_decay == 0.0)
    assert not mean_gradient(seen_of(Clipping(rate=0.1)), ["head.weight"]).is_scaled


def test_a_distance_between_lengths_is_refused_where_signs_are_all_there_is() -> None:
    with pytest.raises(AttackRefusedError, match="scale of this update is not known"):
        brief(seen_of(Sign()), distance="l2")
    assert brief(seen_of(Sign()), distance="tensor_cosine").trace["aware"] == ["signs"]


@pytest.mark.parametrize("attack", [HeadFeatures(), SoftLabels()])
@pytest.mark.parametrize("defense", [Pruning(), RandomSparsification(), Sign(), Soteria()])
def test_head_inputs_are_not_claimed_where_the_classifiers_gradient_is_known_to_lack_them(attack, defense) -> None:
    with pytest.raises(AttackRefusedError, match="known to drop entries"):
        run(attack, seen_of(defense))


@pytest.mark.parametrize(
    ("defense", "caution"),
    [
        (Pruning(keep=0.9), DROPPED),
        (Sign(), SIGNS),
        (LayerNoise(), "noise to parts"),
        (Sign(error_feedback=True), "held back"),
    ],
)
def test_what_is_not_modeled_is_said(defense: Defense, caution: str) -> None:
    for attack in (LabelCount(), PatchEmbedding()):
        assert any(caution in said for said in run(attack, seen_of(defense)).cautions)
    assert not any(caution in said for said in run(LabelCount(), seen_of(defense, defenses=None)).cautions)


def test_hidden_columns_are_a_doubt_of_counts_that_read_the_weights_alone() -> None:
    # The effect of Soteria is told; what was sent does not matter to the caution.
    assert COLUMNS not in run(LabelCount(), seen_of(Soteria())).cautions
    assert COLUMNS in run(LabelCount(), seen_of(Soteria(), batch=TWO)).cautions


def test_an_attack_that_models_zeros_and_signs_does_not_doubt_them() -> None:
    seen = seen_of(Pruning(), Sign())
    assert told_cautions(seen) == (DROPPED, SIGNS) and told_cautions(seen, entries=False) == ()
    assert told_cautions(dataclasses.replace(seen, defenses=None)) == ()


def test_the_label_of_one_image_is_read_off_signs_and_off_the_largest_entries() -> None:
    for defense in (Sign(), Pruning()):
        found = run(LabelCount(), seen_of(defense)).labels
        assert found is not None and torch.equal(found, ONE.labels)
