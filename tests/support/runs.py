"""Run folders written by hand: what a comparison reads, without a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

GREY = {"grey": {"psnr": 10.0}, "own_mean": {"psnr": 12.0}, "chance": {"label_recall": 0.25}}
SCENARIO: dict[str, Any] = {
    "name": "hand",
    "data": {"name": "shapes"},
    "model": {"name": "vit_nano"},
    "federation": {"clients": 2, "rounds": 2},
    "attacks": [{"name": "inversion"}],
}
WORKLOAD = {"pictures": 1, "batch_size": 1, "steps": 1}


def record(client: int, round: int, defenses: Sequence[str] = (), **given: Any) -> dict[str, Any]:
    """Return a record; `psnr` or `label_recall` is the score, anything else replaces a field."""
    scores = {name: {"value": given.pop(name), "worse": "higher"} for name in ("psnr", "label_recall") if name in given}
    return {
        "schema": 1,
        "round": round,
        "client": client,
        "attack": {"name": "inversion", "params": {}, "recovers": ["images"]},
        "defenses": [{"name": name, "params": {}} for name in defenses],
        "grants": [],
        "workload": WORKLOAD,
        "status": "found",
        "inapplicable": [],
        "scores": scores,
        "controls": GREY if scores else {},
        **given,
    }


def calibration(round: int, psnr: float = 60.0, attack: str = "inversion") -> dict[str, Any]:
    """Return a calibration that shows that the attack works there."""
    trial = {"status": "found", "scores": {"psnr": {"value": psnr, "worse": "higher"}}, "controls": GREY}
    return {
        "schema": 1,
        "round": round,
        "attack": {"name": attack, "params": {}},
        "grants": [],
        "workload": WORKLOAD,
        "status": "found",
        "trials": [trial] * 3,
    }


def write_run(
    path: Path,
    psnr: float | Mapping[int, float] = 60.0,
    accuracy: float | None = 0.5,
    seed: int = 0,
    defenses: Sequence[str] = (),
    carriers: Sequence[int] = (0, 1),
    epsilon: float | None = None,
    seconds: float = 1.0,
    records: Sequence[Mapping[str, Any]] | None = None,
    digests: Mapping[str, str] | None = None,
    rounds: int = 2,
    **parts: Any,
) -> Path:
    """Write the folder of a run of two clients and two rounds, in which one attack scores `psnr` on each client.

    Args:
        path: of the folder.
        psnr: of every attempt, or by client.
        accuracy: after the last round.
        seed: of the run.
        defenses: that the carriers carry.
        carriers: clients.
        epsilon: of the carriers.
        seconds: of a round.
        records: in the place of those that are made of `psnr`.
        digests: of the data.
        rounds: that are recorded.
        parts: of the scenario.
    """
    path.mkdir(parents=True)
    stated = [{"name": name, "clients": list(carriers)} for name in defenses]
    scenario = {**SCENARIO, "seed": seed, "defenses": stated, **parts}
    (path / "scenario.yaml").write_text(yaml.safe_dump(scenario))
    (path / "environment.json").write_text(json.dumps({"schema": 1, "origin": "simulated"}))
    if digests is not None:
        (path / "inputs.json").write_text(json.dumps({"schema": 1, "data": dict(digests)}))
    budget = {"epsilon": epsilon, "delta": 1e-5, "neighbors": "replace"}
    lines = [
        {
            "schema": 1,
            "round": round,
            "accuracy": accuracy,
            "participants": [0, 1] if round else [],
            "epsilon": {str(client): budget for client in carriers} if epsilon and round else {},
            "seconds": seconds,
        }
        for round in range(rounds + 1)
    ]
    if records is None:
        by_client = psnr if isinstance(psnr, Mapping) else {0: psnr, 1: psnr}
        records = [
            record(client, round, defenses if client in carriers else (), psnr=by_client[client])
            for round in range(1, rounds + 1)
            for client in (0, 1)
        ]
    _write(path / "rounds.jsonl", lines)
    _write(path / "records.jsonl", records)
    _write(path / "calibrations.jsonl", [calibration(round) for round in range(1, rounds + 1)])
    return path


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
