"""The JSON Schema of a scenario, as an editor uses it."""

import jsonschema
import pytest

from fedsim import plugins
from fedsim.planning import schema
from fedsim.presets import PRESETS
from fedsim.strategies.listing import STRATEGIES


@pytest.fixture(scope="module")
def found():
    return schema.of()


def properties(found):
    for name, part in {**found["$defs"], "Scenario": found}.items():
        for key, value in part.get("properties", {}).items():
            yield f"{name}.{key}", value


def test_every_field_says_what_it_is(found):
    described = dict(properties(found))
    assert len(described) > 50
    assert not [name for name, value in described.items() if not value.get("description", "").endswith((".", ")"))]


@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_installed_names_are_offered_alone_and_in_a_mapping(kind, found):
    validator = jsonschema.Draft202012Validator(found)
    for name in plugins.installed(kind):
        assert validator.is_valid({kind: [name, {"name": name}]})
    assert validator.is_valid({kind: ["package.module:Class", {"name": "module:Class"}]})
    for name in ("no_such", "module.Class", ""):
        assert not validator.is_valid({kind: [name]})
        assert not validator.is_valid({kind: [{"name": name}]})


def test_sources_and_strategies_are_those_there_are_and_models_any(found):
    validator = jsonschema.Draft202012Validator(found)
    for name in plugins.installed("data"):
        assert validator.is_valid({"data": name}) and validator.is_valid({"data": {"name": name, "image_size": 32}})
    assert not validator.is_valid({"data": "phots"}) and not validator.is_valid({"data": {"name": "phots"}})
    assert all(validator.is_valid({"federation": {"strategy": name}}) for name in STRATEGIES)
    assert not validator.is_valid({"federation": {"strategy": "FedAvgg"}})
    offered = found["$defs"]["ModelPart"]["properties"]["name"]["anyOf"][0]["enum"]
    assert offered == list(PRESETS)
    assert validator.is_valid({"model": "vit_tiny_patch16_224"})
