"""What the commands print: text for people, or JSON for programs; complaints go to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fedsim.errors import printable_line, printable_lines

out = Console(markup=False, emoji=False)


def say(text: str, style: str | None = None) -> None:
    """Print one line, which the terminal may wrap and a pipe gets whole."""
    out.print(printable_line(text), style=style, highlight=False, markup=False, soft_wrap=True)


def note(notes: Sequence[str]) -> None:
    """Print what the user should know though it is no fault."""
    for text in notes:
        say(f"note: {text}", "yellow")


def complain(message: str) -> None:
    """Print an error."""
    console = Console(stderr=True, emoji=False)
    console.print(printable_lines(message), style="red", markup=False, highlight=False, soft_wrap=True)


def write_json(value: Any) -> None:
    """Print a value as JSON; what JSON does not know becomes text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
