"""What a run ran on: versions, platform, and where each package was imported from."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from fedsim import __version__
from fedsim.errors import RunFolderError
from fedsim.recording import files

_PACKAGES = (
    "flwr",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-image",
    "lpips",
)
_OWN = ("fedsim", "fedsim_attacks", "fedsim_defenses")

Origin = Literal["simulated", "observed"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def imported_from() -> dict[str, str | None]:
    """Return the folder of each of fedsim's packages; the parents differ when a checkout shadows a wheel."""
    found = {name: importlib.util.find_spec(name) for name in _OWN}
    return {name: os.path.dirname(spec.origin) if spec and spec.origin else None for name, spec in found.items()}


def describe(origin: Origin) -> dict[str, Any]:
    """Return the environment of this process.

    Args:
        origin: `simulated` when fedsim trained the clients itself, so that the truth can be derived from the scenario;
            `observed` when it watched somebody else's app, whose data it does not know.
    """
    return {
        "origin": origin,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {"fedsim": __version__, **{package: _version(package) for package in _PACKAGES}},
        "imported_from": imported_from(),
    }


def origin(folder: Path) -> Origin:
    """Return how a run folder came about, as environment.json states; where that is missing, only a simulation logs rounds.

    Raises:
        RunFolderError: environment.json is damaged.
    """
    path = folder / "environment.json"
    content = files.read_json(path, folder)
    if content is None:
        return "simulated" if files.is_file(folder / "rounds.jsonl", folder) else "observed"
    stated = content.get("origin") if isinstance(content, dict) else None
    if stated == "simulated":
        return "simulated"
    if stated == "observed":
        return "observed"
    raise RunFolderError(f"{path}: origin: expected 'simulated' or 'observed', got {stated!r:.80}. Restore the file.")


def is_observed(folder: Path) -> bool:
    """Return whether environment.json states that the folder was observed; not so where it is missing.

    Raises:
        RunFolderError: environment.json is damaged.
    """
    content = files.read_json(folder / "environment.json", folder)
    return isinstance(content, dict) and content.get("origin") == "observed"


def as_json(origin: Origin) -> str:
    """Return `describe` as the text of environment.json."""
    return json.dumps(describe(origin), indent=2) + "\n"
