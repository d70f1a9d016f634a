import dataclasses

import pytest
import torch
from fedsim_attacks.gradient_alignment import GradientAlignment

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Candidates, DefenseKnowledge, UpdateEffects
from fedsim.testing import observation, random_images, small_model

GRANTS = ["candidates", "normalization", "training", "batch_size"]


def shown(own, others, kind="gradient", grants=GRANTS, **changes):
    """Return an observation whose candidates are own images, first and second by turns, beside others."""
    seen = observation(own, kind, grants, **changes)
    firsts = torch.arange(len(own)) % 2 == 0

    def paired(left, right):
        is_first = firsts.view(-1, *[1] * (left.ndim - 1))
        return torch.stack([torch.where(is_first, left, right), torch.where(is_first, right, left)], 1)

    pairs = Candidates(paired(own.images, others.images), paired(own.labels, others.labels))
    return dataclasses.replace(seen, candidates=pairs), firsts


def drawn(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return random_images(generator, count), random_images(generator, count)


@pytest.mark.parametrize(("kind", "steps"), [("gradient", 1), ("delta", 1), ("delta", 3)])
def test_the_image_that_was_trained_on_is_told_in_every_pair(kind, steps):
    own, others = drawn(6)
    seen, firsts = shown(own, others, kind, local_steps=steps)
    found = GradientAlignment().run(seen, torch.Generator())
    assert torch.equal(found.membership > 0, firsts)


@pytest.mark.parametrize("entries", [60, 10**6])
def test_a_batch_of_one_class_is_a_sum_whose_members_have_all_of_it(entries):
    """Images of one class have much the same gradient, so that an angle alone tells them hardly apart."""
    own, others = (dataclasses.replace(drawn, labels=torch.zeros(8, dtype=torch.int64)) for drawn in drawn(8, 3))
    seen, firsts = shown(own, others)
    found = GradientAlignment(entries=entries).run(seen, torch.Generator().manual_seed(0))
    assert torch.equal(found.membership > 0, firsts)
    assert torch.allclose(found.membership.abs(), torch.full((8,), 1 / 8), atol=1e-3), "1 / n for members, else 0"


@pytest.mark.parametrize("score", ["cosine", "difference"])
def test_the_scores_of_the_paper_tell_most_pairs(score):
    right = 0
    for seed in range(4):
        seen, firsts = shown(*drawn(4, seed))
        right += int(((GradientAlignment(score=score).run(seen, torch.Generator()).membership > 0) == firsts).sum())
    assert right >= 13, f"{right} of 16; by chance with a probability of about 1%"


def test_between_images_that_were_not_trained_on_it_is_right_by_chance_alone():
    right = total = 0
    for seed in range(8):
        own, others = drawn(6, seed)
        strangers, _ = drawn(6, 100 + seed)
        seen, firsts = shown(strangers, others)
        seen = dataclasses.replace(seen, update=observation(own).update)
        right += int(((GradientAlignment().run(seen, torch.Generator()).membership > 0) == firsts).sum())
        total += 6
    assert 12 <= right <= 36, f"{right} of {total}: 3.5 standard deviations about a half"


def test_the_scores_are_those_of_the_formulas():
    own, others = drawn(2)
    seen, _ = shown(own, others)
    model = small_model()
    mean = torch.cat([tensor.flatten() for tensor in seen.update.tensors.values()]).double()
    inputs = models.normalization(model).normalize(seen.candidates.images[0])
    single = [
        torch.cat([g.flatten() for g in models.gradient_of(model, x[None], y[None]).values()]).double()
        for x, y in zip(inputs, seen.candidates.labels[0], strict=True)
    ]
    cosines = [torch.nn.functional.cosine_similarity(mean, g, dim=0) for g in single]
    gains = [mean.square().sum() - (mean - g / 2).square().sum() for g in single]
    for score, (first, second) in (("cosine", cosines), ("difference", gains)):
        found = GradientAlignment(score=score).run(seen, torch.Generator()).membership[0]
        assert float(found) == pytest.approx(float(first - second), rel=1e-4, abs=1e-9)


def test_tensors_of_zeros_are_left_out_and_an_update_of_nothing_is_refused():
    own, others = drawn(4)
    seen, firsts = shown(own, others)
    hidden = {n: torch.zeros_like(t) if n.startswith("blocks") else t for n, t in seen.update.tensors.items()}
    found = GradientAlignment().run(
        dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=hidden)), torch.Generator()
    )
    assert torch.equal(found.membership > 0, firsts)
    assert found.trace["compared"] == sum(t.numel() for n, t in hidden.items() if not n.startswith("blocks"))
    nothing = {name: torch.zeros_like(tensor) for name, tensor in hidden.items()}
    with pytest.raises(AttackRefusedError, match="zero in every tensor"):
        GradientAlignment().run(
            dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=nothing)), torch.Generator()
        )


@pytest.mark.parametrize("keep", [0.0003, 0.01])
def test_of_dropped_entries_those_that_were_sent_are_compared(keep):
    """With zeros taken for values, regression tells hardly more than a coin."""
    own, others = drawn(16)
    seen, firsts = shown(own, others)
    sizes = torch.cat([tensor.abs().flatten() for tensor in seen.update.tensors.values()])
    least = sizes.sort(descending=True).values[int(keep * len(sizes))]
    pruned = {n: torch.where(t.abs() > least, t, torch.zeros_like(t)) for n, t in seen.update.tensors.items()}
    seen = dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=pruned))
    found = GradientAlignment().run(seen, torch.Generator())
    assert torch.equal(found.membership > 0, firsts)
    # Tensors of which hardly anything was dropped are compared as a whole.
    assert found.trace["compared"] <= 1.01 * keep * len(sizes) + 1


def test_pairs_of_different_classes_and_effects_that_are_not_modeled_are_cautions():
    own, others = drawn(2)
    others = dataclasses.replace(others, labels=(own.labels + torch.tensor([0, 1])) % 10)
    seen, _ = shown(own, others)
    told = UpdateEffects(signs=True), UpdateEffects(carries_over=True)
    carried = tuple(DefenseKnowledge("some", {}, effects) for effects in told)
    seen = dataclasses.replace(seen, defenses=carried)
    cautions = GradientAlignment().run(seen, torch.Generator()).cautions
    assert cautions[0].startswith("In 1 of 2 pairs") and len(cautions) == 3
    assert "signs" in cautions[1] and "held back" in cautions[2]


def test_the_difference_needs_the_scale_of_a_delta():
    own, others = drawn(2)
    seen, firsts = shown(own, others, "delta", ["candidates", "normalization"])
    with pytest.raises(AttackRefusedError, match=r"grant `training`, .* Use cosine or regression"):
        GradientAlignment(score="difference").run(seen, torch.Generator())
    assert torch.equal(GradientAlignment().run(seen, torch.Generator()).membership > 0, firsts)


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="entries: expected at least 1"):
        GradientAlignment(entries=0)
