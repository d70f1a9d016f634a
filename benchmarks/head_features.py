"""How exactly `head_features` recovers the head input of every image of a batch.

    python benchmarks/head_features.py --out benchmarks/results/head_features.json

Images of `shapes` with 10 and with 100 classes; a ViT untrained and trained to stated accuracies on the same images. The
labels of a batch are all different, drawn with replacement, or all the same; the attack is granted them, so that the figure
is that of the head inputs alone. `mean` is the error of the reference images' mean head input, which needs no update.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from label_states import SIZE, Batch, head_gradient
from soft_labels import sources, states
from torch import Tensor
from victims import State

from fedsim import models, plugins
from fedsim.attack import Attack
from fedsim.exchange import Observation, Update
from fedsim.metrics.feature import feature_errors
from fedsim.seeds import torch_generator
from fedsim.source import Pools

KINDS = ("distinct", "drawn", "one class")


def batch(pools: Pools, kind: str, size: int, index: int) -> Batch:
    """Return one client's batch; its images are all different."""
    generator, classes = torch_generator(index, "features", kind, size), len(pools.class_names)
    if kind == "distinct":
        labels = torch.randperm(classes, generator=generator)[:size]
    elif kind == "drawn":
        labels = torch.randint(classes, (size,), generator=generator)
    else:
        labels = torch.randint(classes, (1,), generator=generator).expand(size)
    chosen: list[int] = []
    for label in labels.tolist():
        members = [int(i) for i in (pools.train.labels == label).nonzero()[:, 0] if int(i) not in chosen]
        chosen.append(members[int(torch.randint(len(members), (1,), generator=generator))])
    return Batch(pools.train.read(chosen).images, labels, index)


def measure(state: State, pools: Pools, kind: str, size: int, count: int) -> dict[str, Any]:
    """Return errors over batches, and what the attack said of them."""
    attack: Attack = plugins.build("attacks", Attack, "head_features", {}, "attack")
    normalization = models.normalization(state.model)
    (known,) = models.head_inputs(state.model, normalization.normalize(pools.test.read(range(64)).images))
    errors, means, solved, estimates, seconds = [], [], 0, [], 0.0
    for index in range(count):
        given = batch(pools, kind, size, index)
        update = Update(1, 0, "gradient", head_gradient(state.model, given), size)
        seen = Observation(
            update,
            lambda: state.model,
            (3, SIZE, SIZE),
            len(pools.class_names),
            batch_size=size,
            labels=torch.sort(given.labels).values,
            normalization=normalization,
        )
        start = time.perf_counter()
        finding = attack.run(seen, torch_generator(index, "attack"))
        seconds += time.perf_counter() - start
        (true,) = models.head_inputs(state.model, normalization.normalize(given.images))
        assert finding.features is not None
        errors.append(_mean(feature_errors(finding.features, true)))
        means.append(_mean(feature_errors(known.mean(0).expand(size, -1), true)))
        estimates.append(_mean(finding.trace["estimated_errors"]))
        solved += not finding.cautions
    ordered: Tensor = torch.tensor(errors).sort().values
    return {
        "batches": count,
        "median_error": float(ordered[count // 2]),
        "mean_error": _mean(errors),
        "largest_error": float(ordered[-1]),
        "below_5_percent": float((ordered < 0.05).float().mean()),
        "without_caution": solved / count,
        "mean_estimated_error": _mean(estimates),
        "mean_head_input": _mean(means),
        "seconds": seconds / count,
    }


def _mean(values: Any) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Measure every cell, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--accuracies", type=float, nargs="+", default=[0.5, 0.8], help="on the images attacked")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet files")
    parser.add_argument("--cache", type=Path, default=Path("runs/label_states"), help="folder of trained weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, pools in sources(options.cifar):
        for state in states(name, pools, options):
            for size in options.batch_sizes:
                for kind in KINDS if size > 1 else KINDS[:1]:
                    if kind == "distinct" and size > len(pools.class_names):
                        continue
                    result = measure(state, pools, kind, size, options.batches)
                    rows.append({"data": name, "state": state.name, "size": size, "labels": kind, **result})
                    print(
                        f"{name:<11} {state.name:<15} B={size:<3} {kind:<10} median {result['median_error']:.0e}, mean "
                        f"{result['mean_error']:.0e}, worst {result['largest_error']:.0e}, estimated "
                        f"{result['mean_estimated_error']:.0e}, mean input {result['mean_head_input']:.2f}, no caution "
                        f"{result['without_caution']:.0%}, {result['seconds']:.2f} s",
                        flush=True,
                    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
