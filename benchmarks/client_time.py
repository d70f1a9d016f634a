"""What the defenses of a sweep cost a client: the time of its local work in a round beside that without a defense.

    python benchmarks/client_time.py sweeps/FOLDER_OF_THE_SWEEP
    python benchmarks/client_time.py sweeps/FOLDER_OF_THE_SWEEP --turns 31

All settings take turns on the same round of the same client, so that drift of the machine cancels; processor time, one thread:
the median quotient of several turns, and in brackets the lowest and highest. The data of the sweep have to be where they were.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from fedsim.federation.training import local_update
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import torch_threads
from fedsim.sweeping.manifest import SweepFolder

NONE = "none"
TURNS = 15
CLIENT, ROUND = 0, 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--turns", type=int, default=TURNS, help="turns that each setting takes")
    arguments = parser.parse_args()
    print("| setting | client's time |\n|---|---|")
    for setting, ratios in time_ratios(plans(arguments.sweep), arguments.turns).items():
        print(f"| {setting} | {written(ratios)} |")


def plans(folder: Path) -> dict[str, Plan]:
    """Return the plan of the first cell of each setting of a sweep."""
    sweep, found = SweepFolder(folder), {}
    for cell in sweep.read().cells:
        if cell.setting not in found:
            found[cell.setting] = planning.of(RunFolder.open(sweep.run(cell.folder)).scenario())
    return found


def time_ratios(by_setting: Mapping[str, Plan], turns: int) -> dict[str, list[float]]:
    """Return setting -> a client's time in a round divided by that of the setting `none`, one number a turn."""
    seconds = seconds_of(by_setting, turns)
    return {
        setting: [own / plain for own, plain in zip(taken, seconds[NONE], strict=True)]
        for setting, taken in seconds.items()
    }


def seconds_of(by_setting: Mapping[str, Plan], turns: int) -> dict[str, list[float]]:
    """Return setting -> processor time of a client in a round, one number a turn."""
    seconds: dict[str, list[float]] = {setting: [] for setting in by_setting}
    weights = {setting: dict(plan.model().state_dict()) for setting, plan in by_setting.items()}
    with torch_threads(1):
        for turn in range(turns + 1):  # the first warms up
            for setting, plan in by_setting.items():
                began = time.process_time()
                local_update(plan, CLIENT, ROUND, weights[setting])
                if turn:
                    seconds[setting].append(time.process_time() - began)
    return seconds


def written(ratios: list[float]) -> str:
    """Return the median with the lowest and the highest."""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


if __name__ == "__main__":
    main()
