import pytest
import torch
from fedsim_attacks.blind_guess import BlindGuess
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, Update


def observation(batch_size: int, scale: float = 1.0, auxiliary: LabeledImages | None = None) -> Observation:
    update = Update(1, 0, "gradient", {"head.bias": scale * torch.ones(5)}, batch_size)
    return Observation(update, nn.Identity, (3, 4, 4), 5, batch_size=batch_size, auxiliary_data=auxiliary)


@given(batch_size=st.integers(1, 40))
def test_even_labels_differ_in_number_by_one_at_most(batch_size: int) -> None:
    labels = BlindGuess().run(observation(batch_size), torch.Generator()).labels
    assert labels is not None and len(labels) == batch_size
    counts = torch.bincount(labels, minlength=5)
    assert int(counts.max() - counts.min()) <= 1


def test_the_guess_does_not_depend_on_the_update() -> None:
    one, two = (BlindGuess().run(observation(3, scale), torch.Generator()) for scale in (1.0, -50.0))
    assert one.images is not None and two.images is not None
    assert torch.equal(one.images, two.images)


def test_labels_follow_the_auxiliary_data() -> None:
    auxiliary = LabeledImages(torch.rand(4, 3, 4, 4), torch.tensor([2, 2, 2, 4]))
    labels = BlindGuess().run(observation(4, auxiliary=auxiliary), torch.Generator()).labels
    assert labels is not None and labels.tolist() == [2, 2, 2, 4]


def test_mean_and_sample_come_from_the_auxiliary_images_and_need_them() -> None:
    auxiliary = LabeledImages(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3]))
    known = observation(2, auxiliary=auxiliary)
    mean = BlindGuess(guess="mean").run(known, torch.Generator()).images
    assert mean is not None and torch.allclose(mean[1], auxiliary.images.mean(0))
    sample = BlindGuess(guess="sample").run(known, torch.Generator()).images
    assert sample is not None and all(any(torch.equal(s, a) for a in auxiliary.images) for s in sample)
    with pytest.raises(AttackRefusedError, match="auxiliary_data"):
        BlindGuess(guess="mean").run(observation(2), torch.Generator())
