"""Iterations a second and peak memory of one of our attacks beside one of breaching's, on the same gradient.

    python benchmarks/speed.py --attack inverting_gradients --peer invertinggradients --output benchmarks/results/speed.json

An untrained ViT of 32 pixels, patches of 4, width 192, depth 4; labels are granted. Name two attacks with the same distance of
gradients. Each pair measures both, in turn one first and the other first, so that drift of the machine cancels: the time of
1 + N iterations less that of one, so that neither the start nor the choice at the end counts. The figure is the median of the
pairs' ratios, with a 95% bootstrap interval. Memory is what the peak of a fresh process grows by over a few iterations, after
one iteration on a far smaller model has loaded what is loaded once; the gradient comes from a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from breaching_labels import version
from breaching_pictures import reconstruct
from picture_attempts import PEER, named
from safetensors.torch import load_file, save_file
from scipy.stats import bootstrap

from fedsim import models, plugins
from fedsim.attack import Attack
from fedsim.audit.threat import ModelFactory
from fedsim.exchange import Observation, Update
from fedsim.recording.files import write_atomically
from fedsim.scenario import ModelPart
from fedsim.seeds import numpy_generator, torch_generator
from fedsim.source import Source

CLASSES, SIZE = 10, 32
MODEL = ModelPart(name="vit_mini")
_TINY = ModelPart(name="vit_nano", kwargs={"embed_dim": 16, "depth": 1})
_MEMORY_STEPS, _MEMORY_RUNS, _RESAMPLES = 3, 3, 2000

Descend = Callable[[Observation, int], None]


class Pace(NamedTuple):
    """Seconds, of an iteration or of several."""

    wall: float
    processor: float


def descent(text: str) -> Descend:
    """Return the attack that a text names, as a function of an observation and the number of iterations."""
    name, params = named(text)
    if name.startswith(PEER):
        version()  # imports it

        def theirs(seen: Observation, steps: int) -> None:
            assert seen.labels is not None
            reconstruct(seen, seen.labels, name.removeprefix(PEER), params, steps, seed=0)

        return theirs
    plugins.build("attacks", Attack, name, params, "attack")

    def ours(seen: Observation, steps: int) -> None:
        attack: Attack = plugins.build("attacks", Attack, name, {**params, "steps": steps}, "attack")
        attack.run(seen, torch_generator(0, "speed"))

    return ours


def update_of(part: ModelPart, batch_size: int) -> Update:
    """Return the gradient of a batch of photographs."""
    source: Source = plugins.build("data", Source, "photos", {"image_size": SIZE}, "data")
    model, pictures = models.build(part, CLASSES, SIZE, 0), source.load(0).train.read(range(batch_size)).images
    inputs = models.normalization(model).normalize(pictures)
    return Update(1, 0, "gradient", models.gradient_of(model, inputs, _labels(batch_size)), batch_size)


def observed(part: ModelPart, update: Update) -> Observation:
    """Return what the attacker sees of a gradient."""
    model, batch_size = models.build(part, CLASSES, SIZE, 0), update.num_examples
    return Observation(
        update,
        ModelFactory(model),
        (3, SIZE, SIZE),
        CLASSES,
        batch_size=batch_size,
        labels=_labels(batch_size),
        normalization=models.normalization(model),
    )


def _labels(batch_size: int) -> torch.Tensor:
    return torch.arange(batch_size) % CLASSES


def pace(descend: Descend, seen: Observation, steps: int) -> Pace:
    """Return the time of one iteration: that of 1 + `steps` less that of 1."""

    def spent(count: int) -> Pace:
        start = Pace(time.perf_counter(), time.process_time())
        descend(seen, count)
        return Pace(time.perf_counter() - start.wall, time.process_time() - start.processor)

    once, all_of_them = spent(1), spent(1 + steps)
    return Pace((all_of_them.wall - once.wall) / steps, (all_of_them.processor - once.processor) / steps)


def peak_growth(text: str, file: Path, batch_size: int, threads: int) -> float:
    """Return by how many MiB an attack raises the peak of this process, which should be a fresh one."""
    torch.set_num_threads(threads)
    descend = descent(text)
    descend(observed(_TINY, update_of(_TINY, 1)), 1)
    seen = observed(MODEL, Update(1, 0, "gradient", load_file(file), batch_size))
    before = _peak()
    descend(seen, _MEMORY_STEPS)
    return _peak() - before


def _peak() -> float:
    """Return the peak resident memory of this process in MiB; ru_maxrss would count the parent's, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory(text: str, update: Update, threads: int) -> float:
    """Return the median over fresh processes of an attack's memory in MiB."""
    grown = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradient.safetensors"
        # Autograd gives `cls_token` and `pos_embed` one memory, which the format refuses.
        save_file({name: tensor.clone() for name, tensor in update.tensors.items()}, file)
        for _ in range(_MEMORY_RUNS):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                grown.append(fresh.submit(peak_growth, text, file, update.num_examples, threads).result())
    return statistics.median(grown)


