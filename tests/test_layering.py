import ast
import graphlib
from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).parent.parent
PLUGINS = ("fedsim_attacks", "fedsim_defenses")
FOLDERS = ("attacks", "defenses")
CORE = sorted((ROOT / "fedsim").rglob("*.py"))
KIT = sorted((ROOT / "fedsim" / "testing").rglob("*.py"))
THEIRS = sorted(path for name in PLUGINS for path in ROOT.glob(f"*/{name}/**/*.py"))
# What plug-ins may import of the simulator; all else, of today or later, may be the truth or a way to it.
OPEN_MODULES = (
    "fedsim.applicability",
    "fedsim.attack",
    "fedsim.coercion",
    "fedsim.defense",
    "fedsim.errors",
    "fedsim.exchange",
    "fedsim.gaussian_dp",
    "fedsim.labels",
    "fedsim.models",
    "fedsim.network_cache",
    "fedsim.progress",
    "fedsim.registry",
    "fedsim.seeds",
)
# Evaluators are shown test images, which no client holds, and no update; nothing that they import loads images.
EVALUATORS = ROOT / "defenses" / "fedsim_defenses" / "evaluators"
OPEN_TO_EVALUATORS = (*OPEN_MODULES, "fedsim.evaluator", "fedsim.source")
# Packages of the attacks, floor by floor: what stands on one imports from lower ones alone. The attacks stand on top.
ATTACKS = ROOT / "attacks" / "fedsim_attacks"
FLOORS = ({"update", "priors", "solvers"}, {"head", "closed_form", "newton", "spans"}, {"matching"})
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
LOADERS = {"__import__", "import_module", "eval", "exec"}


def imports(source):
    """Yield the full name of everything that a module imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(source):
    """Yield every identifier of a module, attributes and texts that are a mere identifier included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_under(name, modules):
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def sealed(source, open_modules=OPEN_MODULES):
    """Return what a module imports of the simulator beyond what is open to plug-ins."""
    plain = [alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names]
    within = [name for name in imports(source) if is_under(name, ["fedsim"]) and not is_under(name, open_modules)]
    # "from fedsim import x" names the package too, which alone gives nothing.
    return [name for name in within if name != "fedsim" or name in plain]


def identified(path):
    return path.relative_to(ROOT).as_posix()


def test_the_files_are_found():
    assert len(CORE) > 40 and ROOT / "fedsim" / "audit" / "threat.py" in CORE
    assert {path.relative_to(ROOT).parts[1] for path in THEIRS} == set(PLUGINS)
    assert ROOT / "fedsim" / "testing" / "attack.py" in KIT


@pytest.mark.parametrize("path", CORE, ids=identified)
def test_the_simulator_knows_no_plugin(path):
    source = path.read_text()
    assert not [name for name in imports(source) if is_under(name, (*PLUGINS, *FOLDERS))]
    # environment.json says where they were imported from, without importing them.
    if path != ROOT / "fedsim" / "recording" / "environment.py":
        assert not set(names(source)) & set(PLUGINS)


@pytest.mark.parametrize("path", THEIRS, ids=identified)
def test_a_plugin_never_names_the_truth_or_the_way_to_it(path):
    source = path.read_text()
    assert not sealed(source, OPEN_TO_EVALUATORS if EVALUATORS in path.parents else OPEN_MODULES)
    assert not [name for name in imports(source) if is_under(name, ["importlib", "gc"])]
    assert not set(names(source)) & {"Truth", *LOADERS}


@pytest.mark.parametrize("path", KIT, ids=identified)
def test_the_kit_needs_no_test_framework(path):
    assert not [name for name in imports(path.read_text()) if is_under(name, ["pytest", "hypothesis", "beartype"])]


@pytest.mark.parametrize(
    "source",
    [
        "from fedsim.planning import plan",
        "from fedsim.data.batches import FederatedData",
        "def f():\n    import fedsim.audit.threat as t",
        "import fedsim.recording.run_folder",
        "from fedsim.audit import calibration",
        "from fedsim.audit.coverage import gaps",
        "import fedsim.planning.inputs",
        "from fedsim.audit.replay import trained_on",
        "import fedsim",
        "from fedsim import *",
        "from fedsim import a_module_that_is_added_later",
    ],
)
def test_the_check_sees_every_way_to_write_an_import(source):
    assert sealed(source)


def test_what_is_open_to_plug_ins_passes_and_is_there():
    assert not sealed(
        "from fedsim import models, seeds\nfrom fedsim.exchange import Finding\nimport fedsim.attack as a"
    )
    places = [ROOT / name.replace(".", "/") for name in OPEN_MODULES]
    assert all({place.with_suffix(".py"), place / "__init__.py"} & {*CORE} for place in places)


@pytest.mark.parametrize(
    "source", ["from fedsim.exchange import Truth", "exchange.Truth", 'getattr(exchange, "Truth")']
)
def test_the_check_sees_every_way_to_name_the_truth(source):
    assert "Truth" in set(names(source))


def test_every_package_of_the_attacks_has_its_floor():
    assert {
        parts[0] for parts, path in structure.modules(ATTACKS).items() if path.name == "__init__.py" and parts
    } == set(FLOOR)


@pytest.mark.parametrize("path", sorted(ATTACKS.rglob("*.py")), ids=identified)
def test_imports_between_packages_of_the_attacks_go_down_and_through_the_package(path):
    own, *inside = path.relative_to(ATTACKS).parts
    floor = FLOOR[own] if inside else len(FLOORS)
    others = {parts for parts in structure.imported(ATTACKS, path) if not inside or parts[0] != own}
    assert all(len(parts) == 1 and FLOOR.get(parts[0], len(FLOORS)) < floor for parts in others), others


def test_no_circle_of_imports_in_the_attacks():
    modules = structure.modules(ATTACKS)
    graph = {
        parts: structure.imported(ATTACKS, path) - {parts[:1]} for parts, path in modules.items() if len(parts) > 1
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index(("matching", "descent")) > order.index(("newton",))


def test_no_circle_of_imports_between_the_rooms_of_the_simulator():
    floors = structure.floors(structure.rooms(ROOT / "fedsim"))  # raises CycleError
    order = ["errors", "scenario", "models", "metrics", "recording", "verdicts", "report", "simulation", "cli"]
    assert sorted(order, key=floors.get) == order
    assert floors["exchange"] == 0 and floors["planning"] < floors["federation"] < floors["audit"]
