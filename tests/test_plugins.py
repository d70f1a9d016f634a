"""Plug-ins by name: finding, loading and configuring, and what each refusal says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Annotated

import pytest
from pydantic import Field

from fedsim import installation, plugins
from fedsim.attack import Attack
from fedsim.defense import Defense
from fedsim.errors import PluginError, ScenarioError
from fedsim.plugins import PluginInfo
from fedsim.source import Source

CONTRACTS = {"attacks": Attack, "defenses": Defense, "data": Source}


def point(name, target, distribution="one", version="1.0", kind="attacks"):
    found = EntryPoint(name, target, f"fedsim.{kind}")
    vars(found)["dist"] = None if distribution is None else SimpleNamespace(name=distribution, version=version)
    return found


@pytest.fixture
def offered(monkeypatch):
    """Return a function that makes these the only entry points there are."""

    def offer(*points):
        monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])

    return offer


# Finding


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_installed_plug_in_keeps_the_contract(kind):
    found = plugins.installed(kind)
    assert list(found) == sorted(found)
    for name, info in found.items():
        assert (info.kind, info.name) == (kind, name)
        assert issubclass(plugins.load(info, CONTRACTS[kind], name), CONTRACTS[kind])
    own = [info for info in found.values() if installation.recorded(info.distribution) == "fedsim"]
    assert own
    assert {info.version for info in own} == {plugins.installed("data")["shapes"].version}


def test_finding_imports_nothing(offered):
    offered(point("far", "no.such.module:Class", version="2.5"))
    assert plugins.find("attacks", "far", "here") == PluginInfo("attacks", "far", "no.such.module:Class", "one", "2.5")


def test_two_distributions_with_one_name_are_refused(offered):
    offered(point("a", "m:A"), point("b", "m:B"), point("a", "n:A", "other"))
    with pytest.raises(
        PluginError, match=r"attack 'a' is offered twice, by one \(m:A\) and by other \(n:A\)\. Uninstall"
    ):
        plugins.installed("attacks")


def test_the_same_entry_point_seen_twice_is_one(offered):
    # An editable install beside its own source folder is listed twice.
    offered(point("a", "m:A"), point("a", "m:A"))
    assert list(plugins.installed("attacks")) == ["a"]


def test_kinds_do_not_mix(offered):
    offered(point("a", "m:A"), point("a", "m:B", kind="defenses"))
    assert plugins.find("defenses", "a", "here").target == "m:B"


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all(offered):
    offered(point("gradvit", "m:A"), point("label_count", "m:B"))
    with pytest.raises(ScenarioError) as caught:
        plugins.find("attacks", "grad_vit", "attacks.0.name")
    assert str(caught.value) == (
        "attacks.0.name: no attack 'grad_vit'. Did you mean 'gradvit'? Installed: gradvit, label_count "
        '(run "fedsim list").'
    )
    offered()
    with pytest.raises(ScenarioError, match=r"no data source 'x'. Installed: none"):
        plugins.find("data", "x", "data.name")


def test_a_name_with_a_colon_is_a_class_without_distribution():
    for name in ("my.module:Mine", "sys:Mine"):
        info = plugins.find("attacks", name, "here")
        assert (info.kind, info.name, info.target, info.distribution) == ("attacks", name, name, None)
    assert plugins.find("attacks", "my.module:Mine", "here").version == "unknown"


def test_the_version_of_a_class_without_distribution_follows_its_source_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "under_development.py"
    versions = []
    for source in ("a = 1", "a = 2", "a = 1"):
        file.write_text(source)
        versions.append(plugins.find("attacks", "under_development:Mine", "here").version)
    assert versions[0] == versions[2] != versions[1] and versions[0].startswith("source ")


@pytest.mark.parametrize("name", [":", "m:", ":C", "m:C:D", ".m:C", "m.:C", "m:C.D", "m m:C", "m:1", "m/n:C", "m:C\n"])
def test_what_is_neither_name_nor_class_is_refused(name):
    with pytest.raises(ScenarioError, match=r"^here: expected a name, or 'module:Class'"):
        plugins.find("attacks", name, "here")


# Loading


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoSubclass", "is not a subclass of fedsim.attack.Attack."),
        ("function", "is not a subclass of fedsim.attack.Attack."),
        ("Abstract", "must be a concrete dataclass"),
        ("Positional", "must be a concrete dataclass"),
        ("Undecorated", "must be a concrete dataclass"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(name, says, stubs):
    info = plugins.find("attacks", f"broken_plugins:{name}", "here")
    with pytest.raises(PluginError, match=rf"^here: broken_plugins:{name} {says}"):
        plugins.load(info, Attack, "here")


def test_a_class_of_another_contract_is_refused(stubs):
    with pytest.raises(PluginError, match=r"is not a subclass of fedsim\.defense\.Defense"):
        plugins.build("defenses", Defense, "stubs:Guess", {}, "here")


def test_a_class_that_cannot_be_imported_is_the_users_fault_unless_it_was_installed(offered, stubs):
    for name in ("no_such_module:A", "stubs:NoSuchClass"):
        with pytest.raises(ScenarioError, match=r"^here: cannot import '.*'module:Class', importable here"):
            plugins.load(plugins.find("attacks", name, "here"), Attack, "here")
        offered(point("far", name, "somebodys-attacks"))
        with pytest.raises(PluginError, match=r"^here: cannot import .* Reinstall somebodys-attacks\.$"):
            plugins.load(plugins.find("attacks", "far", "here"), Attack, "here")


def test_a_plug_in_whose_own_imports_fail_says_which(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ScenarioError, match="No module named 'a_module_that_is_missing'"):
        plugins.build("attacks", Attack, "half_installed:A", {}, "here")


# Configuring


def steps(**params):
    return plugins.build("attacks", Attack, "broken_plugins:Steps", params, "attacks.0")


def test_parameters_take_the_types_of_their_fields(stubs):
    built = steps(steps="3", rate="1e-1")
    assert (built.steps, built.rate, built.doubled) == (3, 0.1, 6)
    assert steps(steps=3.0).rate == 0.1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "attacks.0.params.steps: missing; this parameter has no default."),
        (
            {"steps": 1, "step": 2},
            "attacks.0.params.step: unknown parameter. Did you mean 'steps'? Allowed: steps, rate.",
        ),
        ({"steps": 1, "doubled": 2}, "attacks.0.params.doubled: unknown parameter."),
        ({"steps": "x"}, "attacks.0.params.steps: expected a whole number, got 'x'."),
        ({"steps": True}, "attacks.0.params.steps: expected a whole number, got true."),
        ({"steps": 1, "rate": float("inf")}, "attacks.0.params.rate: expected a finite number, got inf."),
        ({"steps": 0}, "attacks.0.params.steps: expected at least 1, got 0."),
        ({"steps": 1, "rate": 2}, "attacks.0.params: a rate above the number of steps makes no sense."),
    ],
)
def test_bad_parameters_are_refused_at_their_path(params, message, stubs):
    with pytest.raises(ScenarioError) as caught:
        steps(**params)
    assert str(caught.value).startswith(message)


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """Parameters that hold others, and one with the name of a method of every pydantic model."""

    weights: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    copy: bool = False


def test_parameters_may_be_mappings_and_lists():
    given = {"weights": {"head": "1e-1", "embedding": 2}, "layers": [0, "3"], "share": 0.5, "copy": True}
    assert plugins.configure(Scheduled, given, "here") == Scheduled(
        weights={"head": 0.1, "embedding": 2.0}, layers=(0, 3), share=0.5, copy=True
    )
    assert plugins.configure(Scheduled, {}, "here") == Scheduled()


def test_faults_inside_parameters_are_told_by_their_path_all_at_once():
    with pytest.raises(ScenarioError) as caught:
        plugins.configure(Scheduled, {"weights": {"head": "x"}, "layers": [0, True], "share": 2, "lairs": 1}, "here")
    assert str(caught.value).splitlines() == [
        "here.weights.head: expected a number, got 'x'.",
        "here.layers.1: expected a whole number, got true.",
        "here.share: expected at most 1, got 2.",
        "here.lairs: unknown parameter. Did you mean 'layers'? Allowed: weights, layers, share, copy.",
    ]


def test_a_source_is_configured_beside_its_name():
    with pytest.raises(ScenarioError, match=r"^data.sampels: unknown parameter. Did you mean 'samples'"):
        plugins.build("data", Source, "shapes", {"sampels": 3}, "data")


def test_an_annotation_that_does_not_resolve_is_the_plug_ins_fault(stubs):
    with pytest.raises(PluginError, match="Unresolvable cannot be read: name 'Decimal' is not defined"):
        plugins.build("attacks", Attack, "broken_plugins:Unresolvable", {}, "attacks.0")


def test_parameters_are_listed_with_type_and_default(stubs):
    cls = plugins.load(plugins.find("attacks", "broken_plugins:Steps", "here"), Attack, "here")
    assert [(p.name, p.type, p.default, p.required) for p in plugins.parameters(cls)] == [
        ("steps", "int", None, True),
        ("rate", "float", 0.1, False),
    ]


def test_a_plug_in_is_fedsims_own_by_its_distribution():
    assert plugins.is_own(plugins.find("attacks", "patch_embedding", "here"))
    assert plugins.is_own(plugins.find("defenses", "mjp", "here"))
    assert not plugins.is_own(plugins.find("attacks", "fedsim_attacks.patch_embedding:PatchEmbedding", "here"))
    assert not plugins.is_own(PluginInfo("attacks", "x", "fedsim.attack:Attack", "another", "1"))
