"""Files of a run folder: no path is followed out of it, and every kind of damage has one error.

A run folder may come from somebody else. Symbolic links, named pipes, sockets and devices inside it are refused before they
are opened, for reading and for writing. The folder itself may be reached through a link, and a hard link is an ordinary file.
What is made here can be read by its owner alone: a run folder holds images of clients.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsim.errors import RunFolderError

MAX_DEPTH = 80
"""Levels of nesting that JSON of a run folder may have: an attack may nest its trace 64 deep, and a few come around it."""

MAX_TEXT = 2**30
"""Bytes that a text file of a run folder may have: half a million records of one attack on one image."""

OWNER_ONLY = 0o700
"""Rights of a folder that holds a run."""

_OWNER_FILE = 0o600
_PARTIAL = re.compile(r"\..+\.\d+\.\d+\.partial")
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)
# What safetensors and torch raise for a file that is damaged or of somebody else.
_DAMAGE = (SafetensorError, AttributeError, KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RESUME = "Make room and go on: fedsim run --resume, or fedsim audit."
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors tells one


class DamagedFileError(RunFolderError):
    """A file of a run folder that is there and does not hold what it must."""


def is_partial(path: Path) -> bool:
    """Return whether a path is what a killed process was writing aside."""
    return _PARTIAL.fullmatch(path.name) is not None and not path.is_dir()


# Places


def state(path: Path, root: Path) -> os.stat_result | None:
    """Return what is at a path of a run folder, without following a link; None when nothing is there.

    Raises:
        RunFolderError: the path leads out of the folder, or passes a link or a file where a folder is expected.
    """
    found = None
    for place in _places(path, root):
        if found is not None:
            _refuse_unless(stat.S_ISDIR, found, place.parent, "a folder")
        try:
            found = place.lstat()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{place}: cannot be read: {_reason(error)}.") from None
        if stat.S_ISLNK(found.st_mode):
            raise RunFolderError(
                f"{place}: a symbolic link, and no path of a run folder is followed out of it. Put what it points to in its "
                "place, or delete it."
            )
    return found


def _places(path: Path, root: Path) -> Iterator[Path]:
    """Yield each folder on the way from the root down to a path, and the path."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if not parts or ".." in parts:
        raise RunFolderError(f"{path}: outside the run folder.")
    place = root
    for part in parts:
        place /= part
        yield place


def _refuse_unless(is_wanted: Callable[[int], bool], found: os.stat_result, place: Path, wanted: str) -> None:
    if not is_wanted(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "a file")
        raise RunFolderError(f"{place}: exists and is {kind}, where {wanted} is needed. Move it away.")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_file(path: Path, root: Path) -> bool:
    """Return whether an ordinary file is at a path of a run folder.

    Raises:
        RunFolderError: something else is there; see `state`.
    """
    found = state(path, root)
    if found is not None:
        _refuse_unless(stat.S_ISREG, found, path, "a file")
    return found is not None


def is_folder(path: Path, root: Path) -> bool:
    """Return whether a folder is at a path of a run folder.

    Raises:
        RunFolderError: something else is there; see `state`.
    """
    found = state(path, root)
    if found is not None:
        _refuse_unless(stat.S_ISDIR, found, path, "a folder")
    return found is not None


def open_file(path: Path, root: Path, flags: int = os.O_RDONLY) -> int:
    """Open an ordinary file of a run folder, or make one with O_CREAT; returns its descriptor.

    Raises:
        FileNotFoundError: it is not there.
        RunFolderError: something else is there; see `state`.
    """
    is_file(path, root)
    # What takes its place after that look is not followed or waited for either.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _OWNER_FILE)
    try:
        _refuse_unless(stat.S_ISREG, os.fstat(descriptor), path, "a file")
    except RunFolderError:
        os.close(descriptor)
        raise
    return descriptor


# Reading


