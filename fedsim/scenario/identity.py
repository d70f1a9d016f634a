"""What of a scenario identifies its runs, so that a run keeps its identity when later versions know more settings."""

from __future__ import annotations

from typing import Any

from fedsim.scenario.parts import Scenario

# Settings younger than the first stored runs: left out at their default.
_YOUNGER: tuple[tuple[str, str, Any], ...] = (
    ("model", "first_block", "standard"),
    ("model", "position_embedding", "learned"),
    ("training", "label_smoothing", 0.0),
    ("training", "sampling", "shuffle"),
    ("training", "accumulate", 1),
    ("training", "augment", []),
    ("training", "schedule", {"name": "constant", "warmup_rounds": 0}),
    ("threat", "sees", "updates"),
    ("audit", "variants", ["aware", "plain"]),
    ("audit", "executor", "processes"),
    ("audit", "task_cpus", 1.0),
    ("audit", "task_gpus", 0.0),
    ("audit", "keep_updates", "all"),
)


def identifying(scenario: Scenario) -> dict[str, Any]:
    """Return the resolved scenario as plain data, without settings that are younger than the first runs and not used."""
    content = scenario.resolved()
    for part, setting, default in _YOUNGER:
        if content[part].get(setting) == default:
            del content[part][setting]
    return content
