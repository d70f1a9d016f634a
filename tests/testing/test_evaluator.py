"""The kit's check of an evaluator: one that keeps the contract passes, and each way to break it is told. The paper of none: https://example.org"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

from fedsim.evaluator import Evaluation, Evaluator
from fedsim.testing import check_evaluator


@dataclass(frozen=True, kw_only=True)
class Shows(Evaluator):
    """Shows the first images of the pool, or something else."""

    citation: ClassVar[str] = "Nobody. Nothing. https://example.org"

    how: Literal["well", "beyond", "flat", "none", "unsure", "draws"] = "well"

    def run(self, model, pool, class_names, generator):
        images = pool.read(range(2)).images
        shown = {"beyond": images + 1, "flat": images[0], "none": images[:0]}.get(self.how, images)
        score = float(torch.rand(())) if self.how == "draws" else 1.0
        found = Evaluation({"one": score}, ("It may be.",), True, {"first": shown})
        if self.how == "unsure":
            object.__setattr__(found, "is_inconclusive", 1)
        return found


def test_images_and_doubts_of_itself_keep_the_contract():
    check_evaluator(Shows)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("beyond", "'first' are no images of 1 or 3 channels"),
        ("flat", "'first' are no images of 1 or 3 channels"),
        ("none", "'first' are no images of 1 or 3 channels"),
        ("draws", "changes torch.s global generator"),
        ("unsure", "is_inconclusive is 1, neither True nor False"),
    ],
)
def test_what_is_no_image_no_verdict_or_not_repeated_is_told(how, said):
    with pytest.raises(AssertionError, match=said):
        check_evaluator(Shows, how=how)
