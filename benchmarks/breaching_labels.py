"""breaching's label strategies, as functions of one gradient; breaching is optional.

`pip install -e ".[bench]"` brings it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedsim.seeds import seeded

STRATEGIES = ("bias-corrected", "analytic", "yin", "iDLG", "wainakh-simple", "wainakh-whitebox")
Recover = Callable[[nn.Module, dict[str, Tensor], int, int], Tensor]


def version() -> str | None:
    """Return breaching's version, or None where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import breaching  # noqa: F401
    except ImportError:
        return None
    return importlib.metadata.version("breaching")


def strategy(name: str, shape: tuple[int, int, int]) -> Recover:
    """Return one strategy: (model, gradient, images, seed) -> labels; `bias-corrected` is breaching's default.

    Args:
        name: one of `STRATEGIES`.
        shape: of an image.
    """
    import breaching

    with contextlib.redirect_stdout(io.StringIO()):
        config = breaching.get_attack_config("invertinggradients", [f"label_strategy={name}"])

    def recover(model: nn.Module, gradient: dict[str, Tensor], pictures: int, seed: int) -> Tensor:
        attacker = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), config)
        attacker.data_shape = shape
        # Its rules read the last two gradients as those of the classifier's weight and bias; some change them in place.
        shared = [{"gradients": [t.clone() for t in gradient.values()], "metadata": {"num_data_points": pictures}}]
        with seeded(seed, name), contextlib.redirect_stdout(io.StringIO()):
            labels: Tensor = attacker._recover_label_information(shared, None, [model])
        return torch.as_tensor(labels)

    return recover
