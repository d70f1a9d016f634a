"""Square Attack: random squares that lower the margin of the right class, from logits alone.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random Search".
ECCV 2020. https://arxiv.org/abs/1912.00049 (algorithms 1 and 2, section 3.2)

It asks for no gradient, so a model that hides its gradient does not stop it. Self-checks of robustness use it for that reason.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsim.exchange import HardLabels, Images
from fedsim_defenses._evasion import margin

_SCHEDULE = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # of 10,000 iterations: p is halved after each (section 3.2)
_ITERATIONS = 10_000


def side(query: int, queries: int, height: int, width: int, share: float) -> int:
    """Return the side of the square in a query, in pixels: sqrt of the scheduled share of the image, at least 1."""
    place = query * _ITERATIONS // queries
    halvings = sum(place > bound for bound in _SCHEDULE)
    return max(1, min(round(math.sqrt(share / 2**halvings * height * width)), height, width))


@torch.no_grad()
def square(
    model: nn.Module,
    images: Images,
    labels: HardLabels,
    epsilon: float,
    *,
    queries: int,
    generator: torch.Generator,
    share: float = 0.8,
) -> Images:
    """Return images after a random search within epsilon, each with draws of its own; misclassified ones are left alone.

    Args:
        model: takes pixels in [0, 1] and returns logits.
        images: pixels in [0, 1]; may be none.
        labels: what the model should not say.
        epsilon: largest change of a value.
        queries: of the model for each image, beside the one for the start of vertical stripes.
        generator: of every draw.
        share: of the pixels that the first squares cover.
    """
    count, channels, height, width = images.shape
    if not count:
        return images
    found = torch.clamp(images + epsilon * _signs((count, channels, 1, width), generator).to(images), 0, 1)
    margins = margin(model(found), labels)
    rows, columns = torch.arange(height), torch.arange(width)
    for query in range(queries):
        # All images draw in every query, so that the draws of one do not depend on the success of another.
        across = side(query, queries, height, width, share)
        top = torch.randint(height - across + 1, (count, 1), generator=generator)
        left = torch.randint(width - across + 1, (count, 1), generator=generator)
        change = epsilon * _signs((count, channels, 1, 1), generator)
        left_over = (margins <= 0).nonzero().flatten()
        if not len(left_over):
            break
        in_rows = (rows >= top[left_over]) & (rows < top[left_over] + across)
        in_columns = (columns >= left[left_over]) & (columns < left[left_over] + across)
        window = (in_rows[:, None, :, None] & in_columns[:, None, None, :]).to(images.device)
        moved = torch.clamp(images[left_over] + change[left_over].to(images), 0, 1)
        tried = torch.where(window, moved, found[left_over])
        reached = margin(model(tried), labels[left_over])
        is_better = reached > margins[left_over]
        found[left_over[is_better]] = tried[is_better]
        margins[left_over[is_better]] = reached[is_better]
    return found


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator) - 1
