"""What a step of adversarial training costs beside the plain one.

    python benchmarks/adversarial_cost.py
    python benchmarks/adversarial_cost.py --models vit_nano vit_mini --batch 64 --steps 7
    python benchmarks/adversarial_cost.py --recipes free mimir

Prints, for each preset, the seconds of the plain step (forward, backward) and the times of that which each recipe takes with
so many steps of its attack (`fast` and `mimir`: one; `free`: four replays). All take turns on one batch of images of 32 pixels,
so that drift of the machine cancels; processor time, one thread: the median quotient of several turns, and in brackets the
lowest and highest. Operation counts predict (2 steps + 3) / 3 plain steps, since the attack computes no gradient of parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from fedsim_defenses.adversarial_training import AdversarialTraining
from fedsim_defenses.ard import ARD
from fedsim_defenses.fast import Fast
from fedsim_defenses.free import Free
from fedsim_defenses.mart import MART
from fedsim_defenses.mimir import MIMIR
from fedsim_defenses.prm import PRM
from fedsim_defenses.trades import TRADES

from fedsim.defense import Defense, LocalStep
from fedsim.federation.training import plain_step
from fedsim.models import build, is_vit, normalization
from fedsim.presets import PRESETS
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator, torch_threads
from fedsim.testing import client_context, random_images

CLASSES = 10


RECIPES = ("adversarial_training", "trades", "mart", "fast", "free", "ard", "prm", "mimir")


def recipes(model: str, steps: int) -> dict[str, Defense]:
    """Return the recipes by name; those for ViTs alone where the preset is one, halfway through their curriculum."""
    found: dict[str, Defense] = {
        "adversarial_training": AdversarialTraining(steps=steps),
        "trades": TRADES(steps=steps),
        "mart": MART(steps=steps),
        "fast": Fast(),
        "free": Free(),
    }
    if is_vit(PRESETS[model].target):
        found |= {"ard": ARD(steps=steps, rise=1.0), "prm": PRM(steps=steps, rise=1.0), "mimir": MIMIR()}
    return found


def ways(name: str, batch: int, steps: int, asked: Sequence[str] = RECIPES) -> dict[str, Callable[[], object]]:
    """Return each way to take a step on one batch, by its name."""
    model = build(ModelPart(name=name), CLASSES, 32, 0)
    chosen = {called: recipe for called, recipe in recipes(name, steps).items() if called in asked}
    for recipe in chosen.values():
        recipe.prepare_model(model)
    pictures = random_images(torch_generator(0, "batch"), batch, CLASSES)
    step = LocalStep(model, normalization(model).normalize(pictures.images), pictures.labels, 0.5)
    # Of `fast`, a round whose look at the accuracy is done.
    context = client_context(batch_size=batch, num_examples=10 * batch, state={"round": 1})

    def take(recipe: Defense | None) -> None:
        model.zero_grad()
        if recipe is None:
            plain_step(step)
        else:
            recipe.train_step(step, context, torch_generator(0, "step"), plain_step)

    found: dict[str, Defense | None] = {"plain": None, **chosen}
    return {called: lambda recipe=recipe: take(recipe) for called, recipe in found.items()}


def seconds(taken: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return the processor time of each turn of each way; the first turn, which warms up, is left out."""
    found: dict[str, list[float]] = {name: [] for name in taken}
    for _ in range(runs + 1):
        for name, take in taken.items():
            started = time.process_time()
            take()
            found[name].append(time.process_time() - started)
    return {name: times[1:] for name, times in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    with torch_threads(1):
        for name in options.models:
            found = seconds(ways(name, options.batch, options.steps, options.recipes), options.runs)
            plain = found.pop("plain")
            print(f"{name}: plain {min(plain):.3f} s for {options.batch} images; times of that:")
            for called, times in found.items():
                turns = [own / other for own, other in zip(times, plain, strict=True)]
                print(f"  {called} {statistics.median(turns):.2f} [{min(turns):.2f}, {max(turns):.2f}]")


if __name__ == "__main__":
    main()
