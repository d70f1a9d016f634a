"""Victim models for the image benchmarks: as initialized, after one epoch of federated training, and half right.

    python benchmarks/picture_states.py --cifar FOLDER --cache FOLDER

A stock timm ViT: 32 pixels, patches of 4, width 192, depth 4. `fresh` has timm's initial weights. `one_epoch` is fedsim's
own simulation: one round of FedAvg over 10 clients, each with one local epoch of AdamW on its share of the images.
`half` goes on from there with AdamW on all clients' images together, mirrored at random, which is several times faster than
rounds: the learning rate falls from 1e-3 to zero within ten epochs, three times at most, and training ends at the first
evaluation with half of 1,000 test images right. All images of the folder take part, 12,000 at most.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from victims import JUDGED, Recipe, State, accuracy, all_in_memory, assess, kept, train

from fedsim.federation.engine import train as train_federation
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.scenario import parse
from fedsim.source import Pools

STATES = ("fresh", "one_epoch", "half")
HALF = 0.5

_SCENARIO: dict[str, Any] = {
    "name": "one-epoch",
    "engine": "inline",
    "model": {"name": "vit_mini"},
    "federation": {"clients": 10, "rounds": 1, "strategy": "FedAvg"},
    "training": {
        "batch_size": 32,
        "local_epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "shares": "delta",
    },
    "attacks": [],
}
_RATE, _CYCLES, _CYCLE = 1e-3, 3, 1520  # to begin with; at most; steps, ten epochs


def make_plan(cifar: Path, seed: int) -> Plan:
    """Return the plan of the federation whose first epoch is `one_epoch`.

    Args:
        cifar: folder of CIFAR-10 in parquet, or any images of 32 x 32 pixels laid out alike.
        seed: of the weights, of the split, and of the order of images.
    """
    data = {"name": "parquet", "path": str(cifar.resolve()), "image_size": 32, "samples": 12_000}
    return planning.make(parse({**_SCENARIO, "seed": seed, "data": data}, "benchmark"))


def states(plan: Plan, pools: Pools, names: Sequence[str], cache: Path) -> list[State]:
    """Return the named states, in the order of `STATES`, from the cache where it has them.

    Args:
        plan: see `make_plan`.
        pools: those of the plan.
        names: among `STATES`; each but the first needs the one before.
        cache: folder of weights.
    """
    digest, seed = hashlib.sha256(pools.train.labels.numpy().tobytes()).hexdigest()[:8], plan.scenario.seed
    model: nn.Module = plan.model()
    makers = {
        "one_epoch": functools.partial(_federate, plan=plan),
        "half": functools.partial(_to_half, pools=pools, seed=seed),
    }
    found = []
    for name in STATES[: max(map(STATES.index, names)) + 1]:
        if name in makers:
            kept(cache / f"vit_mini-{digest}-{seed}-{name}.safetensors", model, makers[name])
        if name in names:
            found.append(assess(name, copy.deepcopy(model), pools, 500, len(pools.test)))
    return found


def _federate(model: nn.Module, plan: Plan) -> None:
    model.load_state_dict(train_federation(plan, None))


def _to_half(model: nn.Module, pools: Pools, seed: int) -> None:
    for cycle in range(_CYCLES):
        recipe = Recipe(_RATE, batch_size=64, every=150, most_seconds=7200, decay=_CYCLE, mirrored=True)
        train(model, pools.train, recipe, pools.test, HALF, seed + cycle)
        if accuracy(model, pools.test, JUDGED) >= HALF:
            return


def main() -> None:
    """Make the states that the cache lacks, and print how well each knows the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10 in parquet")
    parser.add_argument("--cache", type=Path, default=Path("runs/picture_states"), help="folder of weights")
    parser.add_argument("--states", nargs="+", default=list(STATES), choices=STATES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = make_plan(options.cifar, options.seed)
    pools = all_in_memory(plan.data.pools)
    print(f"{len(pools.train)} images of clients, {len(pools.test)} for testing\n")
    print("| state | right on the clients' images | on others |\n|---|---|---|")
    for name in options.states:
        (state,) = states(plan, pools, [name], options.cache)
        print(f"| {name} | {state.train_accuracy:.1%} | {state.test_accuracy:.1%} |", flush=True)


if __name__ == "__main__":
    main()
