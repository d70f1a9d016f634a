"""Runs of the gallery's scenarios: which there are, and what is kept of each as JSON.

A run is a scenario with the overrides that a reader types behind it; FOLDER stands for a folder of images. The JSON of
a run holds the digest of each attack's code (`attack_sources.py`), the version of torch, accuracy by round, the verdicts,
and of every record the scores and controls; where evaluators were asked, their scores after the last round.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attack_sources import digests

from fedsim import scenario as scenarios
from fedsim.recording.environment import imported_from
from fedsim.recording.files import write_atomically
from fedsim.recording.json_lines import read_lines
from fedsim.recording.records import PLAIN
from fedsim.scenario import Scenario

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scenarios"
FOLDER = "FOLDER"

_MOST_IMAGES = 8  # of a batch whose images are kept one by one
_DIGITS = 6

_STOCK = ("model.name=vit_micro", "model.kwargs={}", "model.first_block=standard")
_ROW_SPACE = (
    "threat.grants=[batch_size, labels, normalization]",
    "attacks=[{name: april_optimization, params: {steps: 200}}, "
    "{name: april_optimization, params: {steps: 200, priors: {total_variation: 0.1, row_space: 1}}}, "
    "{name: gradient_matching, params: {steps: 200}}, "
    "{name: gradient_matching, params: {steps: 200, priors: {total_variation: 0.1, row_space: 1}}}]",
)
_PATCHES_OF_8 = ("defenses=[]", "federation.rounds=1", "model.kwargs={patch_size: 8, depth: 2}")


@dataclass(frozen=True)
class Run:
    """A scenario with overrides.

    Args:
        name: of the JSON.
        scenario: of the gallery.
        overrides: what stands behind `--set`.
        pictures: which folder FOLDER stands for, an option of scenario_tables.py; none where there is none.
    """

    name: str
    scenario: str
    overrides: tuple[str, ...] = ()
    pictures: str | None = None

    @property
    def command(self) -> str:
        """The command line that a reader types."""
        settings = "".join(f" --set {_quoted(override)}" for override in self.overrides)
        return f"fedsim run scenarios/{self.scenario}.yaml{settings}"

    @property
    def file(self) -> Path:
        """Where the JSON is."""
        return RESULTS / f"{self.name}.json"

    def settings(self, pictures: Path | None) -> list[str]:
        """Return the overrides with the folder of images in them."""
        return [override.replace(FOLDER, str(pictures)) for override in self.overrides]


def _quoted(override: str) -> str:
    return shlex.quote(override) if " " in override or "[" in override or "{" in override else override


_PARQUET = ("data.name=parquet", f"data.path={FOLDER}")
_IMAGES = ("data.name=folder", f"data.path={FOLDER}")

RUNS = {
    run.name: run
    for run in (
        *(
            Run(name, name)
            for name in (
                "quickstart",
                "mjp",
                "mjp_gamma",
                "dp_noise_sweep",
                "dp_sgd",
                "quantized_updates",
                "update_defenses",
                "flower_privacy",
                "half_protected",
                "robust_and_private",
                "ard_prm",
                "precode",
                "soft_labels",
                "label_rules",
                "vit_base_224",
                "april",
                "defense_aware",
                "local_steps",
                "pictures_from_batches",
                "head_only",
                "lora",
            )
        ),
        Run("half_protected_none", "half_protected", ("defenses=[]",)),
        Run("half_protected_all", "half_protected", ("defenses.0.clients=all",)),
        Run("robust_and_private_none", "robust_and_private", ("defenses=[]",)),
        Run("ard_prm_none", "ard_prm", ("defenses=[]",)),
        Run("ard_prm_plain", "ard_prm", ("defenses=[{name: adversarial_training, params: {steps: 7}}]",)),
        Run("precode_plain", "precode", ("model.precode=null",)),
        Run(
            "flower_privacy_plain",
            "flower_privacy",
            ("federation.strategy=FedAvg", "federation.strategy_params={}", "defenses=[]"),
        ),
        Run("mjp_plain", "mjp", ("defenses=[]",)),
        Run("mjp_all", "mjp", ("defenses=[{name: mjp, params: {gamma: 0.5}}]",)),
        Run("mjp_without_dal", "mjp", ("defenses=[{name: mjp, params: {gamma: 0.5, dal: none}}]",)),
        *(
            Run(f"secure_aggregation_{clients}", "secure_aggregation", (f"federation.clients={clients}",))
            for clients in (1, 2, 4, 10)
        ),
        *(
            Run(
                f"secure_aggregation_images_{clients}",
                "secure_aggregation",
                (f"federation.clients={clients}", "federation.rounds=1", "attacks=[{name: token_matching}]"),
            )
            for clients in (1, 2, 4)
        ),
        Run(
            "quantized_updates_no_class_token",
            "quantized_updates",
            ("model.kwargs={global_pool: avg, class_token: false}",),
        ),
        Run("row_space_2", "quantized_updates", (*_PATCHES_OF_8, "training.batch_size=2", *_ROW_SPACE)),
        Run("row_space_4", "quantized_updates", (*_PATCHES_OF_8, "training.batch_size=4", *_ROW_SPACE)),
        Run("vit_base_224_imagenet", "vit_base_224", _IMAGES, "imagenet"),
        Run("april_twenty", "april", ("federation.clients=20", "attacks=[{name: april}]")),
        Run(
            "april_stock",
            "april",
            (
                *_STOCK,
                "attacks=[{name: april_optimization, params: {steps: 250}}, "
                "{name: gradient_matching, params: {steps: 250}}]",
            ),
        ),
        Run(
            "april_imagenet",
            "april",
            (
                *_IMAGES,
                "data.image_size=224",
                "model.name=vit_small_patch16_224",
                "model.kwargs={}",
                "federation.clients=10",
                "attacks=[{name: april}]",
            ),
            "imagenet",
        ),
        Run(
            "smoke_gradient_matching",
            "smoke",
            ("defenses=[]", "federation.clients=4", "federation.rounds=2", "attacks=[{name: gradient_matching}]"),
        ),
        Run("gradvit_ablation", "gradvit_ablation", _PARQUET, "cifar"),
        Run("pictures_from_batches_224", "pictures_from_batches_224", _IMAGES, "imagenet"),
        Run("cifar10_fedavg", "cifar10_fedavg", _PARQUET, "cifar"),
        Run("resnet18_untrained", "resnet18_untrained", _PARQUET, "cifar"),
    )
}


class StaleRunError(Exception):
    """A run folder is not of the run that it is to be read as, or not of the attacks as they are."""


def make(run: Run, folder: Path, pictures: Path | None) -> None:
    """Run the scenario, unless its folder is finished, and keep its figures.

    Raises:
        StaleRunError: the folder is of another scenario, or the attacks were edited since it was begun.
        CalledProcessError: the run failed.
    """
    if not (folder / "summary.json").exists():
        settings = [part for setting in run.settings(pictures) for part in ("--set", setting)]
        scenario = ROOT / "scenarios" / f"{run.scenario}.yaml"
        command = [sys.executable, "-m", "fedsim", "run", str(scenario), "--out", str(folder), *settings]
        subprocess.run(command, check=True, cwd=ROOT)
    run.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(run.file, _as_text(read(run, folder, pictures)))


def read(run: Run, folder: Path, pictures: Path | None) -> dict[str, Any]:
    """Return what is kept of a finished run.

    Raises:
        StaleRunError: see `make`.
    """
    scenario, _ = scenarios.load(folder / "scenario.yaml")
    wanted, _ = scenarios.load(ROOT / "scenarios" / f"{run.scenario}.yaml", run.settings(pictures))
    if scenario.resolved() != wanted.resolved():
        raise StaleRunError(f"{folder}: not a run of {run.command}.")
    environment = json.loads((folder / "environment.json").read_text())
    _check_sources(folder, environment["imported_from"]["fedsim_attacks"])
    summary = json.loads((folder / "summary.json").read_text())
    asked = _evaluations(read_lines(folder / "evaluations.jsonl")) if scenario.evaluators else {}
    return {
        "scenario": run.scenario,
        "overrides": list(run.overrides),
        "code": digests(attack.name for attack in scenario.attacks),
        "torch": environment["packages"]["torch"],
        "accuracy": [line["accuracy"] for line in read_lines(folder / "rounds.jsonl")],
        "verdicts": {client: found["kinds"] for client, found in summary["clients"].items()},
        **({"evaluations": asked} if asked else {}),
        "records": list(_records(scenario, read_lines(folder / "records.jsonl"))),
    }


def _check_sources(folder: Path, of_run: str) -> None:
    """Raise StaleRunError where the attacks that ran are others than those that are imported here."""
    here = imported_from()["fedsim_attacks"]
    started = (folder / "environment.json").stat().st_mtime
    if of_run != here or any(file.stat().st_mtime > started for file in Path(of_run).rglob("*.py")):
        raise StaleRunError(f"{folder}: run by {of_run}, which is not what is imported now or was edited since.")


def _evaluations(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the scores of all evaluators by name, those of the last round that each was asked after."""
    return {name: _rounded(value) for line in lines for name, value in line["scores"].items()}


