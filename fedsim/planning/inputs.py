"""What the captures of a run were made from, kept beside them: a changed input is refused, never scored.

The truth is not stored: it is derived from scenario and data whenever findings are scored. Against other images than the
clients trained on, every attack would seem to fail, and every defense to work.

`inputs.json` holds the settings that decide what was captured and what an attacker knows, and digests of the data. Files may
move and attacks be added; audit and engine decide neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.planning.plan import Plan
from fedsim.recording import environment, files
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import EXECUTION, Scenario, identifying, parse

_PARTS = ("seed", "data", "model", "federation", "training", "threat", "defenses")
# Where files lie, not what is in them, which the digests tell.
_LOCATIONS = {"data.path", "data.test_path", "data.root", "model.pretrained", "model.pretrained.file"}
_FROZEN = "frozen weights"
_START = "start"
_MEANING = {
    "class names": "the class names differ",
    "partition": "the samples are dealt to the clients in another way",
    "train": "the images or labels of the clients differ",
    "test": "the images or labels of the test pool differ",
    "auxiliary": "the images or labels of the auxiliary pool differ",
    _START: "the weights that the model starts from differ",
    _FROZEN: "the frozen weights of the model, which no capture holds, differ",
}

AUDITED = "records.jsonl, calibrations.jsonl and artifacts/"
"""What an audit leaves in a run folder besides its report."""

_OF_CLIENTS = ("partition", "train", "test")  # the data of an observed app's clients are its own


def run_id(scenario: Scenario) -> str:
    """Return the run's identity: the same scenario and seed give the same, whatever the engine or the processes."""
    content = identifying(scenario)
    del content["engine"], content["attacks"], content["federation"]["client_timeout"]
    content.pop("evaluators", None)
    for setting in (*EXECUTION, "calibrate", "variants", "attack_timeout", "attack_memory", "truth"):
        content["audit"].pop(setting, None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{scenario.name}-{digest[:8]}"


@dataclass(frozen=True)
class Inputs:
    """What captures are made from.

    Args:
        settings: the deciding parts of the resolved scenario.
        data: digests; see `FederatedData.verify`.
        notes: of the plan and the data, for the user and the report; they decide nothing and are never compared.
        run: what the run is called in records and headers, once and for all; None in folders of an earlier fedsim.
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    notes: tuple[str, ...] = ()
    run: str | None = None


def of(plan: Plan) -> Inputs:
    """Return the inputs of a plan; reads every image that the run may use.

    Raises:
        ScenarioError: an image is damaged.
    """
    scenario = plan.scenario
    rounds = scenario.federation.rounds if plan.captured is None else 0
    digests = dict(plan.data.verify(rounds, scenario.training))
    if frozen := plan.frozen_digest():
        digests[_FROZEN] = frozen
    if plan.captured is None and scenario.model.start is not None:
        digests[_START] = plan.initial_digest()
    notes = (*plan.notes, *plan.data.notes(rounds, scenario.training))
    return Inputs(_settings(scenario), digests, notes, run_id(scenario))


def bind(folder: RunFolder, inputs: Inputs) -> None:
    """Store the inputs of a run, or compare them with the stored ones.

    Before the first finding an observed run may still get another scenario, and a simulated one another threat model.

    Raises:
        RunFolderError: they differ; the message names the first difference.
    """
    stored = _read(folder)
    if stored is None:
        _write(folder, replace(inputs, run=_recorded_run(folder) or inputs.run))
        return
    observed = environment.origin(folder.path) == "observed"
    changed = stored.settings != inputs.settings or stored.data != inputs.data
    if changed and observed and not is_audited(folder):
        _write(folder, replace(inputs, run=stored.run or inputs.run))
        return
    _compare_settings(folder, stored.settings, inputs.settings, observed)
    for part, meaning in _MEANING.items():
        if observed and part in _OF_CLIENTS:
            continue
        if part in (_START, _FROZEN) and not (part in stored.data and part in inputs.data):
            continue  # a run of an earlier fedsim, weights that are drawn, or a model that trains all it has
        if stored.data.get(part) != inputs.data[part]:
            raise RunFolderError(
                f"{_path(folder)}: the data is not what this run was made with: {meaning}. "
                f"{_advice(observed, 'Restore the data')}"
            )
    if changed:
        _write(folder, replace(inputs, run=stored.run))


def _recorded_run(folder: RunFolder) -> str | None:
    """Return what the records of an earlier fedsim call the run, whose inputs are not stored; None where they do not agree."""
    named = {line.get("run") for line in folder.records.read()}
    return named.pop() if len(named) == 1 else None


def frozen_of(folder: RunFolder) -> str | None:
    """Return the digest of the weights that a run froze; None where it trains all it has.

    Raises:
        RunFolderError: inputs.json is damaged.
    """
    stored = _read(folder)
    return None if stored is None else stored.data.get(_FROZEN)


def check_scenario(folder: RunFolder, scenario: Scenario) -> None:
    """Compare the settings alone with the stored ones, if there are any.

    Raises:
        RunFolderError: see `bind`.
    """
    stored = _read(folder)
    if stored is not None:
        try:
            observed = environment.origin(folder.path) == "observed"
        except RunFolderError:
            # Only the advice depends on it, and the report tells what is wrong with environment.json.
            observed = False
        _compare_settings(folder, stored.settings, _settings(scenario), observed)


def _settings(scenario: Scenario) -> dict[str, Any]:
    content = scenario.resolved()
    # How long the server waits decides no update.
    del content["federation"]["client_timeout"]
    return {part: content[part] for part in _PARTS}


def _path(folder: RunFolder) -> str:
    return str(folder.path / "inputs.json")


def is_audited(folder: RunFolder) -> bool:
    """Return whether the folder holds findings, records or calibrations, which were made under its scenario."""
    return (folder.path / "artifacts").exists() or bool(folder.records.read() or folder.calibrations.read())


def _write(folder: RunFolder, inputs: Inputs) -> None:
    content = {"schema": SCHEMA, **asdict(inputs)}
    folder.write(folder.path / "inputs.json", json.dumps(content, indent=2) + "\n")


def _read(folder: RunFolder) -> Inputs | None:
    try:
        content = files.read_json(folder.path / "inputs.json", folder.path)
        if content is None:
            return None
        if content["schema"] != SCHEMA:
            raise RunFolderError(f"{_path(folder)}: schema {content['schema']!r}, this fedsim reads {SCHEMA}.")
        # Read as a scenario: a setting that is younger than the run has its default.
        settings = _settings(parse(content["settings"], _path(folder)))
        return Inputs(settings, dict(content["data"]), tuple(content.get("notes", ())), folder.run)
    except files.DamagedFileError as error:
        reason = str(error).removeprefix(f"{_path(folder)}: ").rstrip(".")
    except ScenarioError as error:
        reason = str(error)
    except (AttributeError, KeyError, TypeError, ValueError):
        reason = "not what fedsim writes"
    raise RunFolderError(
        f"{_path(folder)}: damaged ({reason}). Restore it, or delete it where you are sure that scenario.yaml and the data "
        "are as they were."
    )


def _compare_settings(folder: RunFolder, stored: Mapping[str, Any], now: Mapping[str, Any], observed: bool) -> None:
    before, after = dict(_leaves(stored)), dict(_leaves(now))
    for where in dict.fromkeys([*after, *before]):
        free = where in _LOCATIONS or (where.startswith("threat.") and not is_audited(folder))
        if before.get(where) == after.get(where) or free:
            continue
        was, is_now = (json.dumps(side[where]) if where in side else "not set" for side in (before, after))
        advice = _advice(observed or where.startswith("threat."), "Put it back")
        raise RunFolderError(
            f"{folder.path / 'scenario.yaml'}: {where} is {is_now}, but this run was made with {was}. {advice}"
        )


def _advice(audit_alone: bool, mend: str) -> str:
    other = f"delete {AUDITED} to audit under what is there now" if audit_alone else "start another run"
    return f"{mend}, or {other}."


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every leaf; an empty list or mapping is one, and so is a list of values."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        inner = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inner = [(str(index), item) for index, item in enumerate(value)]
    if not inner:
        yield where, value
    for key, item in inner:
        yield from _leaves(item, f"{where}.{key}" if where else key)
