"""Images out of gradients of batches: our attacks beside breaching's, on the same gradients, by the same scores.

    python benchmarks/pictures.py --cifar FOLDER --attack token_matching breaching:invertinggradients --seconds 180
    python benchmarks/pictures.py --cifar FOLDER --attack 'gradvit:{"priors": {}}' gradvit --states fresh --batch-sizes 4
    python benchmarks/pictures.py --check

The victims are those of picture_states.py. Batch k is drawn from the training images of client k, which the trained victims
have seen, as a federation's clients; `--pictures test` takes images that no client holds. No image is drawn twice. The
batch size and the normalization are granted; labels are recovered, also those that breaching is given. An attack is named
with its parameters as JSON behind a colon; of `breaching:CONFIG` these are overrides of its configuration
(`regularization.total_variation.scale`). breaching makes as many iterations as it can in `--seconds` of wall time at its own
pace, so that its step sizes run their course; ours take the time they take. Scores are means over batches with a 95%
bootstrap interval. The best control is the highest of grey, each image's own mean color and the data set's mean; `wrong
update` is what the same attack found in the next batch's gradient, scored on this batch. Every attempt is one row of the
output, and a row that is there already is not made again, unless the attack's defaults have changed; `--again` also makes
those again that an earlier version of the attacks' sources made. `--check` shows that breaching is used as it should be.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from attack_sources import digests, is_current
from breaching_labels import version
from breaching_pictures import check
from picture_attempts import PEER, Method, attempt, method, named, scored
from picture_cases import Case, cases
from picture_results import Results, Row, place, table
from picture_states import STATES, make_plan, states
from safetensors.torch import load_file, save_file
from victims import State, all_in_memory

from fedsim import models, plugins
from fedsim.defense import Defense
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding
from fedsim.metrics.scoring import score
from fedsim.scenario import ModelPart
from fedsim.source import Source


class Bench:
    """Attempts on the cells of one command line, kept in its output and findings."""

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        self._options, self._results = options, results

    def run(self, state: State, given: Sequence[Case], chosen: Sequence[Method], budget: float | None) -> list[Row]:
        """Return the rows of one state and batch size; all attacks on a batch come before the next batch."""
        rows = [[self._row(case, state, each, budget) for each in chosen] for case in given]
        for number, case in enumerate(given):
            for index, each in enumerate(chosen):
                rows[number][index] = self._known(rows[number][index]) or self._make(case, each, rows[number][index])
        for number, case in enumerate(given):
            others = rows[(number + 1) % len(given)]
            for row, other in zip(rows[number], others, strict=True):
                if len(given) > 1:
                    self._add_wrong(case, row, other)
        return [row for each in rows for row in each]

    def _row(self, case: Case, state: State, each: Method, budget: float | None) -> Row:
        options = self._options
        return {
            "attack": each.name,
            "label": each.label,
            "params": each.params,
            "state": state.name,
            "batch_size": len(case.truth.labels),
            "batch": case.number,
            "seed": options.seed,
            "defense": options.defense,
            "auxiliary": options.auxiliary,
            "threads": options.threads,
            "budget": None if each.attack else budget,
            "pictures": options.pictures,
            "digest": case.digest,
        }

    def _known(self, row: Row) -> Row | None:
        known = self._results.find(row)
        is_stale = known is not None and not is_current(made_by(known)) and not row["attack"].startswith(PEER)
        return None if is_stale and self._options.again else known

    def _make(self, case: Case, each: Method, row: Row) -> Row:
        row = {**row, "code": "".join(digests([_attack(row)]).values()), "controls": case.controls}
        try:
            finding, facts = attempt(case, each, self._options.seed, row["budget"])
            row |= facts | scored(case, finding)
        except AttackRefusedError as error:
            row |= {"refused": str(error)}
        else:
            assert finding.images is not None
            self._findings(row).parent.mkdir(parents=True, exist_ok=True)
            save_file({"images": finding.images.contiguous()}, self._findings(row))
        self._results.put(row)
        said = row.get("refused") or f"{sum(row['psnr']) / len(row['psnr']):.1f} dB in {row['seconds']:.0f} s"
        print(f"{row['state']}, batch {case.number} of {row['batch_size']}, {each.label}: {said}", flush=True)
        return row

    def _add_wrong(self, case: Case, row: Row, other: Row) -> None:
        """Score what the same attack found in another batch's gradient, where that is kept."""
        if "wrong_update" in row or "refused" in {**row, **other} or not self._findings(other).exists():
            return
        wrong = score(["psnr"], Finding(images=load_file(self._findings(other))["images"]), case.truth)
        row["wrong_update"] = wrong["psnr"].value
        self._results.put(row)

    def _findings(self, row: Row) -> Path:
        folder: Path = self._options.findings
        return folder / f"{hashlib.sha256(place(row).encode()).hexdigest()[:16]}.safetensors"


