"""From what the user names to a plan whose images have all been read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim import scenario as scenarios
from fedsim import shipped
from fedsim.cli.terminal import out
from fedsim.scenario import Scenario


def load(named: str, overrides: Sequence[str] | None, engine: str | None) -> tuple[Scenario, list[str]]:
    """Return the scenario of a file or of a shipped scenario's name with overrides, and notes on these."""
    settings = [*(overrides or ()), *([f"engine={engine}"] if engine else ())]
    return scenarios.load(shipped.find(named), settings)


def prepared(scenario: Scenario, folder: Any = None) -> tuple[Any, Any]:
    """Return the plan of a scenario, or of the audit of a folder, and its inputs, for which every image has been read."""
    from fedsim.planning import inputs
    from fedsim.planning import preparation as planning

    with out.status("Preparing data and model"):
        plan = planning.of(scenario) if folder is None else planning.of_folder(folder, scenario)
        return plan, inputs.of(plan)
