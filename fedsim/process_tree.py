"""A process together with all that it has started, as Linux lists it under /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def descendants(process: int) -> list[int]:
    """Return what a process has started, and so on, in whatever session; where the system lists it, else nothing."""
    found = []
    with contextlib.suppress(OSError):
        for listed in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                found += [child, *descendants(child)]
    return found
