"""Label recall of `label_count` and of breaching's label strategies, on the same gradients.

    pip install -e ".[bench]"
    python benchmarks/label_count_vs_breaching.py --out benchmarks/results/label_count_vs_breaching.json

An untrained ViT of 10 classes a seed; batches of natural pictures with labels drawn with replacement. `label_count` is
granted the batch size alone. breaching's default strategy is `bias-corrected`; its others run on the same gradients.
Recall is the share of a batch's labels that were found, repeats counted. `even` guesses every class equally often.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedsim import models, plugins
from fedsim.attack import Attack
from fedsim.data.source import Pool, Source
from fedsim.exchange import Observation, Update
from fedsim.metrics.label import label_recall
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator
from fedsim.threat import ModelFactory

CLASSES, SIZE = 10, 32
STRATEGIES = ("bias-corrected", "analytic", "yin", "iDLG", "wainakh-simple", "wainakh-whitebox")


class Case(NamedTuple):
    """One batch's update: what every method gets, and the truth for scoring."""

    model: nn.Module
    gradient: dict[str, Tensor]
    labels: Tensor
    seed: int


def pool(parquet: Path | None) -> Pool:
    """Return natural pictures: crops of scikit-image's photographs, or a parquet file's."""
    params: dict[str, Any] = {"image_size": SIZE} | ({"path": str(parquet)} if parquet else {})
    source: Source = plugins.build("data", Source, "parquet" if parquet else "photos", params, "data")
    return source.load(0).train


def case(model_name: str, pictures: Pool, batch_size: int, seed: int) -> Case:
    """Return the gradient of one batch under a model of its own."""
    model = models.build(ModelPart(name=model_name), CLASSES, SIZE, seed)
    generator = torch_generator(seed, "benchmark", batch_size)
    images = pictures.read(torch.randperm(len(pictures), generator=generator)[:batch_size].tolist()).images
    labels = torch.randint(CLASSES, (batch_size,), generator=generator)
    normalized = models.normalization(model).normalize(images)
    return Case(model, models.gradient_of(model, normalized, labels), labels, seed)


def ours(given: Case) -> Tensor:
    """Return the labels that `label_count` finds."""
    attack: Attack = plugins.build("attacks", Attack, "label_count", {}, "attack")
    update = Update(1, 0, "gradient", given.gradient, len(given.labels))
    seen = Observation(update, ModelFactory(given.model), (3, SIZE, SIZE), CLASSES, batch_size=len(given.labels))
    labels = attack.run(seen, torch_generator(given.seed, "attack")).labels
    assert labels is not None
    return labels


def even(given: Case) -> Tensor:
    """Return every class equally often."""
    return torch.arange(len(given.labels)) * CLASSES // max(len(given.labels), CLASSES)


def theirs(strategy: str) -> Callable[[Case], Tensor]:
    """Return one of breaching's label strategies."""
    import breaching

    config = breaching.get_attack_config("invertinggradients", [f"label_strategy={strategy}"])

    def recover(given: Case) -> Tensor:
        attacker = breaching.attacks.prepare_attack(given.model, nn.CrossEntropyLoss(), config)
        attacker.data_shape = (3, SIZE, SIZE)
        metadata = {"num_data_points": len(given.labels)}
        # Its rules read the last two gradients as those of the classifier's weight and bias; some change them in place.
        shared = [{"gradients": [tensor.clone() for tensor in given.gradient.values()], "metadata": metadata}]
        with seeded(given.seed, strategy):
            labels: Tensor = attacker._recover_label_information(shared, None, [given.model])
        return labels

    return recover


def measure(method: Callable[[Case], Tensor], cases: list[Case]) -> dict[str, Any]:
    """Return recall over cases, or the error with which a method fails."""
    start = time.perf_counter()
    try:
        recalls = [label_recall(method(given), given.labels) for given in cases]
    except (RuntimeError, ValueError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = (time.perf_counter() - start) / len(cases)
    return {"mean": sum(recalls) / len(recalls), "least": min(recalls), "seconds": seconds, "per_seed": recalls}


def cell(result: dict[str, Any]) -> str:
    """Return one entry of the table."""
    return "raises" if "error" in result else f"{result['mean']:.3f} ({result['least']:.2f})"


def main() -> None:
    """Measure all methods, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_mini", help="a preset or timm ViT of 32 pixels")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--parquet", type=Path, help="pictures from this file instead of scikit-image's photographs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        version = importlib.metadata.version("breaching")
        methods = {"label_count": ours, **{f"breaching {s}": theirs(s) for s in STRATEGIES}, "even": even}
    except ImportError as error:
        sys.exit(f'breaching is not installed ({error}). Run: pip install -e ".[bench]"')
    pictures, table = pool(options.parquet), {}
    for batch_size in options.batch_sizes:
        cases = [case(options.model, pictures, batch_size, seed) for seed in range(options.seeds)]
        table[batch_size] = {name: measure(method, cases) for name, method in methods.items()}
    print(
        f"{options.model}, untrained, {CLASSES} classes, {options.seeds} seeds, breaching {version}: mean recall (least)"
    )
    print(" " * 26 + "".join(f"{f'B={size}':>14}" for size in table))
    for name in methods:
        print(f"{name:<26}" + "".join(f"{cell(results[name]):>14}" for results in table.values()))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"model": options.model, "seeds": options.seeds, "breaching": version, "pictures": "photos"}
        facts |= {"pictures": options.parquet.name} if options.parquet else {}
        options.out.write_text(json.dumps({**facts, "recall": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
