"""The structure of a package as its imports show it: rooms, floors and arrows.

    python tests/support/structure.py fedsim attacks/fedsim_attacks

A room is a package, or a module beside packages; an arrow is one room that imports from another; a room's floor is the length
of the longest way down from it. `__init__` and `__main__` of the whole are entrances, and no rooms.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Parts = tuple[str, ...]


def modules(root: Path) -> dict[Parts, Path]:
    """Return the modules of a package by their parts below it, packages included."""
    paths = {path.relative_to(root).with_suffix("").parts: path for path in root.rglob("*.py")}
    return {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in paths.items()}


def imported(root: Path, path: Path) -> set[Parts]:
    """Return the modules of a package that a file imports, wherever the statement stands."""
    known, found = modules(root), set()
    for name, inside in _imports(path):
        first, *package = name.split(".")
        if first == root.name:
            below = {(*package, alias) for alias in inside}
            found |= (below & known.keys()) or {tuple(package)}
    return found & known.keys()


def _imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def rooms(root: Path) -> dict[str, set[str]]:
    """Return each room with those that it imports from."""
    found: dict[str, set[str]] = {}
    for parts, path in modules(root).items():
        if parts and parts != ("__main__",):
            others = {other[0] for other in imported(root, path) if other} - {parts[0]}
            found.setdefault(parts[0], set()).update(others)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return each room's floor, from 0.

    Raises:
        graphlib.CycleError: rooms import one another in a circle.
    """
    found: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        found[room] = max((found[other] + 1 for other in graph[room]), default=0)
    return found


def main(folders: list[str]) -> None:
    """Print what each package counts, floor by floor."""
    for folder in folders:
        graph = rooms(Path(folder))
        levels = floors(graph)
        arrows = sum(map(len, graph.values()))
        print(f"{folder}: {len(graph)} rooms on {max(levels.values()) + 1} floors, {arrows} arrows")
        for level in sorted(set(levels.values()), reverse=True):
            print(f"  {level}: {', '.join(sorted(room for room in graph if levels[room] == level))}")


if __name__ == "__main__":
    main(sys.argv[1:])
