"""Arguments and options that several commands take, and what a shell completes them with.

What an argument is stands in the docstring of its command: typer 0.20, which Flower pins, shows no help of arguments.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedsim import shipped


class Verdict(StrEnum):
    """A verdict that --fail-on may name, from the worst."""

    leaks = "leaks"
    partial = "partial"
    inconclusive = "inconclusive"


def shipped_names(incomplete: str) -> list[str]:
    """Return the shipped scenarios that begin with what was typed; a shell completes file names where there are none."""
    return [name for name in shipped.names() if name.startswith(incomplete)]


ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", show_default=False, autocompletion=shipped_names)]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one key of the scenario; may be repeated.")
]
FailOn = Annotated[
    Verdict | None,
    typer.Option(help="End with exit code 3 where the worst verdict is this one or a worse one, for use in CI."),
]
Engine = Annotated[
    str | None, typer.Option("--engine", help="inline, ray or deployment; the scenario's own otherwise.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
