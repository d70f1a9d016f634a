"""Seeds are arguments: each draw uses a generator derived from the scenario's seed and a path.

`derive(seed, "attack", "gradvit", 3, 0)` is one integer for ever, on every machine and in every process, so client
batches, noise and attacks are pure functions of (seed, path) and no draw moves another.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

PathPart = str | int


def derive(seed: int, *path: PathPart) -> int:
    """Return the 63-bit seed that belongs to `path` under `seed`.

    Parts keep their type: the string "1" and the integer 1 lead to different seeds.
    """
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *path: PathPart) -> torch.Generator:
    """Return a fresh CPU generator for `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: PathPart) -> np.random.Generator:
    """Return a fresh NumPy generator for `path`."""
    return np.random.default_rng(derive(seed, *path))


@contextlib.contextmanager
def seeded(seed: int, *path: PathPart) -> Iterator[None]:
    """Seed the global generators that other people's code draws from, and restore them afterwards.

    Flower samples clients from `random`, NumPy's global state feeds its DP wrappers, dropout and weight
    initialization draw from torch's. CPU state only: attacks on an accelerator draw from their own generator.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    value = derive(seed, *path)
    random.seed(value)
    np.random.seed(value % 2**32)
    # Not torch.manual_seed: that also reseeds every accelerator, which this function could not restore.
    torch.default_generator.manual_seed(value)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads inside, and on as many as before afterwards.

    The order of a float sum depends on the number of threads, so everything that must be equal on all engines
    (training, attacks) runs under a stated number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