def median_interval(ratios: Sequence[float]) -> list[float]:
    """Return a 95% percentile bootstrap interval of the median; BCa rests on the jackknife, which fails for medians."""
    drawn = bootstrap(
        (np.asarray(ratios),),
        np.median,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=numpy_generator(0, "speed"),
    )
    return [float(bound) for bound in drawn.confidence_interval]


def cell(ours: str, theirs: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return speed and memory of both attacks at one batch size."""
    update = update_of(MODEL, batch_size)
    seen, both = observed(MODEL, update), {"ours": descent(ours), "theirs": descent(theirs)}
    pairs: list[dict[str, Any]] = []
    for descend in both.values():
        descend(seen, 1)  # loads what is loaded once
    for number in range(options.pairs):
        order = ("theirs", "ours") if number % 2 else ("ours", "theirs")
        found = {name: pace(both[name], seen, options.steps) for name in order}
        pairs.append({name: found[name]._asdict() for name in both})
    row: dict[str, Any] = {"batch_size": batch_size, "pairs": pairs}
    for clock in Pace._fields:
        ratios = [pair["theirs"][clock] / pair["ours"][clock] for pair in pairs]
        row[f"{clock}_speedup"] = {"median": statistics.median(ratios), "interval": median_interval(ratios)}
    taken = {"ours": memory(ours, update, options.threads), "theirs": memory(theirs, update, options.threads)}
    return {**row, "memory": {**taken, "ratio": taken["ours"] / taken["theirs"]}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--attack", default="inverting_gradients", metavar="NAME[:{...}]", help="with a parameter steps"
    )
    parser.add_argument("--peer", default="invertinggradients", metavar="CONFIG[:{...}]", help="of breaching")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="iterations of which the time is taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    theirs, cells = PEER + options.peer, []
    print("| batch | ours, its/s | theirs, its/s | speed-up | of processor time | ours, MiB | theirs, MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for batch_size in options.batch_sizes:
        cells.append(cell(options.attack, theirs, batch_size, options))
        print(line(cells[-1]), flush=True)
        if options.output:
            facts = {"ours": options.attack, "theirs": theirs, "breaching": version(), "torch": torch.__version__}
            content = {**facts, "threads": options.threads, "steps": options.steps, "cells": cells}
            write_atomically(options.output, json.dumps(content, indent=1) + "\n")


def line(found: dict[str, Any]) -> str:
    """Return a cell as a row of the Markdown table."""
    rates = [statistics.median(1 / pair[name]["wall"] for pair in found["pairs"]) for name in ("ours", "theirs")]
    speedups = []
    for clock in Pace._fields:
        median, (low, high) = (found[f"{clock}_speedup"][key] for key in ("median", "interval"))
        speedups.append(f"{median:.2f} [{low:.2f}, {high:.2f}]")
    used = found["memory"]
    columns = [f"{found['batch_size']}", *(f"{rate:.1f}" for rate in rates), *speedups]
    return "| " + " | ".join([*columns, f"{used['ours']:.0f}", f"{used['theirs']:.0f}", f"{used['ratio']:.2f}"]) + " |"


if __name__ == "__main__":
    main()
