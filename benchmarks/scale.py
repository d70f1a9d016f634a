"""What many clients cost on one machine: memory over rounds, time and bytes of an update, by the number of participants.

    python benchmarks/scale.py --clients 200 --rounds 20
    python benchmarks/scale.py --clients 200 --rounds 20 --audit --keep none
    python benchmarks/scale.py --clients 1000 --fraction 0.02 --rounds 20
    python benchmarks/scale.py --participants 25,50,100,200 --rounds 4

Runs a scenario on the inline engine, each run in a process of its own, and prints a line for it: `first` and `last` are the
mean of the first and the last quarter of the rounds, without the first round, which loads what all share. Processor time is
that of the process that trains; an audit works beside it in another one. Memory is the resident set of the process that trains.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse
from fedsim.simulation import Progress, simulate

_IMAGES = 4  # of a client
_MEBIBYTE = 2**20


def main() -> None:
    """Print a table with a line for each run; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the clients that takes part in a round")
    parser.add_argument("--participants", help="numbers of clients, all of which take part: a run for each")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", default="vit_nano")
    parser.add_argument("--audit", action="store_true", help="attack every update with label_count beside the training")
    parser.add_argument("--keep", default="all", help="audit.keep_updates")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.participants.split(",")] if options.participants else [options.clients]
    rows = []
    print(
        "| clients | participants | audit | CPU s a participant, first / last | wall s a round | MiB first / last | "
        "bytes an update | requests a round | MiB on disk |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in sizes:
        # A process of its own, so that no run meets the memory that another has freed.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measured, scenario(options, size)).result()
        rows.append(row)
        print(_line(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


def scenario(options: argparse.Namespace, clients: int) -> dict[str, Any]:
    """Return the scenario of a run."""
    return {
        "name": "scale",
        "engine": "inline",
        "data": {"name": "shapes", "samples": _IMAGES * clients, "test_samples": 16, "auxiliary_samples": 8},
        "model": {"name": options.model},
        "federation": {"clients": clients, "rounds": options.rounds, "fraction": options.fraction},
        "training": {"batch_size": 2, "local_steps": 1, "shares": "delta"},
        "threat": {"grants": ["batch_size", "training"]},
        "attacks": ["label_count"] if options.audit else [],
        "audit": {"processes": 1, "metrics": ["label_recall"], "calibrate": "none", "keep_updates": options.keep},
    }


def measured(content: Mapping[str, Any]) -> dict[str, Any]:
    """Train, audit where there is an attack, and return what it took."""
    plan = planning.make(parse(dict(content), "benchmark"))
    stamps: list[tuple[float, float, float]] = []
    participants: list[int] = []

    def on_round(line: dict[str, Any]) -> None:
        stamps.append((time.process_time(), time.perf_counter(), resident()))
        participants.append(len(line["participants"]))

    with tempfile.TemporaryDirectory(prefix="fedsim-scale-") as scratch:
        folder = RunFolder.create(Path(scratch) / "run", plan.scenario)
        began = time.perf_counter()
        records = simulate(plan, folder, Progress(on_round=on_round))
        whole = time.perf_counter() - began
        sizes = [path.stat().st_size for path in folder.path.rglob("*") if path.is_file()]
        update = next((folder.path / "captures").glob("round-0001/global.safetensors")).stat().st_size
    rounds = list(zip(stamps[1:], stamps[2:], participants[2:], strict=False))
    cpu = [(after[0] - before[0]) / count for before, after, count in rounds]
    quarter = max(1, len(rounds) // 4)
    return {
        "clients": content["federation"]["clients"],
        "participants": statistics.mean(participants[1:]),
        "rounds": content["federation"]["rounds"],
        "audit": bool(content["attacks"]),
        "keep_updates": content["audit"]["keep_updates"],
        "records": len(records),
        "cpu_seconds_a_participant": [statistics.mean(cpu[:quarter]), statistics.mean(cpu[-quarter:])],
        "wall_seconds_a_round": statistics.mean(after[1] - before[1] for before, after, _ in rounds),
        "wall_seconds_in_all": whole,
        "mebibytes": [
            statistics.mean(stamp[2] for stamp in part) for part in (stamps[2 : 2 + quarter], stamps[-quarter:])
        ],
        "mebibytes_by_round": [round(stamp[2], 1) for stamp in stamps],
        "bytes_an_update": update,
        "mebibytes_on_disk": sum(sizes) / _MEBIBYTE,
        "files": len(sizes),
        "load": os.getloadavg()[0],
    }


def resident() -> float:
    """Return the resident set of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE


def _line(row: Mapping[str, Any]) -> str:
    def pair(values: Sequence[float], digits: int) -> str:
        return " / ".join(f"{value:.{digits}f}" for value in values)

    cells = (
        row["clients"],
        f"{row['participants']:.0f}",
        f"{row['records']} records, keeps {row['keep_updates']}" if row["audit"] else "none",
        pair(row["cpu_seconds_a_participant"], 4),
        f"{row['wall_seconds_a_round']:.2f}",
        pair(row["mebibytes"], 0),
        f"{row['bytes_an_update']:,}",
        f"{row['participants']:.0f}",
        f"{row['mebibytes_on_disk']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
