"""Label recovery: every rule x how trained the model is x batch size x classes, beside breaching and a uniform guess.

    python benchmarks/label_tables.py --cifar FOLDER --out benchmarks/results/label_tables.json

10 classes are CIFAR-10 (a folder of train*.parquet and test*.parquet; `shapes` without it), 100 are `shapes`. Labels of a batch
are drawn with replacement; each method reads the same gradients of the classifier. All but `bias_count_auxiliary` and
`auto, auxiliary` are granted the batch size alone. Recall is the share of a batch's labels that were found, repeats counted;
LeAcc and LnAcc of Ma et al. (ICLR 2023), shares of classes whose presence or number is right, stand beside it in the JSON:
nothing found at all scores 1 - B / C there. `even` guesses every class equally often. breaching runs where it is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from breaching_labels import STRATEGIES, strategy, version
from fedsim_attacks.head.classifier import read_head, reference_images
from fedsim_attacks.head.label_rules import RULES, evidence
from fedsim_attacks.label_recovery import LabelRecovery
from label_states import MODEL, SIZE, auxiliary, batches, head_gradient, trained, untrained
from torch import Tensor, nn
from victims import State, all_in_memory

from fedsim import models, plugins
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, Update
from fedsim.metrics.label import label_recall
from fedsim.seeds import torch_generator
from fedsim.source import Pools, Source

REFERENCES = 64
TRAINED_TO = [0.5, 0.8]
SHAPE = (3, SIZE, SIZE)


class Case(NamedTuple):
    """One batch's update, with and without auxiliary data granted, and the truth for scoring."""

    blind: Observation
    informed: Observation
    labels: Tensor
    seed: int


Method = Callable[[Case], Tensor]


def load(classes: int, cifar: Path | None, samples: int, seed: int) -> tuple[str, Pools]:
    """Return the data's name and its pools, read into memory."""
    params: dict[str, Any] = {"image_size": SIZE, "samples": samples, "test_samples": 1000}
    if cifar and classes == 10:
        name, params = "cifar10", params | {"path": str(cifar)}
    else:
        name, params = f"shapes{classes}", params | {"classes": classes}
    source: Source = plugins.build("data", Source, "parquet" if name == "cifar10" else "shapes", params, "data")
    return name, all_in_memory(source.load(seed))


def cases(state: State, pools: Pools, size: int, numbers: range, known: LabeledImages) -> list[Case]:
    """Return batches of one size, by their numbers."""
    made, classes = [], len(pools.class_names)
    model: Callable[[], nn.Module] = lambda: state.model  # noqa: E731  no method changes it
    for batch in batches(pools.train, classes, size, len(numbers), numbers.start):
        update = Update(1, 0, "gradient", head_gradient(state.model, batch), size)
        normalization = models.normalization(state.model)
        blind = Observation(update, model, SHAPE, classes, batch_size=size, normalization=normalization)
        made.append(Case(blind, dataclasses.replace(blind, auxiliary_data=known), batch.labels, batch.index))
    return made


def auto(informed: bool) -> Method:
    """Return `label_recovery` as a scenario runs it."""
    attack = LabelRecovery(references=256 if informed else REFERENCES)

    def recover(case: Case) -> Tensor:
        found = attack.run(case.informed if informed else case.blind, torch_generator(case.seed, "attack"))
        assert found.labels is not None
        return found.labels

    return recover


def rule(name: str, example: Case) -> Method:
    """Return a published rule; its reference images are run through the model once for all cases."""
    facts, mean = RULES[name], None  # type: ignore[index]
    if facts.reference != "none":
        seen = example.informed if facts.reference == "auxiliary" else example.blind
        pictures = reference_images(seen, 256 if seen.auxiliary_data else REFERENCES, torch_generator(0, "references"))
        mean = pictures.logits.softmax(1).mean(0)

    def recover(case: Case) -> Tensor:
        head = read_head(case.blind, lambda: reference_images(case.blind, 2, torch_generator(0, "unused")))
        counts = facts.read(evidence(head, len(case.labels), mean))
        return torch.repeat_interleave(torch.arange(len(counts)), counts)

    return recover


def theirs(name: str) -> Method:
    """Return one of breaching's strategies."""
    recover = strategy(name, SHAPE)
    return lambda case: recover(case.blind.model(), dict(case.blind.update.tensors), len(case.labels), case.seed)


def even(case: Case) -> Tensor:
    """Return every class equally often."""
    size, classes = len(case.labels), case.blind.num_classes
    return torch.arange(size) * classes // max(size, classes)


def padded(found: Tensor, true: Tensor, classes: int) -> tuple[float, float]:
    """Return LeAcc and LnAcc."""
    counts, truth = (torch.bincount(labels, minlength=classes) for labels in (found, true))
    return float(((counts > 0) == (truth > 0)).double().mean()), float((counts == truth).double().mean())