def made_by(row: Row) -> dict[str, str]:
    """Return the attack of a row, with the digest of its code."""
    return {_attack(row): row["code"]}


def _attack(row: Row) -> str:
    """Return the name of the attack of fedsim in a row; breaching is given the labels that ours finds."""
    return "label_recovery" if row["attack"].startswith(PEER) else str(row["attack"])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet")
    parser.add_argument("--attack", nargs="+", default=[], metavar="NAME[:{...}]", help="also breaching:CONFIG[:{...}]")
    parser.add_argument("--states", nargs="+", default=list(STATES), choices=STATES)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument(
        "--pictures", choices=("train", "test"), default="train", help="those of a client, or those of none"
    )
    parser.add_argument("--batches", type=int, default=5, help="of every size")
    parser.add_argument(
        "--seconds", type=float, nargs="+", help="of breaching a batch: one number, or one a batch size"
    )
    parser.add_argument("--defense", metavar="NAME[:{...}]", help="of the gradient, such as dp_noise")
    parser.add_argument("--auxiliary", action="store_true", help="grant the attacker 256 other images")
    parser.add_argument("--again", action="store_true", help="where the attacks' sources have changed since")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the attacks")
    parser.add_argument("--cache", type=Path, default=Path("runs/picture_states"), help="folder of trained weights")
    parser.add_argument("--findings", type=Path, default=Path("runs/picture_findings"), help="folder of what was found")
    parser.add_argument("--output", type=Path, default=Path("runs/pictures.json"))
    parser.add_argument("--check", action="store_true", help="check that breaching is used as it should be, and end")
    options = parser.parse_args(arguments)
    peers = options.check or any(text.startswith(PEER) for text in options.attack)
    if peers and version() is None:
        parser.error('breaching is not installed: pip install -e ".[bench]".')
    if options.check:
        return options
    if options.cifar is None or not options.attack:
        parser.error("--cifar and --attack are needed.")
    budgets = options.seconds or []
    if peers and not budgets:
        parser.error("--seconds is needed for breaching.")
    if len(budgets) not in (0, 1, len(options.batch_sizes)):
        parser.error(f"--seconds: expected one number, or {len(options.batch_sizes)}, got {len(budgets)}.")
    return options


def checked() -> int:
    """Check the adapter of breaching on two images; return the exit status."""
    source: Source = plugins.build("data", Source, "photos", {"image_size": 32}, "data")
    pictures = source.load(0).train.read([0, 1]).images
    faults = check(pictures, models.build(ModelPart(name="vit_mini"), 10, 32, 0))
    print("\n".join(faults) or "breaching is used as it should be")
    return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attempts that are missing, and print the table."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    if options.check:
        return checked()
    chosen = [method(text) for text in options.attack]
    defense = None
    if options.defense:
        defense = plugins.build("defenses", Defense, *named(options.defense), "defense")
    plan = make_plan(options.cifar, options.seed)
    pools = all_in_memory(plan.data.pools)
    data = dataclasses.replace(plan.data, pools=pools)
    victims = states(plan, pools, options.states, options.cache)
    results = Results(options.output)
    results.note("environment", {"breaching": version(), "torch": torch.__version__})
    for victim in victims:
        known = {"train_accuracy": victim.train_accuracy, "test_accuracy": victim.test_accuracy}
        results.note(f"{victim.name}, seed {options.seed}", {"pictures": len(pools.train), **known})
    budgets = options.seconds or [None]
    budgets = budgets * len(options.batch_sizes) if len(budgets) == 1 else budgets
    bench, rows = Bench(options, results), []
    for victim in victims:
        for size, budget in zip(options.batch_sizes, budgets, strict=True):
            given = cases(
                victim, data, options.pictures, size, options.batches, options.seed, defense, options.auxiliary
            )
            rows += bench.run(victim, given, chosen, budget)
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
