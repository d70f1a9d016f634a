"""The JSON Schema of a scenario, for editors: every field described, every installed name offered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedsim import plugins
from fedsim.plugins import Kind
from fedsim.presets import PRESETS
from fedsim.scenario import Scenario

_CLASS = {
    "type": "string",
    "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$",
    "description": "A class, as module:Class.",
}

_PHASES = {
    "type": "array",
    "minItems": 1,
    "description": "Runs one after the other, each from the global model of the one before.",
    "items": {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {
            "name": {
                "type": "string",
                "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$",
                "description": "Names the run and its folder.",
            },
            "set": {
                "type": "object",
                "description": "Keys of the scenario, with dots between them, and their values in this phase.",
            },
        },
    },
}

_PART_OF: dict[Kind, str] = {
    "attacks": "AttackPart",
    "defenses": "DefensePart",
    "evaluators": "EvaluatorPart",
    "data": "DataPart",
}


def of() -> dict[str, Any]:
    """Return the schema; an attack, a defense or a data source has an installed name, or is a "module:Class".

    Raises:
        PluginError: two distributions offer the same name.
    """
    from fedsim.strategies.listing import STRATEGIES

    schema = Scenario.model_json_schema()
    parts, top = schema["$defs"], schema["properties"]
    for kind, part in _PART_OF.items():
        _offer(parts[part]["properties"]["name"], _names(kind))
    _offer(parts["ModelPart"]["properties"]["name"], _suggested(PRESETS))
    _offer(parts["FederationPart"]["properties"]["strategy"], [{"enum": list(STRATEGIES)}])
    # A part of which only the name is given may be that name alone.
    for given, part in (
        (top["attacks"]["items"], "AttackPart"),
        (top["defenses"]["items"], "DefensePart"),
        (top["evaluators"]["items"], "EvaluatorPart"),
        (top["data"], "DataPart"),
        (top["model"], "ModelPart"),
    ):
        offered = parts[part]["properties"]["name"]["anyOf"]
        given["anyOf"] = [*offered, *(one for one in given["anyOf"] if one != {"type": "string"})]
    top["phases"] = _PHASES
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _names(kind: Kind) -> list[dict[str, Any]]:
    installed = list(plugins.installed(kind))
    return [{"enum": installed}, _CLASS] if installed else [_CLASS]


def _suggested(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return names that an editor offers beside any other text."""
    return [{"enum": list(names)}, {"type": "string"}]


def _offer(field: dict[str, Any], options: list[dict[str, Any]]) -> None:
    del field["type"]
    field["anyOf"] = options
