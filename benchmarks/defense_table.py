"""The table of a sweep over defenses: what each attack finds in the first and the last round, told of the defense and not.

    fedsim sweep defenses_cifar10 --set data.path=FOLDER --keep results
    python benchmarks/defense_table.py sweeps/FOLDER_OF_THE_SWEEP

Means over clients and seeds; the blind control is the best of each attempt. A variant that was not run has no value, since
without a defense none is plain; one that failed or refused says so. What a defense costs a client in time is measured anew, as
client_time.py does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from client_time import TURNS, plans, time_ratios, written

import fedsim
from fedsim.api import Run
from fedsim.sweeping.manifest import Manifest, SweepFolder

METRICS = {"psnr": ("PSNR, dB", ".1f"), "label_recall": ("label recall", ".2f")}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("--turns", type=int, default=TURNS, help="turns that each setting takes where time is measured")
    arguments = parser.parse_args()
    folder = arguments.sweep
    manifest = SweepFolder(folder).read()
    runs = finished(folder, manifest)
    print(costs(runs, time_ratios(plans(folder), arguments.turns)))
    for attack, metric in attacks(runs):
        print(findings(runs, attack, metric))
    hours = sum(cell.seconds or 0 for cell in manifest.cells) / 3600
    lost = [
        f"{cell.setting}, seed {cell.seed}: {cell.reason or cell.status}"
        for cell in manifest.cells
        if cell.status != "finished"
    ]
    print(
        f"{len(manifest.cells) - len(lost)} of {len(manifest.cells)} cells, {hours:.1f} hours of their processes.",
        *lost,
        sep="\n",
    )


def finished(folder: Path, manifest: Manifest) -> dict[str, dict[int, Run]]:
    """Return setting -> seed -> run of the cells that are finished."""
    found: dict[str, dict[int, Run]] = {}
    for cell in manifest.cells:
        if cell.status == "finished":
            found.setdefault(cell.setting, {})[cell.seed] = fedsim.load(SweepFolder(folder).run(cell.folder))
    return found


def attacks(runs: dict[str, dict[int, Run]]) -> list[tuple[str, str]]:
    """Return the attacks, without their variant, and the metrics that each is scored by."""
    found: dict[tuple[str, str], None] = {}
    for run in _all(runs):
        for row in run.records.itertuples():
            if row.metric in METRICS:
                found[_base(row.attack), row.metric] = None
    return list(found)


def costs(runs: dict[str, dict[int, Run]], times: dict[str, list[float]]) -> str:
    """Return accuracy, epsilon and time by setting."""
    lines = []
    for setting, by_seed in runs.items():
        accuracies = [float(run.rounds["accuracy"].iloc[-1]) for run in by_seed.values()]
        verdicts = ", ".join(dict.fromkeys(run.verdict for run in by_seed.values()))
        lines.append(
            [
                setting,
                spread(accuracies, ".3f"),
                largest_epsilon(by_seed.values()),
                written(times[setting]),
                verdicts,
            ]
        )
    return table(["setting", "accuracy", "epsilon", "client's time", "verdict of the run"], lines)


def largest_epsilon(runs: Iterable[Run]) -> str:
    """Return the largest epsilon of any client; empty where none claims one, and `none` where one client has no finite one."""
    claimed = [run.budgets["epsilon"] for run in runs if len(run.budgets)]
    if not claimed:
        return ""
    return (
        "none" if any(column.isna().any() for column in claimed) else f"{max(column.max() for column in claimed):.3g}"
    )


def findings(runs: dict[str, dict[int, Run]], attack: str, metric: str) -> str:
    """Return what both variants of an attack find by setting, in the first and the last audited round."""
    title, written = METRICS[metric]
    lines = []
    for setting, by_seed in runs.items():
        line = [setting]
        for variant in ("aware", "plain"):
            for place in (0, -1):
                shown = [_shown(run, attack, variant, metric, place) for run in by_seed.values()]
                values = [value for own, _ in shown for value, _ in own]
                statuses = dict.fromkeys(status for _, own in shown for status in own)
                line.append(", ".join([spread(values, written), *statuses] if values else statuses))
        last = [_shown(run, attack, "aware", metric, -1)[0] for run in by_seed.values()]
        controls = [control for own in last for _, control in own]
        lines.append([*line, spread(controls, written)])
    heads = ["aware, first", "aware, last", "plain, first", "plain, last", "blind control, last"]
    return table([f"`{attack}`: {title}", *heads], lines)


def _shown(run: Run, attack: str, variant: str, metric: str, place: int) -> tuple[list[tuple[float, float]], list[str]]:
    """Return value and best control of each scored attempt of a round, and the statuses of attempts that failed or refused."""
    rows = run.records
    rounds = sorted(set(rows["round"]))
    rows = rows[(rows["attack"].map(_base) == attack) & (rows["round"] == rounds[place])]
    rows = rows[(rows["variant"] == "plain") == (variant == "plain")]
    scored = rows[(rows["metric"] == metric) & rows["value"].notna() & rows["control_value"].notna()]
    values = list(zip(scored["value"].astype(float), scored["control_value"].astype(float), strict=True))
    return values, [status for status in rows["status"] if status != "found"]


def _base(attack: str) -> str:
    return attack.partition(" (")[0]


def _all(runs: dict[str, dict[int, Run]]) -> Iterable[Run]:
    return (run for by_seed in runs.values() for run in by_seed.values())


def spread(values: Sequence[float], written: str) -> str:
    """Return the mean and the range of several values; empty where there is none."""
    if not values:
        return ""
    return f"{statistics.fmean(values):{written}} [{min(values):{written}}, {max(values):{written}}]"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    main()
