"""How near the empirical lower bound of `fedsim audit --mechanisms` comes to the exact epsilon of `dp_noise`, over seeds.

    python benchmarks/mechanism_bounds.py
    python benchmarks/mechanism_bounds.py --neighbors replace --draws 1000 --seeds 5

Prints the exact epsilon of one round, and the least, the mean and the greatest bound. The update has two small tensors: how
many values it has makes no difference, since outputs are projected on the difference of the neighbors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

import torch
from fedsim_defenses.dp_noise import DPNoise

from fedsim.audit.mechanism import DRAWS, check_mechanism
from fedsim.exchange import Update
from fedsim.seeds import torch_generator
from fedsim.testing import client_context


def bounds(defense: DPNoise, draws: int, seeds: int) -> list[float]:
    """Return the lower bound of each seed."""
    generator = torch_generator(0, "benchmark", "mechanism")
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 4)), ("b", (5,)))}
    update = Update(1, 0, "gradient", tensors, 1)
    checks = [check_mechanism(defense, update, client_context, seed, draws) for seed in range(seeds)]
    return [check.lower_bound for check in checks if check is not None and check.lower_bound is not None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--multiplier", type=float, default=1.0, help="noise in clipping norms")
    parser.add_argument("--neighbors", choices=("add_remove", "replace"), default="add_remove")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args(arguments)
    defense = DPNoise(clip_norm=1.0, noise_multiplier=options.multiplier, neighbors=options.neighbors)
    claimed = defense.budget(client_context())
    assert claimed is not None
    found = bounds(defense, options.draws, options.seeds)
    print(f"exact {claimed.epsilon:.2f}; bounds {min(found):.2f} to {max(found):.2f}, mean {mean(found):.2f}")


if __name__ == "__main__":
    main()
