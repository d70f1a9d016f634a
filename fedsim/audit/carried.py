"""The run folder for nodes that do not see it: what tasks read goes there through Ray's object store, what they make returns.

The driver lists the files that tasks read, each by a digest and a reference to its content, which it puts into the store once.
A process of Ray on such a node keeps a copy in a temporary folder, fetches what the copy lacks before each task, and answers
with the artifacts that the task has made there.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fedsim.errors import RunFolderError
from fedsim.recording import files

_TOP = (
    "captures/index.jsonl",
    "captures/removed.jsonl",
    "scenario.yaml",
    "environment.json",
    "inputs.json",
    "truth.json",
    "model.safetensors",
)
_MADE = "artifacts"
_PREFIX = "fedsim-node-"


class Stored(NamedTuple):
    """A file of the run folder in the object store.

    Args:
        digest: SHA-256 of its content.
        reference: Ray's, to the content.
    """

    digest: str
    reference: Any


Listing = Mapping[str, Stored]
"""Files by their names, relative to the run folder."""


class _Version(NamedTuple):
    inode: int
    size: int
    changed: int


class Sender:
    """Lists the files of a run folder for nodes that do not see it.

    Args:
        put: puts a content into the object store and returns a reference.
        folder: the run.
    """

    def __init__(self, put: Callable[[bytes], Any], folder: Path) -> None:
        self._put, self._folder = put, folder
        self._stored: dict[str, tuple[_Version, Stored]] = {}
        self._lock = threading.Lock()

    def listing(self) -> Listing:
        """Return what a task may read now; contents that are new or have changed are put into the store."""
        with self._lock:
            found: dict[str, tuple[_Version, Stored]] = {}
            for path in self._files():
                name = path.relative_to(self._folder).as_posix()
                # An update may be removed once its audit is over, while that of others goes on.
                with contextlib.suppress(FileNotFoundError):
                    found[name] = self._current(name, path)
            self._stored = found
            return {name: stored for name, (_, stored) in found.items()}

    def _files(self) -> Iterator[Path]:
        # The index before the captures: whatever it lists is there by then.
        yield from (self._folder / name for name in _TOP)
        for pattern in ("captures/**/*.safetensors", f"{_MADE}/**/*.safetensors"):
            yield from self._folder.glob(pattern)

    def _current(self, name: str, path: Path) -> tuple[_Version, Stored]:
        descriptor = files.open_file(path, self._folder)
        with open(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            version = _Version(state.st_ino, state.st_size, state.st_mtime_ns)
            known = self._stored.get(name)
            if known is not None and known[0] == version:
                return known
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        if known is not None and known[1].digest == digest:
            return version, known[1]
        return version, Stored(digest, self._put(content))

    def keep(self, made: Mapping[str, bytes]) -> None:
        """Write what a task has made on a node into the run folder.

        Raises:
            RunFolderError: a name is none of an artifact, or it cannot be written.
        """
        for name, content in made.items():
            if PurePosixPath(name).parts[:1] != (_MADE,):
                raise RunFolderError(f"{name[:200]!r}: a Ray node returned it, and tasks make files in {_MADE}/ alone.")
            files.write_atomically(self._folder / name, content, self._folder)


class Copy:
    """A copy of a run folder on a node, for one process of Ray.

    Args:
        name: what the folder is called where the run is.
    """

    def __init__(self, name: str) -> None:
        _remove_left_behind()
        self._place = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self._place, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = self._place / name
        self._digests: dict[str, str] = {}
        atexit.register(self.remove)

    def update(self, listing: Listing, fetch: Callable[[Any], bytes]) -> None:
        """Make the copy hold what is listed, and nothing else.

        Raises:
            RunFolderError: it cannot be written, the disk of the node may be full.
        """
        for name in self._digests.keys() - listing.keys():
            (self.path / name).unlink(missing_ok=True)
            del self._digests[name]
        for name, stored in listing.items():
            if self._digests.get(name) != stored.digest:
                files.write_atomically(self.path / name, fetch(stored.reference), self.path)
                self._digests[name] = stored.digest

    def made(self) -> dict[str, bytes]:
        """Return the artifacts that are new or have changed since the last update, and take them for known."""
        found = {}
        for path in (self.path / _MADE).rglob("*"):
            if not path.is_file() or files.is_partial(path):
                continue
            name, content = path.relative_to(self.path).as_posix(), path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if self._digests.get(name) != digest:
                found[name], self._digests[name] = content, digest
        return found

    def remove(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._place, ignore_errors=True)
        os.close(self._lock)
        atexit.unregister(self.remove)


def _remove_left_behind() -> None:
    """Remove copies of processes that were killed, which nobody locks any more: they hold what clients sent."""
    for place in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # That of somebody else, or one that is in use.
        with contextlib.suppress(OSError):
            lock = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)
