"""A process together with all that it has started, as Linux lists it under /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What the system cannot drop: files are read again when they are needed. Swapped pages are held as well.
_HELD = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


class Leader(NamedTuple):
    """A process that leads a session of its own, by its number and when it began: another one may get the number later."""

    number: int
    began: int | None
    """In ticks since the system started; None where it does not tell."""


def leader(process: int) -> Leader:
    """Return a running process as the leader that it is, or is about to become."""
    listed = _listed(process)
    return Leader(process, listed.began if listed else None)


def descendants(process: int) -> list[int]:
    """Return what a process has started, and so on, in whatever session; where the system lists it, else nothing."""
    threads: list[Path] = []
    with contextlib.suppress(OSError):
        threads += Path(f"/proc/{process}/task").iterdir()
    found = []
    for thread in threads:
        # One that ends meanwhile hides nothing of the others.
        with contextlib.suppress(OSError):
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def end_descendants() -> None:
    """Kill all that this process has started, and so on, in whatever session; where the system lists them."""
    killed: set[int] = set()
    # All are found before the first ends, and what one starts meanwhile is found by the next look.
    while found := {*descendants(os.getpid())} - killed:
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        killed |= found


def end_session(leader: Leader) -> None:
    """Kill a session and what its members have started in other sessions; its leader may have ended.

    What a leader that has ended had itself started in another session is not found: nothing links the two any more. Where the
    system lists no processes, the leader's group is all that is killed.
    """
    if leader.began is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.number, signal.SIGKILL)
        return
    now = _listed(leader.number)
    # A number is given to no other process as long as a session has it.
    if now is not None and now.began != leader.began:
        return
    killed: set[int] = set()
    # What a member starts while this looks is found by the next look. All are found before the first ends, and its children
    # get another parent.
    while found := {*_family(leader.number)} - killed:
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        killed |= found


def _family(session: int) -> Iterator[int]:
    """Yield the leader of a session, if it is there, its members and the descendants of each."""
    for process in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        listed = _listed(process)
        if listed is not None and session in (process, listed.session):
            yield process
            yield from descendants(process)


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


class _Listed(NamedTuple):
    session: int
    began: int


def _listed(process: int) -> _Listed | None:
    """Return what the system lists of a process; None where there is none, or it does not list them."""
    try:
        # Behind its name, which may hold anything.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return _Listed(session=int(fields[3]), began=int(fields[19]))


def _held(process: int) -> int | None:
    """Return the bytes that one process holds; None where it has ended, or the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith(_HELD)]
    return 1024 * sum(kibibytes) if len(kibibytes) == len(_HELD) else None
