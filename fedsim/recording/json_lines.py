"""JSON Lines files of a run folder: a line counts once its newline is written, so a kill never leaves half a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import RunFolderError
from fedsim.recording import files


def read_lines(path: Path, root: Path | None = None) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON Lines file; a half-written last line does not count.

    Args:
        path: the file.
        root: the run folder that no link leads out of; the file's own folder otherwise.

    Raises:
        RunFolderError: a complete line is not a JSON object, so the file was damaged by something else than a kill.
    """
    return _parsed(path, files.read(path, root or path.parent) or b"", 1)


def _parsed(path: Path, content: bytes, first: int) -> list[dict[str, Any]]:
    """Return the complete lines of a content whose first line has this number in the file."""
    found = []
    for number, line in enumerate(content.split(b"\n")[:-1], first):
        try:
            found.append(dict(files.parse_json(line)))
        except (TypeError, ValueError) as error:
            reason = f" ({error})" if isinstance(error, ValueError) else ""
            raise RunFolderError(
                f"{path}: line {number} is not a JSON object{reason}. Delete the file to redo it."
            ) from None
    return found


class Known(NamedTuple):
    """How much of an append-only file somebody has read.

    Args:
        file: the number of its inode.
        size: of the complete lines, in bytes.
        lines: how many these are.
    """

    file: int = -1
    size: int = 0
    lines: int = 0


class JsonLines:
    """An append-only JSON Lines file, safe against a kill in the middle of a line.

    Args:
        path: the file.
        root: the run folder that no link leads out of; the file's own folder otherwise.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self._root = path, root or path.parent

    def read(self) -> list[dict[str, Any]]:
        """Return the complete lines."""
        return read_lines(self.path, self._root)

    def read_more(self, known: Known) -> tuple[list[dict[str, Any]], Known]:
        """Return the complete lines beyond those that are known, and what is known then; all where the file is another one."""
        try:
            with open(files.open_file(self.path, self._root), "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != known.file or found.st_size < known.size:
                    known = Known(found.st_ino)
                files.check_size(self.path, found.st_size - known.size)
                file.seek(known.size)
                content = file.read(files.MAX_TEXT)
        except FileNotFoundError:
            return [], Known()
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be read: {error.strerror}.") from None
        lines = _parsed(self.path, content, known.lines + 1)
        return lines, Known(known.file, known.size + content.rfind(b"\n") + 1, known.lines + len(lines))

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line and flush it to disk; a half-written line before it is cut off first.

        Raises:
            RunFolderError: it cannot be written; see `files.writing`.
        """
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with files.writing(self.path):
            files.make_folders(self.path, self._root)
            descriptor = files.open_file(self.path, self._root, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            with open(descriptor, "ab+") as file:
                self._cut_half_line(file)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    @staticmethod
    def _cut_half_line(file: Any) -> None:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)

    def rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Replace the whole file atomically."""
        content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        files.write_atomically(self.path, content, self._root)
