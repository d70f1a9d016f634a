"""The table of a sweep that asks evaluators: each score of the last round, by setting.

    fedsim sweep robustness_cifar10 --set data.path=FOLDER --keep results
    python benchmarks/robustness_table.py sweeps/FOLDER_OF_THE_SWEEP

Means over seeds, their range in brackets. Scores that the evaluator's own checks doubt are marked `?`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

import pandas
from defense_table import finished, spread, table

from fedsim.api import Run
from fedsim.sweeping.manifest import SweepFolder

_BOUND = re.compile(r", 95% (from|to)$")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--scores", nargs="*", default=["accuracy"], help="first words of the scores to show")
    arguments = parser.parse_args()
    manifest = SweepFolder(arguments.sweep).read()
    runs = finished(arguments.sweep, manifest)
    names = scores(run for by_seed in runs.values() for run in by_seed.values())
    names = [(evaluator, score) for evaluator, score in names if score.startswith(tuple(arguments.scores))]
    lines = []
    for setting, by_seed in runs.items():
        finals = [float(run.rounds["accuracy"].iloc[-1]) for run in by_seed.values()]
        cells = [cell([values_of(run, *name) for run in by_seed.values()]) for name in names]
        lines.append([setting, str(len(by_seed)), spread(finals, ".3f"), *cells])
    heads = [f"`{evaluator}`: {score}" for evaluator, score in names]
    print(table(["setting", "seeds", "accuracy, all test images", *heads], lines))
    hours = sum(one.seconds or 0 for one in manifest.cells) / 3600
    print(f"{sum(map(len, runs.values()))} of {len(manifest.cells)} cells, {hours:.1f} hours of their processes.")


def scores(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Return evaluator and score of all that was asked after the last round, without the bounds of intervals."""
    found: dict[tuple[str, str], None] = {}
    for run in runs:
        for row in last(run).itertuples():
            if not _BOUND.search(str(row.score)):
                found[str(row.evaluator), str(row.score)] = None
    return list(found)


def last(run: Run) -> pandas.DataFrame:
    """Return the scores after the last round."""
    rows = run.evaluations
    return rows[rows["round"] == rows["round"].max()] if len(rows) else rows


def values_of(run: Run, evaluator: str, score: str) -> pandas.DataFrame:
    """Return the rows of one score of a run; none where the evaluator failed or refused."""
    rows = last(run)
    return rows[(rows["evaluator"] == evaluator) & (rows["score"] == score) & rows["value"].notna()]


def cell(found: list[pandas.DataFrame]) -> str:
    """Return mean and range over seeds, marked where the evaluator doubts one."""
    values = [float(rows["value"].iloc[0]) for rows in found if len(rows)]
    doubted = any(bool(rows["is_inconclusive"].iloc[0]) for rows in found if len(rows))
    return f"{spread(values, '.3f')}{' ?' if doubted else ''}"


if __name__ == "__main__":
    main()
