import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.mixup import Mixture, blend, draw, unmixed


@given(own=st.sets(st.integers(0, 99), min_size=2, max_size=9), seed=st.integers(0, 1000), alpha=st.floats(1e-3, 50))
def test_partners_are_other_samples_of_the_same_client(own, seed, alpha):
    samples = sorted(own)
    mixtures = draw(samples, samples, alpha, np.random.default_rng(seed))
    assert len(mixtures) == len(samples)
    for sample, (first, partner, share, *_) in zip(samples, mixtures, strict=True):
        assert {first, partner} <= own
        assert first == sample or share == 1
        assert 0 < share <= 1 and share == np.float32(share)
        assert (first == partner) == (share == 1)


def test_every_other_sample_is_as_likely_a_partner():
    drawn = draw([7] * 6000, (3, 7, 9, 11), 1.0, np.random.default_rng(0))
    counts = np.unique([mixture.partner for mixture in drawn], return_counts=True)
    assert counts[0].tolist() == [3, 9, 11]
    assert counts[1] == pytest.approx([2000] * 3, rel=0.06)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    drawn = draw(range(20000), range(20001), alpha, np.random.default_rng(1))
    shares = np.array([m.share if m.sample == i else 1 - m.share for i, m in enumerate(drawn)])
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_a_large_alpha_halves_and_a_small_one_leaves_images_alone():
    halves = draw([0, 1], [0, 1, 2], 1e9, np.random.default_rng(0))
    assert [mixture.share for mixture in halves] == pytest.approx([0.5, 0.5], abs=1e-3)
    alone = draw([0] * 50, [0, 1], 1e-6, np.random.default_rng(0))
    assert set(alone) == {Mixture(0, 0, 1.0), Mixture(1, 1, 1.0)}


def test_a_batch_of_one_is_mixed():
    (mixture,) = draw([4], [4, 5], 1.0, np.random.default_rng(0))
    assert (mixture.sample, mixture.partner) == (4, 5)


def test_blending_is_row_by_row():
    first, second = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    found = blend(first, second, [0.25, 1.0])
    assert found[0].unique().tolist() == [0.25] and found[1].unique().tolist() == [1.0]
    labels = blend(torch.eye(3)[:1], torch.eye(3)[2:], [0.75])
    assert labels.tolist() == [[0.75, 0.0, 0.25]]


def test_unmixed_samples_are_whole():
    assert unmixed([3, 1]) == (Mixture(3, 3, 1.0), Mixture(1, 1, 1.0))
