"""What the observer costs: the same federation with and without it, in turn, as ratios of wall time.

    python benchmarks/capture_cost.py --pairs 5 --out benchmarks/results/capture_cost.json
    python benchmarks/capture_cost.py --engine deployment --pairs 3 --rounds 3

A ViT of 5.4 M parameters, 4 clients, one local epoch over 100 images (`--local-steps N` for N steps instead). Each
pair trains twice, first one way round, then the other, so that drift of the machine cancels; the ratio of each pair's
round times is printed, and their median, with the load of the machine before each pair. On a machine that others use, only the
median of several pairs says something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from fedsim.federation.engine import train
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse

SCENARIO = {
    "name": "capture-cost",
    "data": {"name": "shapes", "samples": 400, "test_samples": 100, "auxiliary_samples": 10},
    "model": {"name": "vit_tiny_patch16_224", "kwargs": {"img_size": 32, "patch_size": 4}},
    "training": {"batch_size": 16, "shares": "delta"},
    "attacks": [],
    "federation": {"clients": 4},
}


def seconds(plan: planning.Plan, folder: RunFolder | None) -> float:
    """Return the wall time from the first to the last evaluation: rounds alone, without the start of the engine."""
    stamps: list[float] = []
    train(plan, folder, lambda line: stamps.append(time.perf_counter()))
    return stamps[-1] - stamps[0]


def main() -> None:
    """Run the pairs, print the ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, help="steps on batches of 16 instead of an epoch")
    parser.add_argument("--engine", default="inline", choices=["inline", "ray", "deployment"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    content = {**SCENARIO, "engine": options.engine}
    content["federation"] = {**SCENARIO["federation"], "rounds": options.rounds}
    work = {"local_steps": options.local_steps} if options.local_steps else {"local_epochs": 1}
    content["training"] = {**SCENARIO["training"], **work}
    plan = planning.make(parse(content, "benchmark"))
    rows = []
    for pair in range(options.pairs):
        times: dict[str, float] = {}
        load = os.getloadavg()[0]
        for observed in (True, False) if pair % 2 else (False, True):
            scratch = Path(tempfile.mkdtemp(prefix="capture-cost-"))
            folder = RunFolder.create(scratch / "run", plan.scenario) if observed else None
            times["observed" if observed else "plain"] = seconds(plan, folder)
            shutil.rmtree(scratch)
        rows.append({**times, "ratio": times["observed"] / times["plain"], "load": load})
        print(
            f"pair {pair + 1}: plain {times['plain']:.2f} s, observed {times['observed']:.2f} s, "
            f"ratio {rows[-1]['ratio']:.3f}, load {load:.1f}",
            flush=True,
        )
    median = statistics.median(row["ratio"] for row in rows)
    print(f"median ratio {median:.3f} ({options.engine}, {options.rounds} rounds, {work})")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"scenario": content, "pairs": rows, "median_ratio": median}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
