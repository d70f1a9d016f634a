"""The scenario that a run configuration names."""

from __future__ import annotations

import json
from pathlib import Path

from fedsim import shipped
from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario, load, parse


def named(given: str) -> Scenario:
    """Return the scenario of a shipped name, of a file, or of JSON text as `Scenario.resolved` gives it.

    A relative path is refused: nodes have working directories of their own.

    Raises:
        ScenarioError: there is none, or it is refused.
    """
    if given.lstrip().startswith("{"):
        try:
            content = json.loads(given)
        except ValueError as error:
            raise ScenarioError(
                "scenario", f"the run configuration holds no JSON: {error}. Give a name or a file."
            ) from None
        return parse(content, "scenario")
    if given in shipped.names():
        return load(shipped.path(given))[0]
    if not Path(given).is_absolute():
        raise ScenarioError(
            "scenario",
            f"the run configuration names {given!r:.80}, which is neither a scenario that ships with fedsim nor an absolute "
            'path. Known: "fedsim list scenarios".',
        )
    return load(shipped.find(given))[0]
