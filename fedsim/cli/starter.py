"""The commented scenario that `fedsim init` writes."""

from __future__ import annotations

import re
from pathlib import Path

from fedsim.errors import ScenarioError
from fedsim.validation import shown

_TEMPLATE = Path(__file__).parent / "starter.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def text(name: str) -> str:
    """Return a scenario of this name, with a comment on every key."""
    return _TEMPLATE.read_text(encoding="utf-8").replace("name: NAME", f"name: {name}", 1)


def write(path: Path) -> Path:
    """Write it into a new file, whose name without .yaml is the scenario's; returns the file.

    Raises:
        ScenarioError: the file exists, or its name cannot be that of a scenario.
    """
    file = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    name = file.stem
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            "init",
            f"expected a name of letters, digits, dots, dashes and underscores, a letter or digit first, got {shown(name)}.",
        )
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text(name))
    except FileExistsError:
        raise ScenarioError(str(file), "exists, and is left as it is. Give another name: fedsim init NAME.") from None
    return file
