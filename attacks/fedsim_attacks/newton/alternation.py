"""Refinement in closed form: token gradients of the current images, and the images that solve the projection's gradient.

G_pe = A^T X, with A the token gradients, brought to the sum that the position embedding's gradient shows, is solved for the
images X nearest to the current ones, and A taken anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images
from fedsim.models import patch_grid, prefix_rows
from fedsim_attacks.newton.residual import Iterate, Residual, token_gradients
from fedsim_attacks.update import POSITIONS, PROJECTION

_DAMPING = 1e-2  # of the largest squared singular value


def closed_form(
    residual: Residual, start: Images, confine: Callable[[Images], Images], count: int
) -> Iterator[Iterate]:
    """Yield the images before and after every alternation of token gradients and images, and what is left of G_pe.

    Of one image the token gradients are known exactly, so that this converges to the solution of `patch_embedding`, slowly
    by its damping; of several only their sum is.

    Args:
        residual: measures what is left.
        start: normalized images.
        confine: brings images back into the range of pixels.
        count: alternations.

    Raises:
        AttackRefusedError: the update lacks the position embedding's gradient or the patch projection's.
    """
    target, images = residual.target, start
    place, projection = target.place(POSITIONS), target.place(PROJECTION)
    if place is None or projection is None:
        raise AttackRefusedError(f"refinement: closed_form reads the gradients of {POSITIONS} and {PROJECTION}.")
    grid = patch_grid(target.model)
    observed = target.gradients[place][0, prefix_rows(target.model) :].double()
    goal = target.gradients[projection].flatten(1).double()
    for number in range(count + 1):
        tokens = token_gradients(residual, images).double()
        tokens = tokens + (observed - tokens.sum(0)) / len(tokens)
        rows, patches = tokens.flatten(0, 1), grid.cut(images).flatten(0, 1).double()
        left = goal - rows.T @ patches
        yield Iterate(images, float(left.norm() / goal.norm()), images)
        if number == count:
            return
        gram = rows @ rows.T
        damped = gram + _DAMPING * torch.linalg.matrix_norm(gram, 2) * torch.eye(len(gram)).to(gram)
        moved = (patches + torch.linalg.solve(damped, rows @ left)).float().view(len(images), grid.count, -1)
        images = confine(grid.join(moved))
