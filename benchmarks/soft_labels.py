"""How exactly `soft_labels` recovers the label and the head input of one image.

    python benchmarks/soft_labels.py --out benchmarks/results/soft_labels.json

Images of `shapes` with 10 and with 100 classes, and of CIFAR-10 where `--cifar` names a folder of its parquet files; a ViT
untrained and trained to stated accuracies on the same images. Labels: smoothing (1 - a) onehot + a / C with a from U(0, 0.5),
mixup of two images and their labels in proportion U(0, 1), and one-hot. Each gradient at the classifier is float32 autograd's
on the head input that the image has in the model. A label is exact when its largest error is below 1e-3.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from label_states import SIZE, trained, untrained
from torch import Tensor, nn
from victims import State, all_in_memory

from fedsim import models, plugins
from fedsim.attack import Attack
from fedsim.exchange import Observation, Update
from fedsim.seeds import torch_generator
from fedsim.source import Pools, Source

FORMS = ("smoothing", "mixup", "one_hot")
EXACT = 1e-3
PICTURES = 4000  # of the clients
SCALE = 0.05  # the learning rate that the attack is not told


class Variant(NamedTuple):
    """What is shared and what is used."""

    name: str
    has_bias: bool
    is_scaled: bool
    params: dict[str, bool]


MAIN = (Variant("with bias", True, True, {}), Variant("without bias", False, True, {}))
OTHERS = (
    Variant("without bias, layer norm unused", False, True, {"layer_norm": False}),
    Variant("with bias, scale unknown", True, False, {}),
)


class Sample(NamedTuple):
    """One image's head input, its label, and the gradient at the classifier."""

    head_input: Tensor
    label: Tensor
    gradient: dict[str, Tensor]


def sources(cifar: Path | None) -> Iterator[tuple[str, Pools]]:
    """Yield the data sets by name, read once; the images of `label_tables`, whose trained weights serve here too."""
    named: dict[str, tuple[str, dict[str, Any]]] = {
        f"shapes{count}": ("shapes", {"classes": count}) for count in (10, 100)
    }
    if cifar is not None:
        named["cifar10"] = ("parquet", {"path": str(cifar)})
    for name, (kind, params) in named.items():
        known = {"image_size": SIZE, "samples": PICTURES, "test_samples": 1000, **params}
        source: Source = plugins.build("data", Source, kind, known, "data")
        yield name, all_in_memory(source.load(0))


def states(name: str, pools: Pools, options: argparse.Namespace) -> list[State]:
    """Return the model untrained and trained to each accuracy."""
    return [untrained(pools, 0), *trained(pools, options.accuracies, options.cache, f"{name}-{PICTURES}")]


def labeled(form: str, pools: Pools, count: int) -> tuple[Tensor, Tensor]:
    """Return images and soft labels of one form."""
    generator, classes = torch_generator(0, "benchmark", form), len(pools.class_names)
    chosen = torch.randint(len(pools.train), (count,), generator=generator).tolist()
    partners = torch.randint(len(pools.train), (count,), generator=generator).tolist()
    amounts = torch.rand(count, generator=generator)[:, None]
    known = pools.train.read(chosen)
    onehot = nn.functional.one_hot(known.labels, classes).float()
    if form == "smoothing":
        return known.images, (1 - amounts / 2) * onehot + amounts / 2 / classes
    if form == "one_hot":
        return known.images, onehot
    others = pools.train.read(partners)
    images = amounts[..., None, None] * known.images + (1 - amounts[..., None, None]) * others.images
    return images, amounts * onehot + (1 - amounts) * nn.functional.one_hot(others.labels, classes).float()


def samples(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Sample]:
    """Yield what one client an image would share."""
    (inputs,) = models.head_inputs(model, models.normalization(model).normalize(images))
    head: nn.Linear = model.get_classifier()
    for head_input, label in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(head(head_input[None]), label[None])
        weight, bias = torch.autograd.grad(loss, (head.weight, head.bias))
        yield Sample(head_input, label, {"head.weight": weight, "head.bias": bias})


def seen(model: nn.Module, sample: Sample, variant: Variant) -> Observation:
    """Return what the attack sees of a sample."""
    shared = {name: t for name, t in sample.gradient.items() if variant.has_bias or name != "head.bias"}
    if variant.is_scaled:
        update = Update(1, 0, "gradient", shared, 1)
    else:
        update = Update(1, 0, "delta", {name: -SCALE * tensor for name, tensor in shared.items()}, 1)
    return Observation(update, lambda: model, (3, SIZE, SIZE), len(sample.label), batch_size=1)


def measure(model: nn.Module, given: list[Sample], variant: Variant) -> dict[str, Any]:
    """Return errors and times over samples; `other` is the error against the next sample's label."""
    attack: Attack = plugins.build("attacks", Attack, "soft_labels", variant.params, "attack")
    errors, feature_errors, others, forms, doubtful = [], [], [], collections.Counter(), 0
    start = time.perf_counter()
    findings = [attack.run(seen(model, sample, variant), torch.Generator()) for sample in given]
    seconds = time.perf_counter() - start
    for index, (finding, sample) in enumerate(zip(findings, given, strict=True)):
        assert finding.labels is not None and finding.features is not None
        errors.append(float((finding.labels[0] - sample.label).abs().max()))
        others.append(float((finding.labels[0] - given[index - 1].label).abs().max()))
        feature_errors.append(float((finding.features[0] - sample.head_input).norm() / sample.head_input.norm()))
        forms[finding.trace["hypothesis"]] += 1
        doubtful += errors[-1] >= EXACT and bool(finding.cautions)
    misses = sum(error >= EXACT for error in errors)
    return {
        "samples": len(given),
        "exact": 1 - misses / len(given),
        "largest_error": max(errors),
        "mean_error_against_another_client": sum(others) / len(others),
        "largest_feature_error": max(feature_errors),
        "misses": misses,
        "misses_with_caution": doubtful,
        "hypotheses": dict(forms),
        "milliseconds": 1000 * seconds / len(given),
    }


def table(name: str, pools: Pools, victims: list[State], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print every cell of one data set."""
    rows = []
    for state in victims:
        for form in FORMS:
            given = list(samples(state.model, *labeled(form, pools, options.samples)))
            for variant in MAIN + OTHERS:
                part = given if variant in MAIN else given[: options.other_samples]
                result = measure(state.model, part, variant)
                rows.append({"data": name, "state": state.name, "labels": form, "variant": variant.name, **result})
                print(
                    f"{name:<11} {state.name:<15} {form:<10} {variant.name:<32} exact {result['exact']:7.2%} of "
                    f"{result['samples']}, worst {result['largest_error']:.0e}, feature {result['largest_feature_error']:.0e}, "
                    f"other {result['mean_error_against_another_client']:.2f}, {result['milliseconds']:.0f} ms",
                    flush=True,
                )
    return rows


def main() -> None:
    """Measure every cell, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--other-samples", type=int, default=200, help="of the variants beside the main two")
    parser.add_argument("--accuracies", type=float, nargs="+", default=[0.5, 0.8], help="on the images attacked")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet files")
    parser.add_argument("--cache", type=Path, default=Path("runs/label_states"), help="folder of trained weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, pools in sources(options.cifar):
        rows += table(name, pools, states(name, pools, options), options)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"exact_below": EXACT, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