def read(path: Path, root: Path) -> bytes | None:
    """Return the content of a file of a run folder; None when it is not there.

    Raises:
        RunFolderError: it cannot be read, or is larger than any text that fedsim writes; see `state`.
    """
    try:
        with open(open_file(path, root), "rb") as file:
            check_size(path, os.fstat(file.fileno()).st_size)
            return file.read(MAX_TEXT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {_reason(error)}.") from None


def check_size(path: Path, size: int) -> None:
    """Refuse to read more of a file than any text that fedsim writes has.

    Raises:
        DamagedFileError: names the file, its size in bytes, and the limit.
    """
    if size > MAX_TEXT:
        raise DamagedFileError(f"{path}: {size} bytes, and at most {MAX_TEXT} are read. Delete or replace it.")


def parse_json(content: bytes | str, constant: Callable[[str], Any] = float) -> Any:
    """Return the value of a JSON text; surrogates without a partner, which no UTF-8 text can hold, become U+FFFD.

    Args:
        content: the text, or its bytes.
        constant: what stands for NaN, Infinity and -Infinity, which are not JSON.

    Raises:
        ValueError: says what is wrong, without the place.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:
        raise ValueError("not JSON") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return _without_surrogates(value) if "\\u" in text else value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while inner := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        level = [item for held in inner for item in (held.values() if isinstance(held, dict) else held)]


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path, root: Path) -> Any:
    """Return the value of a JSON file of a run folder; None when it is not there.

    Raises:
        RunFolderError: it cannot be read, or is not JSON.
    """
    content = read(path, root)
    try:
        return None if content is None else parse_json(content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}.") from None


def read_tensors(path: Path, root: Path, what: str, with_tensors: bool = True) -> tuple[dict[str, Tensor], Any] | None:
    """Return the tensors and the header of a safetensors file of a run folder; None when it is not there.

    Args:
        path: the file.
        root: the run folder.
        what: what it should be, for the message.
        with_tensors: whether to read the tensors; there are none otherwise.

    Raises:
        RunFolderError: it cannot be read, is damaged, or has no header of fedsim's.
    """
    if not is_file(path, root):
        return None
    try:
        with safe_open(path, "pt") as opened:
            header = parse_json(opened.metadata()["fedsim"])
            return {name: opened.get_tensor(name) for name in opened.keys()} if with_tensors else {}, header
    except _DAMAGE as error:
        raise DamagedFileError(f"{path}: not {what} of fedsim: {' '.join(str(error).split())}.") from None


def tensors_fault(path: Path) -> str | None:
    """Return why a file is no whole safetensors file, in one line, or None; its header alone is read."""
    try:
        with safe_open(path, "pt"):
            return None
    except _DAMAGE as error:
        return " ".join(str(error).split())


# Writing


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against a write into one error, which names the file, and says what to do if the disk is full.

    Raises:
        RunFolderError: the disk is full, the file would be larger than it may be, or cannot be written otherwise.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _told_errno(error)
        reason = str(error) if number is None else os.strerror(number)
        advice = f" What is complete is kept. {_RESUME}" if number in _FULL else ""
        raise RunFolderError(f"{path}: cannot be written: {reason}.{advice}") from error


def _told_errno(error: SafetensorError) -> int | None:
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def make_folders(path: Path, root: Path) -> None:
    """Make the folders on the way to a path of a run folder.

    Raises:
        RunFolderError: something else is in the way; see `state`.
    """
    root.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    for place in list(_places(path, root))[:-1]:
        if not is_folder(place, root):
            place.mkdir(mode=OWNER_ONLY, exist_ok=True)


@contextlib.contextmanager
def aside(path: Path, root: Path) -> Iterator[Path]:
    """Give a place to write to; what is there at the end is flushed to disk and renamed to `path`.

    Raises:
        RunFolderError: something that is no file is there already, see `state`; or it cannot be written, see `writing`.
    """
    with writing(path):
        make_folders(path, root)
        is_file(path, root)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
        # A killed process of the same number may have left one.
        partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(partial, flags, _OWNER_FILE))
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str, root: Path | None = None) -> None:
    """Write a whole file or nothing: aside first, flushed to disk, then renamed.

    Args:
        path: the file.
        content: text is written as UTF-8.
        root: the run folder that no link leads out of; the file's own folder otherwise.

    Raises:
        RunFolderError: see `aside`.
    """
    with aside(path, root or path.parent) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def header(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a safetensors file that state what `read_tensors` reads as its header."""
    return {"fedsim": json.dumps(content, default=str)}
