"""The index of the captures: one line per stored file, with its SHA-256, or per failed client.

Beside it, removed.jsonl tells of the updates that an audit has removed. It is a file of its own, since whoever trains writes
the index, in another process where a run is deployed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fedsim.errors import RunFolderError
from fedsim.recording import files, records
from fedsim.recording.headers import MODEL, IndexLine, RemovedLine, client_key
from fedsim.recording.json_lines import JsonLines, Known


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CaptureIndex:
    """What captures/index.jsonl says of each file; the last line of a key counts.

    Args:
        root: the run folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lines = JsonLines(root / "captures" / "index.jsonl", root)
        self._entries: dict[str, IndexLine] = {}
        self._by_round: dict[int, dict[int, IndexLine]] = {}
        self._known, self._is_read = Known(), False
        self._removals = JsonLines(root / "captures" / "removed.jsonl", root)
        self._removed: set[str] | None = None
        self._verified: set[str] = set()

    @property
    def path(self) -> Path:
        """Where the index is."""
        return self._lines.path

    def read(self) -> list[IndexLine]:
        """Return its lines as they are on disk.

        Raises:
            RunFolderError: a line is damaged.
        """
        return records.check(self.path, self._lines.read(), IndexLine)

    def refresh(self) -> None:
        """Read what the index has more, after another process has written to the folder."""
        self._is_read, self._removed = False, None

    def _load(self) -> dict[str, IndexLine]:
        if not self._is_read:
            # Only what is new: tasks of an audit refresh often, and an index has a line for each update.
            lines, known = self._lines.read_more(self._known)
            before = known.lines - len(lines)
            if not before:
                self._entries, self._by_round = {}, {}
            for line in records.check(self.path, lines, IndexLine, before):
                self._put(line)
            self._known, self._is_read = known, True
        return self._entries

    def _put(self, line: IndexLine) -> None:
        self._entries[line.key] = line
        if line.round is not None and line.client is not None and line.key == client_key(line.round, line.client):
            self._by_round.setdefault(line.round, {})[line.client] = line

    def add(self, line: IndexLine) -> None:
        """Add a line."""
        # Reading the index before the first write also finds what an earlier, killed run has captured.
        self._load()
        self._lines.append(line.model_dump(exclude_none=True))
        self._put(line)

    def __contains__(self, key: str) -> bool:
        return key in self._load()

    def file(self, key: str) -> Path:
        """Return where the file of a key is."""
        return (self._root if key == MODEL else self._root / "captures") / f"{key}.safetensors"

    def sha256(self, key: str) -> str | None:
        """Return the checksum of a key's file; None where none is listed."""
        line = self._load().get(key)
        return line.sha256 if line else None

    def is_stored(self, key: str) -> bool:
        """Return whether the file of a key is listed, and on disk."""
        return self.sha256(key) is not None and files.is_file(self.file(key), self._root)

    def is_removed(self, key: str) -> bool:
        """Return whether an audit has removed the file of a key, and nobody has made it again."""
        if self._removed is None:
            lines = records.check(self._removals.path, self._removals.read(), RemovedLine)
            self._removed = {client_key(line.round, client) for line in lines for client in line.clients}
        return key in self._removed and not self.is_stored(key)

    def remove(self, round: int, clients: Sequence[int]) -> None:
        """Remove the replies of clients in a round from disk; that they were removed is written first."""
        self._removals.append(RemovedLine(round=round, clients=list(clients)).model_dump())
        self._removed = None
        for client in clients:
            self.file(client_key(round, client)).unlink(missing_ok=True)

    def check_is_there(self, key: str) -> None:
        """Refuse a file that the index lists and that is gone.

        Raises:
            RunFolderError: it is missing.
        """
        if self.is_removed(key):
            raise RunFolderError(
                f"{self.file(key)}: removed after its audit, as audit.keep_updates said. To make it again, set "
                f"audit.keep_updates: all in scenario.yaml, delete {self._removals.path}, and use fedsim run --resume."
            )
        if self.sha256(key) is not None and not files.is_file(self.file(key), self._root):
            raise RunFolderError(
                f"{self.file(key)}: missing, though captures/index.jsonl lists it. Restore it; a simulated run "
                "makes it again with fedsim run --resume."
            )

    def verify(self, key: str) -> None:
        """Compare a stored file with its checksum, once.

        Raises:
            RunFolderError: not in the index, missing, or changed since it was written.
        """
        file, expected = self.file(key), self.sha256(key)
        if expected is None:
            raise RunFolderError(f"{file}: not in captures/index.jsonl.")
        self.check_is_there(key)
        if key in self._verified:
            return
        # The header first, which is quick: it tells a file that is cut off, or states more than it holds.
        fault = files.tensors_fault(file)
        if fault is None and digest(file) != expected:
            fault = "its checksum differs from captures/index.jsonl"
        if fault is not None:
            raise RunFolderError(
                f"{file}: corrupted, {fault}. Restore the file, or delete it and its line in the index and use --resume."
            )
        self._verified.add(key)

    def captured(self, round: int) -> tuple[int, ...]:
        """Return the clients whose replies of the round are stored, ascending."""
        return tuple(sorted(client for client, line in self._of(round).items() if line.sha256 is not None))

    def captured_rounds(self) -> tuple[int, ...]:
        """Return the rounds of which a client's reply is stored, ascending."""
        self._load()
        return tuple(sorted(round for round in self._by_round if self.captured(round)))

    def failures(self, round: int) -> dict[int, str]:
        """Return the clients that failed in the round, with their messages."""
        return {client: line.failed for client, line in self._of(round).items() if line.failed is not None}

    def failed_rounds(self) -> tuple[int, ...]:
        """Return the rounds in which a client failed, ascending."""
        self._load()
        return tuple(sorted(round for round in self._by_round if self.failures(round)))

    def _of(self, round: int) -> dict[int, IndexLine]:
        self._load()
        return self._by_round.get(round, {})
