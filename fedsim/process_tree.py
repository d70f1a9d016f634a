"""A process together with all that it has started, as Linux lists it under /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# What the system cannot drop: files are read again when they are needed. Swapped pages are held as well.
_HELD = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


def descendants(process: int) -> list[int]:
    """Return what a process has started, and so on, in whatever session; where the system lists it, else nothing."""
    found = []
    with contextlib.suppress(OSError):
        for listed in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                found += [child, *descendants(child)]
    return found


def tells_memory() -> bool:
    """Return whether this system tells what `memory` needs; Linux does, with few exceptions."""
    me = os.getpid()
    return _held(me) is not None and Path(f"/proc/{me}/task/{me}/children").exists()


def memory(process: int) -> int:
    """Return how many bytes of memory a process and its descendants hold, swapped ones included and files left out.

    A page that several processes share counts in equal parts for each of them. So what the tree shares within itself counts
    once, however many copies of a process there are.
    """
    return sum(_held(one) or 0 for one in (process, *descendants(process)))


def _held(process: int) -> int | None:
    """Return the bytes that one process holds; None where it has ended, or the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith(_HELD)]
    return 1024 * sum(kibibytes) if len(kibibytes) == len(_HELD) else None