def measure(method: Method, given: list[Case]) -> dict[str, Any]:
    """Return scores over cases, or the error with which a method fails."""
    start, recalls, pads = time.process_time(), [], []
    try:
        for case in given:
            found = method(case)
            recalls.append(label_recall(found, case.labels))
            pads.append(padded(found, case.labels, case.blind.num_classes))
    except (RuntimeError, ValueError, IndexError, AttackRefusedError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    existence, number = (sum(column) / len(pads) for column in zip(*pads, strict=True))
    milliseconds = 1000 * (time.process_time() - start) / len(given)
    scores = {"recall": sum(recalls) / len(recalls), "least": min(recalls), "LeAcc": existence, "LnAcc": number}
    return {name: round(value, 4) for name, value in scores.items()} | {"milliseconds": round(milliseconds, 1)}


def table(state: State, pools: Pools, sizes: list[int], numbers: range, peers: bool) -> dict[str, dict[int, Any]]:
    """Return scores by method and batch size."""
    known = auxiliary(pools)
    scores: dict[str, dict[int, Any]] = {}
    others = {f"breaching {name}": theirs(name) for name in STRATEGIES} if peers else {}
    for size in sizes:
        given = cases(state, pools, size, numbers, known)
        methods: dict[str, Method] = {"auto": auto(False), "auto, auxiliary": auto(True)}
        methods |= {name: rule(name, given[0]) for name in RULES}
        methods |= {**others, "even": even}
        for name, method in methods.items():
            scores.setdefault(name, {})[size] = measure(method, given)
    return scores


def show(title: str, scores: dict[str, dict[int, Any]], sizes: list[int]) -> None:
    """Print recall, one row a method, as Markdown."""
    print(f"\n{title}\n\n| recall | " + " | ".join(f"B={size}" for size in sizes) + " |\n|---|" + "---|" * len(sizes))
    for name, row in scores.items():
        cells = ("-" if "error" in row[size] else f"{row[size]['recall']:.3f}" for size in sizes)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def columns(scores: dict[str, dict[int, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return one list a method and measure, in the order of the batch sizes."""
    names = ("recall", "least", "LeAcc", "LnAcc", "milliseconds", "error")
    return {
        method: {
            name: [cell.get(name) for cell in row.values()] for name in names if any(name in c for c in row.values())
        }
        for method, row in scores.items()
    }


def readable(content: dict[str, Any]) -> str:
    """Return JSON with every list of plain values on one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found.group().split()), text) + "\n"


def shortfall(scores: dict[str, dict[int, Any]], size: int) -> float:
    """Return by how much `auto` stays below the best single published rule with the same grants."""
    rest = [row[size].get("recall", 0.0) for name, row in scores.items() if name in RULES and "auxiliary" not in name]
    return float(max(rest) - scores["auto"][size]["recall"])


def main() -> None:
    """Measure everything, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet; without it 10 classes of shapes")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--samples", type=int, default=4000, help="images of the clients")
    parser.add_argument("--batches", type=int, default=40, help="of every size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--cache", type=Path, default=Path("runs/label_states"), help="folder of trained weights")
    parser.add_argument("--seed", type=int, default=0, help="of images, weights and batches")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer = version()
    facts: dict[str, Any] = {"model": MODEL.name, **MODEL.kwargs, "breaching": peer, "batch_sizes": options.batch_sizes}
    results: list[dict[str, Any]] = []
    numbers = range(options.seed * options.batches, (options.seed + 1) * options.batches)
    for classes in options.classes:
        data, pools = load(classes, options.cifar, options.samples, options.seed)
        key = f"{data}-{options.samples}" + (f"-{options.seed}" if options.seed else "")
        for state in [untrained(pools, options.seed), *trained(pools, TRAINED_TO, options.cache, key, options.seed)]:
            scores = table(state, pools, options.batch_sizes, numbers, peer is not None)
            accuracies = f"{state.train_accuracy:.0%} of the clients' images, {state.test_accuracy:.0%} of others"
            show(f"{data}, {classes} classes, {state.name} (right on {accuracies})", scores, options.batch_sizes)
            short = {size: round(shortfall(scores, size), 4) for size in options.batch_sizes}
            print(f"\n`auto` below the best single rule by at most {max(short.values()):.3f}", flush=True)
            accuracy = {"train_accuracy": state.train_accuracy, "test_accuracy": state.test_accuracy}
            row = {"data": data, "classes": classes, "state": state.name, **accuracy, "batches": options.batches}
            results.append({**row, "shortfall": short, "scores": columns(scores)})
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(readable({**facts, "tables": results}))


if __name__ == "__main__":
    main()
