import dataclasses

import pytest
import torch
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_example_plugins.class_accuracy import ClassAccuracy
from fedsim_example_plugins.error_feedback import ErrorFeedback
from fedsim_example_plugins.round_labels import RoundLabels
from fedsim_example_plugins.sign_of_bias import SignOfBias
from fedsim_example_plugins.top_k import TopK
from torch import nn

from fedsim.errors import AttackRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Normalization, Update
from fedsim.source import Pool
from fedsim.testing import (
    check_attack,
    check_defense,
    check_evaluator,
    client_context,
    make_update,
    observation,
    observation_of,
    random_images,
    small_model,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_sign_of_bias_keeps_the_contract() -> None:
    check_attack(SignOfBias)


@pytest.mark.parametrize("kind", ["gradient", "delta"])
@pytest.mark.parametrize("label", range(10))
def test_sign_of_bias_reads_every_label_of_an_unprotected_update(kind: str, label: int) -> None:
    picture = random_images(generator(), labels=torch.tensor([label]))
    finding = SignOfBias().run(observation(picture, kind), generator())
    assert finding.labels.tolist() == [label]
    assert finding.cautions == ()


def test_round_labels_keeps_the_contract() -> None:
    check_attack(RoundLabels)


@pytest.mark.parametrize("is_sum", [False, True])
def test_round_labels_counts_the_labels_of_all_clients_from_their_sum(is_sum: bool) -> None:
    draw = generator()
    batches = [random_images(draw, len(labels), labels=torch.tensor(labels)) for labels in ([3, 7], [3], [9, 0, 3])]
    finding = RoundLabels().run(observation_of([observation(batch) for batch in batches], is_sum), draw)
    assert finding.labels.tolist() == [0, 3, 3, 3, 7, 9] and finding.trace["updates"] == (1 if is_sum else 3)


def test_round_labels_refuses_updates_of_weights() -> None:
    delta = observation(random_images(generator()), "delta")
    with pytest.raises(AttackRefusedError, match="reads gradients"):
        RoundLabels().run(observation_of([delta]), generator())


def test_sign_of_bias_doubts_an_update_that_no_single_label_explains() -> None:
    batch = random_images(generator(), labels=torch.tensor([3, 7]), count=2)
    mixed = observation(batch, update=make_update(small_model(), batch), grants=[])
    seen = observation(random_images(generator()), update=mixed.update)
    assert SignOfBias().run(seen, generator()).cautions == ("2 bias gradients are negative; one label leaves one.",)


def test_sign_of_bias_refuses_a_batch_of_several_images() -> None:
    with pytest.raises(AttackRefusedError, match="holds 2 images"):
        SignOfBias().run(observation(random_images(generator(), count=2)), generator())


def test_sign_of_bias_refuses_an_update_without_the_bias() -> None:
    with pytest.raises(AttackRefusedError, match=r"no fc\.bias"):
        SignOfBias(parameter="fc.bias").run(observation(random_images(generator())), generator())


@pytest.mark.parametrize("keep", [0.001, 1.0])
def test_top_k_keeps_the_contract(keep: float) -> None:
    check_defense(TopK, keep=keep)


@pytest.mark.parametrize("keep", [1e-9, 0.01, 0.5, 1.0])
def test_top_k_agrees_with_sorting_all_entries(keep: float) -> None:
    update = make_update(small_model(), random_images(generator()))
    sent = flat(TopK(keep=keep).protect_update(update, client_context(), generator()))
    entries = flat(update)
    order = entries.abs().argsort(descending=True)
    count = max(1, round(keep * len(entries)))
    assert torch.equal(sent[order[:count]], entries[order[:count]])
    assert not sent[order[count:]].any()


@pytest.mark.parametrize("keep", [0.001, 1.0])
def test_error_feedback_keeps_the_contract(keep: float) -> None:
    check_defense(ErrorFeedback, keep=keep)


def test_error_feedback_sends_everything_over_the_rounds() -> None:
    update, context, defense = (
        make_update(small_model(), random_images(generator())),
        client_context(),
        ErrorFeedback(),
    )
    nothing = dataclasses.replace(update, tensors={n: torch.zeros_like(t) for n, t in update.tensors.items()})
    sent = flat(defense.protect_update(update, context, generator()))
    assert 0 < int((sent != 0).sum()) <= len(sent) // 9
    for _ in range(10):
        sent += flat(defense.protect_update(nothing, context, generator()))
    assert torch.equal(sent, flat(update))
    assert not context.state["kept"].any()


def test_class_accuracy_keeps_the_contract() -> None:
    check_evaluator(ClassAccuracy)


def test_class_accuracy_counts_class_by_class() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    pool = Pool(labels, lambda chosen: torch.stack([torch.full((1, 1, 1), int(n)) for n in chosen]).to(torch.uint8))
    answers = torch.tensor([0, 1, 1, 2, 0, 0])

    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(answers[(x.flatten() * 255).round().long()], 4).float()

    found = ClassAccuracy().run(PixelModel(Table(), Normalization((0.0,), (1.0,))), pool, tuple("abcd"), generator())
    expected = {"accuracy": 3 / 6, "accuracy of a": 1 / 2, "accuracy of b": 1.0, "accuracy of c": 1 / 3}
    assert {name: pytest.approx(value) for name, value in expected.items()} == found.scores
    assert found.cautions == ("no test image of d",)


def flat(update: Update) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in update.tensors.values()])


@pytest.mark.parametrize("distance", ["l1", "fedsim_example_plugins.l1:l1"])
def test_a_matching_attack_takes_the_distance_by_name(distance: str) -> None:
    picture = random_images(generator())
    attack = GradientMatching(steps=3, distance=distance, optimizer="adam", priors={})
    curve = attack.run(observation(picture), generator()).trace["curves"][0]
    assert curve[-1] < curve[0]


def test_a_matching_attack_takes_the_prior_by_name_with_its_parameter() -> None:
    seen = observation(random_images(generator()))
    dark, bright = (
        GradientMatching(
            steps=15, optimizer="adam", priors={"total_variation": 0.1, "near_grey": {"weight": 100.0, "level": level}}
        ).run(seen, generator())
        for level in (0.2, 0.8)
    )
    assert float(dark.images.mean()) < 0.35 and float(bright.images.mean()) > 0.65


def test_a_matching_attack_lists_the_prior_and_the_distance_where_a_name_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"no prior 'near_gray'\. Did you mean 'near_grey'\? Known: .*, near_grey\."):
        GradientMatching(priors={"near_gray": 1.0})
    with pytest.raises(ValueError, match=r"no distance 'l3'\. .* Known: .*, l1\."):
        GradientMatching(distance="l3")
