"""The lock of a run folder: one fedsim process at a time works in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fedsim.errors import RunFolderError
from fedsim.recording import files

LOCK = ".lock"
"""The file that is locked; it stays, empty, in the folder."""


class FolderLock:
    """Keeps other processes out of a run folder, until it is released or this process ends, however it ends.

    The lock is the kernel's, so that a killed process leaves none behind, and filelock closes it in forked processes: a
    worker that outlives a killed run does not hold its folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Without the kernel's locks (`fallback_to_soft`) a killed process would leave its lock behind.
        self._lock = FileLock(folder / LOCK, mode=0o600, thread_local=False, fallback_to_soft=False)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, and remove what a killed process was writing aside. Whoever holds it may take it again.

        Raises:
            RunFolderError: another process holds it, the folder is gone or cannot be locked, or the lock is a link, a pipe or
                the like.
        """
        is_first = not self._lock.is_locked
        if not self._folder.is_dir():  # which filelock would make
            raise RunFolderError(f"{self._folder}: no such folder.")
        files.is_file(self._folder / LOCK, self._folder)
        try:
            held = self._lock.acquire(blocking=False)
        except Timeout:
            raise RunFolderError(f"{self._folder}: another fedsim process is working on this run.") from None
        except OSError as error:
            raise RunFolderError(f"{self._folder / LOCK}: cannot be locked: {error.strerror or error}.") from None
        with held:
            if is_first:
                for leftover in filter(files.is_partial, self._folder.rglob(".*.partial")):
                    leftover.unlink(missing_ok=True)
            yield
