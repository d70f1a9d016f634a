import math

import pytest
import torch

from fedsim.exchange import Finding, Trajectory, Truth
from fedsim.metrics.scoring import score
from fedsim.metrics.table import PSNR_CAP
from fedsim.metrics.trajectory import arranged, psnr_by_frame


def pictures(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


TRUE = pictures(0)
LABELS = torch.tensor([0, 1, 2])


def trajectory(*frames: torch.Tensor) -> Trajectory:
    return Trajectory(tuple(range(len(frames))), torch.stack(frames), (1.0,) * len(frames))


def test_the_last_frame_scores_as_a_finding_of_it_does() -> None:
    for last in (pictures(1), TRUE[[2, 0, 1]], pictures(2, 2), pictures(3, 5)):
        (expected,) = score(["psnr"], Finding(images=last), Truth(TRUE, LABELS)).values()
        frames = arranged(trajectory(torch.zeros_like(last), last), TRUE)
        assert psnr_by_frame(frames, TRUE)[-1] == pytest.approx(expected.value, abs=1e-9)


def test_every_frame_keeps_the_assignment_of_the_last() -> None:
    # The early frame has the same images in another order, which an assignment of its own would undo.
    frames = arranged(trajectory(TRUE[[1, 2, 0]], TRUE[[2, 0, 1]]), TRUE)
    assert torch.equal(frames[1], TRUE)
    assert torch.equal(frames[0], TRUE[[2, 0, 1]])
    early, late = psnr_by_frame(frames, TRUE)
    assert late == PSNR_CAP
    by_hand = [
        -10 * math.log10(float((TRUE[i].double() - TRUE[j].double()).square().mean())) for i, j in enumerate((2, 0, 1))
    ]
    assert early == pytest.approx(sum(by_hand) / 3)


def test_originals_without_a_image_are_grey_in_every_frame() -> None:
    frames = arranged(trajectory(pictures(1, 1), TRUE[1:2]), TRUE)
    assert torch.equal(frames[:, [0, 2]], torch.full((2, 2, 3, 8, 8), 0.5))
    assert torch.equal(frames[1, 1], TRUE[1])


def test_pixels_are_clamped_before_they_are_matched() -> None:
    frames = arranged(trajectory(10 * TRUE - 4, TRUE), TRUE)
    assert float(frames.min()) >= 0 and float(frames.max()) <= 1
