"""A whole run: train and capture, audit beside it, report. Each step starts where the folder ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import report
from fedsim.audit import budgets
from fedsim.audit.auditor import Auditor, Running
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.federation.engine import Trainer, train
from fedsim.planning import inputs, supplied_truth
from fedsim.planning.inputs import Inputs
from fedsim.planning.plan import Plan
from fedsim.recording import consistency, environment, files
from fedsim.recording.records import AnyRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import Scenario
from fedsim.seeds import torch_threads


@dataclass(frozen=True)
class Progress:
    """What a display wants to hear of while a run goes on.

    Args:
        on_round: a line of rounds.jsonl, new or found in the folder.
        on_record: a new audit record.
        on_total: how many records the rounds so far will have.
        on_running: the attacks under way, whenever one has come further or has ended; None where nobody watches.
    """

    on_round: Callable[[dict[str, Any]], None] = lambda line: None
    on_record: Callable[[AnyRecord], None] = lambda record: None
    on_total: Callable[[int], None] = lambda total: None
    on_running: Callable[[tuple[Running, ...]], None] | None = None


def default_folder(scenario: Scenario) -> Path:
    """Return runs/<name>-<time> under the working directory; the time is the start of the run."""
    return Path("runs") / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def simulate(
    plan: Plan, folder: RunFolder, progress: Progress, seen: Inputs | None = None, train_with: Trainer = train
) -> list[AnyRecord]:
    """Train, audit and report; a folder that already holds part of the run is completed.

    Args:
        plan: the run's plan.
        folder: the run.
        progress: whom to tell.
        seen: the plan's inputs, where they have been read before; they are read here otherwise.
        train_with: what trains; the engine that the scenario names, otherwise.

    Returns:
        All records of the run, in canonical order.

    Raises:
        RunFolderError: the folder holds the captures of an observed app, or was made from other inputs.
        FedsimError: the training cannot go on, after what was captured before has been audited and reported.
    """
    with folder.locked(), torch_threads(1):
        folder.check()
        described = folder.path / "environment.json"
        if not files.is_file(described, folder.path):
            if folder.index() and environment.origin(folder.path) == "observed":
                raise RunFolderError(
                    f"{described}: missing, so who trained the clients is not known. Restore the file."
                )
            folder.write(described, environment.as_json("simulated"))
        if environment.origin(folder.path) == "observed":
            raise RunFolderError(f"{folder.path}: was observed, so fedsim cannot train on. Use fedsim audit.")
        inputs.bind(folder, seen or inputs.of(plan))
        consistency.check(folder, plan.scenario, trains=True)
        with Auditor(plan, folder, progress.on_record, progress.on_total, progress.on_running) as auditor:
            records = _train_and_audit(plan, folder, auditor, progress, train_with)
    report.render(folder.path)
    return records


def _train_and_audit(
    plan: Plan, folder: RunFolder, auditor: Auditor, progress: Progress, train_with: Trainer
) -> list[AnyRecord]:
    def on_round(line: dict[str, Any]) -> None:
        progress.on_round(line)
        if line["round"]:
            auditor.add_round(line["round"])

    if _audits_beside_training(plan.scenario):
        auditor.start()
    try:
        _train(plan, folder, on_round, train_with)
    except FedsimError:
        auditor.finish()
        report.render(folder.path)
        raise
    return auditor.finish()


def _audits_beside_training(scenario: Scenario) -> bool:
    # Flower's simulation takes all processors of the Ray that it uses, and leaves that Ray at its end.
    waits_for_ray = scenario.engine == "ray" and scenario.audit.executor == "ray"
    return scenario.audit.processes > 0 and not waits_for_ray


def _train(plan: Plan, folder: RunFolder, on_round: Callable[[dict[str, Any]], None], train_with: Trainer) -> None:
    lines = folder.rounds.read()
    # A capture that is gone is computed again, and must come out as it was.
    whole = all(
        folder.has_global(line["round"])
        and (folder.has_capture(line["round"], client) or folder.is_removed(line["round"], client))
        for line in lines
        for client in line["participants"]
    )
    if len(lines) == plan.scenario.federation.rounds + 1 and folder.has_model() and whole:
        for line in lines:
            on_round(line)
    else:
        train_with(plan, folder, on_round)


def audit(
    plan: Plan, folder: RunFolder, progress: Progress, seen: Inputs | None = None, draws: int | None = None
) -> list[AnyRecord]:
    """Audit every captured round of a run and report; attempts that have a record are left alone, unless they failed.

    A "module:Class" whose source file has changed since attacks again as well.

    Attacks of the plan that the run does not know yet are added to its scenario.yaml. A plan that was made from the folder
    should be made while the folder is locked, since another process may be adding an attack.

    Args:
        plan: the run's plan.
        folder: the run.
        progress: whom to tell.
        seen: the plan's inputs, where they have been read before; they are read here otherwise.
        draws: check the privacy budgets that defenses claim with so many draws; None for no such check.

    Returns:
        All records of the run, in canonical order.

    Raises:
        ScenarioError: the labels of an observed run are granted, its updates are not to be kept, or the truth that its team
            supplies is none.
        RunFolderError: a capture is missing or corrupted, or the run was made from other inputs; or the budgets of an observed
            app are to be checked.
    """
    if draws is not None and environment.origin(folder.path) == "observed":
        raise RunFolderError(
            f"{folder.path}: was observed, so nobody here can protect its clients' updates again. Leave --mechanisms out."
        )
    if environment.origin(folder.path) == "observed" and plan.scenario.audit.keep_updates != "all":
        raise ScenarioError(
            "audit.keep_updates",
            f"{plan.scenario.audit.keep_updates}: {folder.path} was observed, so nobody here can make an update again that was "
            "removed. Leave it out, and delete the folder when you are done.",
        )
    if environment.origin(folder.path) == "observed" and "labels" in plan.scenario.threat.grants:
        raise ScenarioError(
            "threat.grants", f"labels: {folder.path} was observed, not simulated, so nobody knows them. Leave it out."
        )
    with folder.locked(), torch_threads(1):
        folder.check()
        inputs.bind(folder, seen or inputs.of(plan))
        consistency.check(folder, plan.scenario, trains=False)
        has_other_truth = supplied_truth.bind(folder, plan.supplied, _audited(plan, folder))
        with Auditor(plan, folder, progress.on_record, progress.on_total, progress.on_running) as auditor:
            if not folder.has_scenario() or plan.scenario != folder.scenario():
                folder.write_scenario(plan.scenario)
            auditor.redo()
            if has_other_truth:
                auditor.rescore()
            for round in folder.captured_rounds():
                auditor.add_round(round)
            if plan.scenario.audit.processes:
                auditor.start()
            records = auditor.finish()
        if draws is not None:
            budgets.check_budgets(plan, folder, draws)
    report.render(folder.path)
    return records


def _audited(plan: Plan, folder: RunFolder) -> list[tuple[int, int]]:
    """Return round and client of each update that is audited."""
    return [
        (round, client)
        for round in folder.captured_rounds()
        if round in plan.audit_rounds
        for client in folder.captured(round)
        if client in plan.audit_clients
    ]
