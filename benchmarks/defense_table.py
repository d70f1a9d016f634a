"""The table of a sweep over defenses: what each attack finds in the first and the last round, told of the defense and not.

    fedsim sweep defenses_cifar10 --set data.path=FOLDER --keep results
    python benchmarks/defense_table.py sweeps/FOLDER_OF_THE_SWEEP

Means over clients and seeds; the blind control is the best of each attempt. Time is that of a round, beside the setting without
defenses, seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import fedsim
from fedsim.api import Run
from fedsim.sweeping.manifest import Manifest, SweepFolder

NONE = "none"
METRICS = {"psnr": ("PSNR, dB", ".1f"), "label_recall": ("label recall", ".2f")}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    folder = parser.parse_args().sweep
    manifest = SweepFolder(folder).read()
    runs = finished(folder, manifest)
    print(costs(runs))
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


def costs(runs: dict[str, dict[int, Run]]) -> str:
    """Return accuracy, epsilon and time by setting."""
    lines = []
    for setting, by_seed in runs.items():
        ratios = [
            _seconds(run) / _seconds(runs[NONE][seed])
            for seed, run in by_seed.items()
            if NONE in runs and seed in runs[NONE]
        ]
        epsilons = [float(run.budgets["epsilon"].max()) for run in by_seed.values() if len(run.budgets)]
        epsilon = f"{max(epsilons):.3g}" if epsilons and all(value == value for value in epsilons) else ""
        accuracies = [float(run.rounds["accuracy"].iloc[-1]) for run in by_seed.values()]
        verdicts = ", ".join(dict.fromkeys(run.verdict for run in by_seed.values()))
        lines.append([setting, spread(accuracies, ".3f"), epsilon, spread(ratios, ".2f"), verdicts])
    return table(["setting", "accuracy", "epsilon", "time of a round", "verdict of the run"], lines)


def findings(runs: dict[str, dict[int, Run]], attack: str, metric: str) -> str:
    """Return what both variants of an attack find by setting, in the first and the last audited round."""
    title, written = METRICS[metric]
    lines = []
    for setting, by_seed in runs.items():
        line = [setting]
        for variant in ("aware", "plain"):
            for place in (0, -1):
                values = [
                    value for run in by_seed.values() for value, _ in _scores(run, attack, variant, metric, place)
                ]
                line.append(spread(values, written))
        controls = [control for run in by_seed.values() for _, control in _scores(run, attack, "aware", metric, -1)]
        lines.append([*line, spread(controls, written)])
    heads = ["aware, first", "aware, last", "plain, first", "plain, last", "blind control, last"]
    return table([f"`{attack}`: {title}", *heads], lines)


def _scores(run: Run, attack: str, variant: str, metric: str, place: int) -> list[tuple[float, float]]:
    """Return value and best control of each attempt of a round; without a defense the plain variant is the aware one."""
    rows = run.records
    rows = rows[(rows["metric"] == metric) & (rows["attack"].map(_base) == attack) & rows["value"].notna()]
    rounds = sorted(set(rows["round"]))
    if not rounds:
        return []
    rows = rows[rows["round"] == rounds[place]]
    is_plain = rows["variant"] == "plain"
    chosen = rows[is_plain] if variant == "plain" and is_plain.any() else rows[~is_plain]
    return [
        (float(row.value), float(row.control_value)) for row in chosen.itertuples() if row.control_value is not None
    ]


def _base(attack: str) -> str:
    return attack.partition(" (")[0]


def _all(runs: dict[str, dict[int, Run]]) -> Iterable[Run]:
    return (run for by_seed in runs.values() for run in by_seed.values())


def _seconds(run: Run) -> float:
    return float(run.rounds["seconds"][1:].mean())


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
