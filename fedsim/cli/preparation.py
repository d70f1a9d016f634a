"""From what the user names to a plan whose images have all been read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fedsim import scenario as scenarios
from fedsim import shipped
from fedsim.cli.terminal import out, say
from fedsim.progress import Step
from fedsim.scenario import Scenario

_PREPARING = "Preparing data and model"
_QUIET = 60.0  # seconds at least between two lines on a plain stream


def load(named: str, overrides: Sequence[str] | None, engine: str | None) -> tuple[Scenario, list[str]]:
    """Return the scenario of a file or of a shipped scenario's name with overrides, and notes on these."""
    return scenarios.load(shipped.find(named), settings_of(overrides, engine))


def settings_of(overrides: Sequence[str] | None, engine: str | None) -> list[str]:
    """Return what `--set` and `--engine` change."""
    return [*(overrides or ()), *([f"engine={engine}"] if engine else ())]


def prepared(scenario: Scenario, folder: Any = None, trains: bool = True) -> tuple[Any, Any]:
    """Return the plan of a scenario, or of the audit of a folder, and its inputs, for which every image has been read.

    Args:
        scenario: the scenario.
        folder: of the run whose audit is planned.
        trains: whether a model that is to be trained centrally first is trained now.
    """
    from fedsim import progress
    from fedsim.planning import inputs
    from fedsim.planning import preparation as planning

    with out.status(_PREPARING) as status, progress.listening(_Shown(status)):
        if not trains:
            plan = planning.make(scenario, trains=False)
        else:
            plan = planning.of(scenario) if folder is None else planning.of_folder(folder, scenario)
        return plan, inputs.of(plan)


class _Shown:
    """Tells how far central training has come: in the status line, or once a minute on a plain stream.

    Args:
        status: the line.
    """

    def __init__(self, status: Any) -> None:
        self._status, self._spoke = status, time.monotonic()

    def __call__(self, step: Step) -> None:
        """Show one step."""
        left = "" if step.seconds_left is None else f", {step.seconds_left:.0f} s left"
        text = f"Training the start centrally: step {step.done} of {step.total}, loss {step.loss:.3g}{left}"
        self._status.update(text)
        if not out.is_terminal and time.monotonic() - self._spoke >= _QUIET:
            self._spoke = time.monotonic()
            say(text)
