"""Which code made a figure: digests of the modules that an attack imports, and digests of before that find the same."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "fedsim_attacks"
SAME_RESULTS = Path(__file__).with_name("results") / "attack_sources.json"
"""JSON: attack -> digests that find the same in updates as the last of them, which is today's where nothing has changed
since.

`package` lists digests of the whole package, which figures had until each attack got one of its own. What they stand for
was shown by `quickstart`, `mjp_gamma` and `dp_noise_sweep`, run again (`benchmarks/scenario_tables.py --run`): the same
files but for digests and seconds. First `picture` became `image` in names and messages. Then attacks learned of dropped
entries, signs, unknown factors and clipped local steps, and another attack joined; then of bottlenecks before the
classifier: without one the loss is the same to the last bit (`tests/models/test_precode.py`), and `flower_privacy`, run
before and after, gave the same. Then the localization loss of `mjp` was subtracted from batches that are not masked and
where it has no head, of which no row is, and attacks said how they are run without being told of defenses. Later rounds
of `quickstart` and `mjp_gamma` move in the fourth digit, for the server averages the parameters of `mjp` over those who
train them. Then estimates of label counts were shifted before they are rounded, which changes large ones alone. Then
`span_inversion` joined, and observed apps could name their own loss; then it learned of images with missing tokens.

With digests for each attack: `gradvit` learned `paper`, and prior networks may come out of checkpoints. With the same
generator it finds the same to the last bit, and so did all others that import these, each in a run before and after.
"""


def digest(attack: str) -> str:
    """Return a digest of the code of an attack and of all that it imports of its package, without comments and docstrings.

    Raises:
        KeyError: no attack of this package has that name.
    """
    found = hashlib.sha256()
    for module in sorted(_imported(_modules()[attack])):
        found.update(module.encode())
        found.update(_code(_file(module).read_bytes()))
    return found.hexdigest()[:12]


def digests(attacks: Iterable[str]) -> dict[str, str]:
    """Return the digest of each attack, those of other packages left out."""
    return {attack: digest(attack) for attack in sorted(set(attacks)) if attack in _modules()}


def is_current(made_by: Mapping[str, str]) -> bool:
    """Return whether today's attacks are those that made figures, or find the same.

    Args:
        made_by: attack -> digest.
    """
    return not older(made_by)


def older(made_by: Mapping[str, str]) -> list[str]:
    """Return the digests of attacks that are not today's and are not known to find the same; see `is_current`."""
    return [code for attack, code in made_by.items() if attack in _modules() and not _is_same(attack, code)]


def _is_same(attack: str, code: str) -> bool:
    today, same = digest(attack), _same_results()
    known = same.get(attack, [])
    return code == today or (today in known and code in [*known, *same["package"]])


@functools.cache
def _same_results() -> dict[str, list[str]]:
    return json.loads(SAME_RESULTS.read_text())  # type: ignore[no-any-return]


@functools.cache
def _modules() -> dict[str, str]:
    """Return the module of each attack of the package."""
    found = {point.name: point.module for point in entry_points(group="fedsim.attacks")}
    return {name: module for name, module in found.items() if module.split(".")[0] == PACKAGE}


@functools.cache
def _imported(module: str) -> frozenset[str]:
    """Return the modules of the package that importing one of them runs, with itself."""
    waiting, found = [module], set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _parents(name)
            waiting += _imports(name)
    return frozenset(found)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@functools.cache
def _imports(module: str) -> list[str]:
    """Return the modules of the package that a module names in an import, wherever that stands."""
    found = []
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [name for name in names if name.split(".")[0] == PACKAGE and _file(name).exists()]
    return found


def _file(module: str) -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.lru_cache(maxsize=1024)
def _code(source: bytes) -> bytes:
    """Return the syntax tree of a module without its docstrings; making one takes long."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_text = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        if has_text:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
