"""The scenarios and the sweep files that ship with fedsim, by name."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.errors import ScenarioError, nearest
from fedsim.validation import shown

_SUFFIXES = (".yaml", ".yml")


def _folder() -> Path:
    """Return where they are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "scenarios"
    return installed if installed.is_dir() else package.parent / "scenarios"


def names() -> list[str]:
    """Return the names in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def path(name: str) -> Path:
    """Return the file of a shipped scenario.

    Raises:
        ScenarioError: there is none of this name.
    """
    known = names()
    if name not in known:
        raise ScenarioError(
            "list scenarios", f"no scenario {shown(name)}.{nearest(name, known)} Known: {', '.join(known) or 'none'}."
        )
    return _folder() / f"{name}.yaml"


def summary(name: str) -> str:
    """Return the first line of a shipped scenario, which says what it asks."""
    with path(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def sweeps() -> list[str]:
    """Return the names of the sweep files in alphabetical order."""
    return sorted(path.stem for path in (_folder() / "sweeps").glob("*.yaml"))


def find_for_sweep(named: str) -> Path:
    """Return the scenario or the sweep file that a user names; see `find`."""
    if named in sweeps() and not os.path.isfile(named):
        return _folder() / "sweeps" / f"{named}.yaml"
    return find(named)


def find(named: str) -> Path:
    """Return the scenario file that a user names: its path, or the name of a shipped scenario.

    A file in the working directory goes before a shipped scenario of the same name.

    Raises:
        ScenarioError: neither; the message names the nearest match.
    """
    known = names()
    if named in known and not os.path.isfile(named):
        return path(named)
    if os.path.exists(named):
        return Path(named)
    if os.sep not in named and not named.endswith(_SUFFIXES):
        raise ScenarioError(
            named,
            f"no such file, and no scenario that ships with fedsim.{nearest(named, known)} Known: "
            f'{", ".join(known) or "none"} (run "fedsim list scenarios").',
        )
    raise ScenarioError(named, f"no such file.{_alternative(Path(named), known)}")


def _alternative(missing: Path, known: list[str]) -> str:
    """Return what the user may have meant by a file that is not there: one beside it, or a shipped scenario."""
    try:
        beside = {entry.name for entry in missing.parent.iterdir() if entry.suffix in _SUFFIXES}
    except (OSError, ValueError):
        beside = set()
    advice = nearest(missing.name, beside)
    if not advice and missing.stem in known:
        advice = f" The scenario that ships with fedsim goes by its name alone: {missing.stem}."
    return advice
