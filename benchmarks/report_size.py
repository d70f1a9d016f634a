"""What a report costs: processor time, peak memory and size, for a made-up run of many records.

    python benchmarks/report_size.py --clients 50 --rounds 100
    python benchmarks/report_size.py --clients 1000 --rounds 5 --profile

The run has four attacks, two of them of one name, so that there are about 4 x clients x rounds records; 20,000 with the
defaults. Half of the clients carry defenses; their attempts are also scored patch by patch, and for them each attack is
calibrated in each round. Records have scores of four images, controls, cautions with numbers, and strips of images; some
failed, and some are missing. The model is evaluated after each round. The report is made in a process of its own, as
`fedsim report` does. `--folder` keeps the run.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim import strips
from fedsim.metrics.ratings import PATCHES, viewed
from fedsim.scenario import yaml_loader
from fedsim.seeds import numpy_generator, torch_generator

RUN = "report-size"
BATCH = 4
GRANTS = ["batch_size", "normalization"]
WORKLOAD = {"pictures": BATCH, "batch_size": BATCH, "steps": 1}
TRIALS = 3  # of a calibration
MISSING = 200  # of so many records one is
ATTACKS: tuple[dict[str, Any], ...] = (
    {"name": "inversion", "params": {"steps": 100, "weight": 0.1}, "recovers": ["images"]},
    {"name": "inversion", "params": {"steps": 400, "weight": 0.1}, "recovers": ["images"]},
    {"name": "closed_form", "params": {"rank": 16}, "recovers": ["images"]},
    {"name": "labels", "params": {}, "recovers": ["labels"]},
)
IMAGE_CONTROLS = {
    "grey": {"psnr": 11.0, "ssim": 0.04},
    "own_mean": {"psnr": 13.0, "ssim": 0.08},
    "dataset_mean": {"psnr": 12.0, "ssim": 0.06},
}


def write_run(folder: Path, clients: int, rounds: int) -> None:
    """Write a run folder of 4 x clients x rounds records."""
    folder.mkdir(parents=True)
    scenario = {
        "name": RUN,
        "version": 1,
        "data": {"name": "shapes"},
        "federation": {"clients": clients, "rounds": rounds},
        "training": {"batch_size": BATCH},
        "defenses": [{"name": "noise", "clients": list(range(0, clients, 2))}],
        "attacks": [{"name": attack["name"], "params": attack["params"]} for attack in ATTACKS],
    }
    (folder / "scenario.yaml").write_text(yaml_loader.dump(scenario))
    (folder / "environment.json").write_text(json.dumps({"origin": "simulated"}))
    (folder / "inputs.json").write_text(json.dumps({"run": RUN}))
    with (folder / "rounds.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _rounds(clients, rounds))
    with (folder / "records.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _records(clients, rounds))
    with (folder / "calibrations.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _calibrations(rounds))
    with (folder / "evaluations.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in _evaluations(rounds))
    (folder / "captures").mkdir()
    with (folder / "captures" / "index.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"key": f"round-{round:04d}/client-{client:03d}", "sha256": "0"}) + "\n"
            for round in range(1, rounds + 1)
            for client in range(clients)
        )
    images = [strips.png_strip(torch.rand(BATCH, 3, 32, 32, generator=torch_generator(n, RUN))) for n in range(8)]
    for round in range(1, rounds + 1):
        (folder / "captures" / f"round-{round:04d}").mkdir()
        for client in range(clients):
            (folder / "captures" / f"round-{round:04d}" / f"client-{client:03d}.safetensors").touch()
            own = folder / "artifacts" / f"round-{round:04d}" / f"client-{client:03d}"
            own.mkdir(parents=True)
            for number, name in enumerate(("originals", *range(len(ATTACKS) - 1))):
                (own / f"{name}.png").write_bytes(images[(round + client + number) % len(images)])


def _rounds(clients: int, rounds: int) -> Iterator[dict[str, Any]]:
    for round in range(rounds + 1):
        budget = {"epsilon": 2.0 + round, "delta": 1e-5, "neighbors": "replace_one"}
        yield {
            "schema": 1,
            "round": round,
            "accuracy": round / (rounds + 1),
            "loss": 2.0 / (round + 1),
            "participants": list(range(clients)) if round else [],
            "failed": {},
            "epsilon": {str(client): budget for client in range(0, clients, 2)} if round else {},
            "seconds": 1.0,
        }


def _records(clients: int, rounds: int) -> Iterator[dict[str, Any]]:
    generator = numpy_generator(0, RUN)
    for round in range(1, rounds + 1):
        for client in range(clients):
            for number, attack in enumerate(ATTACKS):
                record = _record(round, client, number, attack, generator)
                if generator.integers(MISSING):
                    yield record


def _calibrations(rounds: int) -> Iterator[dict[str, Any]]:
    generator = numpy_generator(1, RUN)
    for round in range(1, rounds + 1):
        for number, attack in enumerate(ATTACKS):
            trials = [{"status": "found", **_scored(attack, 15.0 * (number > 0), generator)} for _ in range(TRIALS)]
            yield {
                "schema": 1,
                "run": RUN,
                "round": round,
                "attack": _named(attack),
                "grants": GRANTS,
                "workload": WORKLOAD,
                "status": "found",
                "trials": trials,
            }


def _evaluations(rounds: int) -> Iterator[dict[str, Any]]:
    for round in range(1, rounds + 1):
        yield {
            "schema": 1,
            "run": RUN,
            "round": round,
            "evaluator": {"name": "class_accuracy", "params": {}, "version": "1.0"},
            "status": "found",
            "scores": {f"class {number}": round / rounds for number in range(10)},
            "seconds": 1.0,
            "seed": round,
        }


def _named(attack: dict[str, Any]) -> dict[str, Any]:
    return {**attack, "version": "1.0", "citation": "Ada. 2024. https://example.org"}


def _record(
    round: int, client: int, number: int, attack: dict[str, Any], generator: np.random.Generator
) -> dict[str, Any]:
    place = f"artifacts/round-{round:04d}/client-{client:03d}"
    is_failed = generator.random() < 0.02
    record: dict[str, Any] = {
        "schema": 1,
        "run": RUN,
        "round": round,
        "client": client,
        "attack": _named(attack),
        "defenses": [] if client % 2 else [{"name": "noise", "params": {"scale": 0.5}, "adds_noise": True}],
        "grants": GRANTS,
        "workload": WORKLOAD,
        "inapplicable": [],
        "status": "failed" if is_failed else "found",
        "scores": {},
        "controls": {},
        "cautions": [f"The loss ended at {generator.random():.4f}.", f"{attack['name']} is approximate."],
        "trace": {"loss": float(generator.random()), "starts": 8},
        "message": "ValueError: no step lowers the loss" if is_failed else None,
        "seconds": float(generator.random()),
        "seed": round * 1000 + client,
        "artifacts": {"originals": f"{place}/originals.png"},
    }
    if is_failed:
        return record
    record |= _scored(attack, 15.0 if client % 2 and number == 2 else 0.0, generator)
    if attack["recovers"] == ["images"]:
        record["artifacts"]["reconstructions"] = f"{place}/{number}.png"
        if record["defenses"]:
            own = record["scores"]
            record["scores"] = {**own, **{viewed(name, PATCHES): score for name, score in own.items()}}
            record["controls"] = {
                control: {**values, **{viewed(name, PATCHES): value for name, value in values.items()}}
                for control, values in record["controls"].items()
            }
    return record


def _scored(attack: dict[str, Any], gain: float, generator: np.random.Generator) -> dict[str, Any]:
    if attack["recovers"] == ["labels"]:
        recall = [float(value) for value in generator.integers(0, 2, BATCH)]
        controls = {"prior": {"label_recall": 0.5}, "chance": {"label_recall": 0.4}}
        return {"scores": {"label_recall": _score(recall)}, "controls": controls}
    psnr = [float(11.5 + gain + value) for value in generator.normal(0, 0.5, BATCH)]
    ssim = [float(value) for value in generator.uniform(0.0, 0.1 + gain / 20, BATCH)]
    wrong = {"psnr": float(11.0 + generator.normal(0, 0.5)), "ssim": 0.05}
    return {
        "scores": {"psnr": _score(psnr), "ssim": _score(ssim)},
        "controls": {**IMAGE_CONTROLS, "wrong_update": wrong},
    }


def _score(values: list[float]) -> dict[str, Any]:
    return {"value": float(np.mean(values)), "per_example": values, "worse": "higher"}


def measure(folder: Path, is_profiled: bool) -> None:
    """Make the report of a run in this process, and print what it took."""
    from fedsim.report.rendering import render  # with all that it imports

    before = _peak()
    profile = cProfile.Profile()
    start = time.process_time()
    if is_profiled:
        profile.enable()
    page = render(folder)
    profile.disable()
    seconds = time.process_time() - start
    written = [page, folder / "report.md", *sorted((folder / "tables").iterdir())]
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in written)
    print(f"processor time {seconds:.1f} s; peak memory {_peak():.0f} MB, {before:.0f} MB of it before; {sizes}")
    if is_profiled:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Write the run, make its report in a fresh process, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to keep the run; one that is there is reported on again")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.here:
        measure(options.folder, options.profile)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "run"
        if not folder.exists():
            write_run(folder, options.clients, options.rounds)
        command = [sys.executable, __file__, "--here", "--folder", str(folder)]
        subprocess.run([*command, *(["--profile"] if options.profile else [])], check=True)


if __name__ == "__main__":
    main()
