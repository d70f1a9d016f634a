"""MIMIR's pre-training before adversarial training, beside adversarial training alone at equal compute of the clients.

    python benchmarks/mimir_table.py --pictures FOLDER
    python benchmarks/mimir_table.py --pictures FOLDER --seeds 5 --pretraining 40 --out FOLDER_OF_RUNS

FOLDER holds CIFAR-10 as train*.parquet and test*.parquet. Each seed has two arms. One pre-trains for some rounds, and then
trains adversarially from that encoder; the other trains adversarially from drawn weights, and for as many rounds more as the
pre-training is worth in processor time of a client, measured on the same round in turns. Prints accuracy and PGD-20 accuracy
of each arm, its mean and range over seeds, and the difference seed by seed. Finished runs in the folder are read again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from client_time import seconds_of
from defense_table import spread, table

import fedsim
from fedsim.api import Run
from fedsim.planning import preparation as planning
from fedsim.scenario import parse

PRETRAINING = {"name": "mimir"}
TRAINING = {"name": "adversarial_training", "params": {"steps": 7}}
SCORES = {"PGD-20 at 8/255": "accuracy at epsilon 8/255", "PGD-20 at 64/255": "accuracy at epsilon 64/255"}


def main() -> None:
    """Run both arms for each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of CIFAR-10 as parquet files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining", type=int, default=20, help="rounds of pre-training")
    parser.add_argument("--finetuning", type=int, default=10, help="rounds of adversarial training after it")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one otherwise")
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="mimir-"))
    worth = price(arguments.pictures)
    alone = arguments.finetuning + round(arguments.pretraining * worth)
    print(f"A round of pre-training takes a client {worth:.2f} times as long as one of adversarial training.")
    print(f"{arguments.pretraining} and {arguments.finetuning} rounds, beside {alone} from drawn weights.\n")
    arms: dict[str, list[Run]] = {"mimir, then adversarial training": [], "adversarial training alone": []}
    after, without = arms.values()
    for seed in range(arguments.seeds):
        start = trained(folder, arguments.pictures, "pretraining", seed, arguments.pretraining, PRETRAINING)
        after.append(
            trained(folder, arguments.pictures, "finetuning", seed, arguments.finetuning, TRAINING, start.folder)
        )
        without.append(trained(folder, arguments.pictures, "alone", seed, alone, TRAINING))
    lines = [[name, *(spread(values, ".3f") for values in measured(runs))] for name, runs in arms.items()]
    differences = [
        [one - other for one, other in zip(first, second, strict=True)]
        for first, second in zip(measured(after), measured(without), strict=True)
    ]
    lines.append(["difference, seed by seed", *(spread(values, "+.3f") for values in differences)])
    print(table([f"{arguments.seeds} seeds", "accuracy", *SCORES], lines))


def content(pictures: Path, name: str, seed: int, rounds: int, recipe: dict[str, Any], start: Any) -> dict[str, Any]:
    """Return a scenario as plain data."""
    epsilons = [8 / 255, 64 / 255]
    evaluators = [{"name": "pgd", "rounds": ["last"], "params": {"epsilons": epsilons, "images": 2000, "steps": 20}}]
    return {
        "name": f"mimir-{name}-{seed}",
        "seed": seed,
        "engine": "inline",
        "data": {
            "name": "parquet",
            "path": str(pictures.resolve()),
            "image_size": 32,
            "samples": 2000,
            "test_samples": 2000,
        },
        "model": {"name": "vit_nano", "kwargs": {"patch_size": 4}, "pretrained": start},
        "federation": {"clients": 4, "rounds": rounds},
        "training": {
            "batch_size": 32,
            "local_epochs": 1,
            "learning_rate": 0.002,
            "optimizer": "adamw",
            "shares": "delta",
            "schedule": "cosine",
        },
        "defenses": [recipe],
        "attacks": [],
        "evaluators": [] if recipe is PRETRAINING else evaluators,
    }


def trained(
    folder: Path, pictures: Path, name: str, seed: int, rounds: int, recipe: dict[str, Any], start: Any = False
) -> Run:
    """Return the finished run of an arm, made where there is none."""
    place = folder / f"{name}-{rounds}-rounds-seed-{seed}"
    if (place / "report.html").is_file():
        return fedsim.load(place)
    return fedsim.run(content(pictures, name, seed, rounds, recipe, start if start is False else str(start)), place)


def price(pictures: Path) -> float:
    """Return what a round of pre-training costs a client in rounds of adversarial training."""
    plans = {
        name: planning.make(parse(content(pictures, name, 0, 1, recipe, False), name))
        for name, recipe in (("none", TRAINING), ("pretraining", PRETRAINING))
    }
    seconds = seconds_of(plans, turns=3)
    return statistics.median(seconds["pretraining"]) / statistics.median(seconds["none"])


def measured(runs: list[Run]) -> list[list[float]]:
    """Return accuracy and the scores of each run, score by score."""
    rows = [run.evaluations.set_index("score")["value"] for run in runs]
    finals = [float(run.rounds["accuracy"].iloc[-1]) for run in runs]
    return [finals, *([float(one[score]) for one in rows] for score in SCORES.values())]


if __name__ == "__main__":
    main()
