"""Ray on the command line: where the audit runs, and on which cluster."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario


class Executor(StrEnum):
    """Where an audit runs."""

    processes = "processes"
    ray = "ray"


ExecutorOption = Annotated[
    Executor | None,
    typer.Option("--executor", help="Audit on processes of this machine, or as Ray tasks; audit.executor otherwise."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="A Ray cluster that runs; RAY_ADDRESS, or none, otherwise."
    ),
]


def settings_with(settings: list[str] | None, executor: Executor | None) -> list[str] | None:
    """Return what `--set` and `--executor` change."""
    return settings if executor is None else [*(settings or ()), f"audit.executor={executor.value}"]


def audited_on(scenario: Scenario, executor: Executor | None) -> Scenario:
    """Return a scenario whose audit runs there; its records are the same."""
    if executor is None:
        return scenario
    return scenario.model_copy(update={"audit": scenario.audit.model_copy(update={"executor": executor.value})})


def use(command: str, address: str | None, scenario: Scenario, trains: bool) -> None:
    """Have Ray, wherever this command uses it, be the cluster at an address.

    Args:
        command: for the message.
        address: None for RAY_ADDRESS, or a Ray on this machine.
        scenario: what is run or audited.
        trains: whether clients train, on the engine of the scenario.

    Raises:
        FedsimError: nothing of the command runs on Ray, or nobody answers at the address.
    """
    if address is None:
        return
    if scenario.audit.executor != "ray" and not (trains and scenario.engine == "ray"):
        raise FedsimError(
            f"{command} --ray-address: nothing runs on Ray here. Add --executor ray{' or --engine ray' if trains else ''}, or "
            "leave it out."
        )
    from fedsim import ray_cluster

    ray_cluster.check_address(address, f"{command} --ray-address")
    os.environ["RAY_ADDRESS"] = address


def refuse_for_phases(command: str, executor: Executor | None, address: str | None) -> None:
    """Refuse options that phases, each of which has a scenario of its own, do not take here.

    Raises:
        FedsimError: one is given.
    """
    for option, value in (("--executor", executor), ("--ray-address", address)):
        if value is not None:
            raise FedsimError(
                f"{command} {option}: not for a scenario with phases. Set audit.executor in the file, or RAY_ADDRESS."
            )