def _records(scenario: Scenario, lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    labels = _labels(scenario)
    places: dict[tuple[int, int], int] = {}
    for line in lines:
        place = (line["round"], line["client"])
        # A plain variant stands behind its attack.
        is_plain = line.get("attack", {}).get("variant") == "plain"
        index = places[place] = places.get(place, -1) + (not is_plain)
        scores = {metric: score for metric, score in line["scores"].items() if score["value"] is not None}
        yield {
            "round": line["round"],
            "client": line["client"],
            "attack": f"{labels[index]}{PLAIN}" if is_plain else labels[index],
            "defenses": [defense["name"] for defense in line["defenses"]],
            "status": line["status"],
            "scores": {metric: _rounded(score["value"]) for metric, score in scores.items()},
            "pictures": {
                metric: [_rounded(value) for value in score["per_example"]]
                for metric, score in scores.items()
                if 1 < len(score.get("per_example") or ()) <= _MOST_IMAGES
            },
            "controls": {
                control: {metric: _rounded(value) for metric, value in values.items()}
                for control, values in line["controls"].items()
            },
            "seconds": _rounded(line["seconds"]),
        }


def _labels(scenario: Scenario) -> list[str]:
    """Return how a table names each attack: by its label or name, and by its parameters where that names several."""
    names = [attack.label or attack.name for attack in scenario.attacks]
    given = [
        " ".join((name, *(f"{key}={value}" for key, value in attack.params.items())))
        for name, attack in zip(names, scenario.attacks, strict=True)
    ]
    return [full if names.count(name) > 1 else name for name, full in zip(names, given, strict=True)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _as_text(content: dict[str, Any]) -> str:
    """Return JSON with one record a line."""
    records = ",\n".join(json.dumps(record, allow_nan=False) for record in content["records"])
    facts = json.dumps({key: value for key, value in content.items() if key != "records"}, allow_nan=False)
    return f'{facts[:-1]},\n"records": [\n{records}\n]}}\n'
