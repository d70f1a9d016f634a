import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.candidates import MOST_PAIRS, candidates
from fedsim.exchange import Truth
from fedsim.source import Pool


def images_of(count, first):
    """Return tiny images, each of a value of its own, from `first` on."""
    values = torch.arange(first, first + count, dtype=torch.float32) / 255
    return values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def pool_of(labels, first=128):
    images = images_of(len(labels), first)
    return Pool(torch.tensor(labels), lambda samples: (255 * images[list(samples)]).round().to(torch.uint8))


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=20)


@settings(max_examples=50)
@given(LABELS, LABELS, st.integers(0, 2**31))
def test_each_pair_holds_one_image_that_was_trained_on_and_one_that_was_not(own, others, seed):
    truth = Truth(images_of(len(own), 0), torch.tensor(own))
    seen, firsts = candidates(truth, pool_of(others), seed)
    assert len(seen) == len(firsts) == len(own) and seen.images.shape == (len(own), 2, 3, 2, 2)
    was_trained_on = seen.images[:, :, 0, 0, 0] < 100 / 255
    assert torch.equal(was_trained_on[:, 0], firsts) and torch.equal(was_trained_on[:, 1], ~firsts)
    for pair, label in zip(seen.images[:, :, 0, 0, 0], seen.labels, strict=True):
        for value, stated in zip((255 * pair).round().int().tolist(), label.tolist(), strict=True):
            assert stated == (own[value] if value < 100 else others[value - 128])
    again, same = candidates(truth, pool_of(others), seed)
    assert torch.equal(again.images, seen.images) and torch.equal(same, firsts)


def test_the_other_image_is_of_the_same_class_and_taken_once_as_long_as_there_are_enough():
    own = [0, 1, 2, 0, 1, 2]
    seen, _ = candidates(Truth(images_of(6, 0), torch.tensor(own)), pool_of([0, 0, 1, 1, 2, 2, 3]), 5)
    assert torch.equal(seen.labels[:, 0], seen.labels[:, 1])
    assert len(set(seen.images[:, :, 0, 0, 0].flatten().tolist())) == 12


def test_the_coin_is_fair_and_differs_from_update_to_update():
    truths = [Truth(images_of(40, 0) + shift / 1e6, torch.zeros(40, dtype=torch.int64)) for shift in range(20)]
    drawn = torch.stack([candidates(truth, pool_of([0] * 50), 1)[1] for truth in truths])
    assert len({tuple(row.tolist()) for row in drawn}) == 20
    assert 0.42 < float(drawn.float().mean()) < 0.58, "of 800 coins, 4.5 standard deviations either way"


def test_there_are_no_more_pairs_than_the_bound_and_soft_labels_count_by_their_largest():
    many = MOST_PAIRS + 9
    labels = torch.eye(4)[torch.arange(many) % 4] * 0.6 + 0.1
    seen, firsts = candidates(Truth(images_of(many, 0), labels), pool_of([0, 1, 2, 3] * 20), 0)
    assert len(seen) == len(firsts) == MOST_PAIRS
    values = (255 * seen.images[:, :, 0, 0, 0]).round().int()
    assert all(int(own[0]) == int(value) % 4 for own, value in zip(seen.labels, values.amin(1), strict=True))
