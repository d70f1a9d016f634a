"""The run folder: what capture, audit and report hand to one another.

    scenario.yaml            resolved scenario
    environment.json         versions, platform, where each package was imported from
    inputs.json              what the captures were made from: settings, digests of the data, and the run's name
    captures/index.jsonl     one line per file or failed client, with a SHA-256; one for the final weights too
    captures/round-0001/     global.safetensors and client-000.safetensors: the wire, verbatim; what the server refused
                             is in rejected-client-000.safetensors, what a client's defenses keep for its
                             next round in state-client-000.safetensors
    rounds.jsonl             one line per round: accuracy, loss, participants, failures, epsilon
    artifacts/               findings (safetensors), picture strips and films (PNG)
    records.jsonl            one line per attempt: see `fedsim.audit`
    calibrations.jsonl       one line per round and attack: see `fedsim.calibration`

Files appear under their name only when complete (written aside, flushed, renamed). A line counts only when it ends with
a newline; a half-written last line is cut off. So a kill at any moment leaves a folder that resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedsim import environment, files, lines, yaml_loader
from fedsim.client_state import ClientState
from fedsim.errors import RunFolderError
from fedsim.exchange import Update, UpdateKind
from fedsim.files import DamagedFileError, write_atomically
from fedsim.lines import (
    SCHEMA,
    CaptureHeader,
    GlobalHeader,
    IndexLine,
    StateHeader,
    client_key,
    global_key,
    state_key,
)
from fedsim.scenario import Scenario, parse

_AnyHeader = TypeVar("_AnyHeader", CaptureHeader, GlobalHeader, StateHeader)
# What a process that was killed as it began may leave: its lock, beside what it was writing aside.
_LOCK = ".lock"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, root: Path | None = None) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON Lines file; a half-written last line does not count.

    Args:
        path: the file.
        root: the run folder that no link leads out of; the file's own folder otherwise.

    Raises:
        RunFolderError: a complete line is not a JSON object, so the file was damaged by something else than a kill.
    """
    content = files.read(path, root or path.parent)
    found = []
    for number, line in enumerate((content or b"").split(b"\n")[:-1], 1):
        try:
            found.append(dict(files.parse_json(line)))
        except (TypeError, ValueError) as error:
            reason = f" ({error})" if isinstance(error, ValueError) else ""
            raise RunFolderError(
                f"{path}: line {number} is not a JSON object{reason}. Delete the file to redo it."
            ) from None
    return found


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

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line and flush it to disk; a half-written line before it is cut off first."""
        files.make_folders(self.path, self._root)
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with open(files.open_file(self.path, self._root, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab+") as file:
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
        write_atomically(self.path, content, self._root)


@dataclass(frozen=True)
class Capture:
    """One client's reply as it crossed the wire.

    Args:
        round: server round.
        client: partition number.
        kind: whether `arrays` is the gradient, or new weights (then the update is the difference).
        arrays: the reply's arrays, verbatim.
        metrics: the reply's metrics, `num-examples` among them.
        side: what the client stated beside it, such as its privacy budget; never shown to an attack.
        buffers: which arrays are the new values of buffers, whatever the kind.
    """

    round: int
    client: int
    kind: UpdateKind
    arrays: Mapping[str, Tensor]
    metrics: Mapping[str, int | float]
    side: Mapping[str, Any]
    buffers: tuple[str, ...] = ()


class RunFolder:
    """Paths, atomic writes and checked reads of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds = JsonLines(path / "rounds.jsonl")
        self.records = JsonLines(path / "records.jsonl")
        self.calibrations = JsonLines(path / "calibrations.jsonl", path)
        self._index = JsonLines(path / "captures" / "index.jsonl", path)
        self._entries: dict[str, dict[str, Any]] | None = None
        self._verified: set[str] = set()
        self._is_locked = False

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run folder; that of an observed app may have no scenario yet.

        Raises:
            RunFolderError: there is none at `path`.
        """
        is_folder = path.is_dir()
        has_scenario = is_folder and files.is_file(path / "scenario.yaml", path)
        if not has_scenario and not (is_folder and environment.is_observed(path)):
            began = is_folder and _is_empty(path)
            advice = " Start the run anew, with fedsim run SCENARIO --out and this folder." if began else ""
            raise RunFolderError(f"{path}: not a run folder, it has no scenario.yaml.{advice}")
        return cls(path)

    def check(self) -> None:
        """Refuse lines that no fedsim wrote, before anything is added to them, and links where fedsim would write.

        Raises:
            RunFolderError: a line is no JSON object, of another schema, or does not hold what it must; or a part of the
                folder is a link, a pipe or the like.
        """
        for name in ("artifacts", "captures", "figures", "tables"):
            files.is_folder(self.path / name, self.path)
        for name in ("environment.json", "inputs.json", "report.html", "report.md"):
            files.is_file(self.path / name, self.path)
        lines.check(self.rounds.path, self.rounds.read(), lines.RoundLine)
        lines.check(self.records.path, self.records.read(), lines.RecordLine)
        lines.check(self.calibrations.path, self.calibrations.read(), lines.CalibrationLine)
        self.index()

    @classmethod
    def create(cls, path: Path, scenario: Scenario | None) -> RunFolder:
        """Make a run folder with the resolved scenario in it, if there is one.

        What a run leaves that was killed before it had written its scenario does not count as something.

        Raises:
            RunFolderError: `path` already holds something, or cannot be made.
        """
        try:
            if path.exists() and not (path.is_dir() and _is_empty(path)):
                raise RunFolderError(f"{path}: already exists and is not empty. Name another, or use --resume.")
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            if scenario is not None:
                folder.write_scenario(scenario)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}.") from None
        return folder

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's."""
        return self.path.resolve().name

    @property
    def run(self) -> str | None:
        """What the run is called in records and headers, as inputs.json states it.

        None where nothing was compared with inputs yet, as while an app is observed, and in folders of an earlier fedsim.
        """
        path = self.path / "inputs.json"
        content = files.read_json(path, self.path)
        stated = content.get("run") if isinstance(content, dict) else None
        if not isinstance(stated, str | None):
            raise DamagedFileError(f"{path}: run: expected text.")
        return stated

    def scenario(self) -> Scenario:
        """Return the scenario of the run.

        Raises:
            RunFolderError: it cannot be read, or the run was observed without one.
            ScenarioError: it is no scenario.
        """
        path = self.path / "scenario.yaml"
        if not self.has_scenario():
            raise RunFolderError(
                f"{self.path}: was observed without a scenario. Name one: fedsim audit {self.path} --scenario FILE. It "
                "says at least the model of the app; README shows an example."
            )
        return parse(yaml_loader.parse(self.read_text(path), str(path), yaml_loader.RESOLVED), str(path))

    def has_scenario(self) -> bool:
        """Return whether the run has a scenario; an observed one may get it later."""
        return files.is_file(self.path / "scenario.yaml", self.path)

    def read_text(self, path: Path) -> str:
        """Return the text of a file of the folder.

        Raises:
            RunFolderError: it is missing, no text, or cannot be read.
        """
        content = files.read(path, self.path)
        if content is None:
            raise RunFolderError(f"{path}: no such file.")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedFileError(f"{path}: not UTF-8 text.") from None

    def write(self, path: Path, content: bytes | str) -> None:
        """Write a file of the folder atomically.

        Raises:
            RunFolderError: the way to it leads out of the folder, or something that is no file is there.
        """
        write_atomically(path, content, self.path)

    def write_scenario(self, scenario: Scenario) -> None:
        """Store the resolved scenario; for an observed app what was stated alone, since defaults say nothing about it."""
        content = scenario.stated() if environment.is_observed(self.path) else scenario.resolved()
        self.write(self.path / "scenario.yaml", yaml_loader.dump(content))

    # Captures

    def index(self) -> list[IndexLine]:
        """Return the lines of captures/index.jsonl.

        Raises:
            RunFolderError: a line is damaged.
        """
        return lines.check(self._index.path, self._index.read(), IndexLine)

    @property
    def index_path(self) -> Path:
        """Where the index of the captures is."""
        return self._index.path

    def _load_index(self) -> dict[str, dict[str, Any]]:
        if self._entries is None:
            self._entries = {line.key: line.model_dump(exclude_none=True) for line in self.index()}
        return self._entries

    def refresh(self) -> None:
        """Read the capture index again, after another process has written to the folder."""
        self._entries = None

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        # Reading the index before the first write also finds what an earlier, killed run has captured.
        entries = self._load_index()
        self._index.append({"key": key, **entry})
        entries[key] = {"key": key, **entry}

    def _write_tensors(self, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None) -> None:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        stated = None
        if header is not None:
            run = self.run
            named = {} if run is None else {"run": run}
            stated = files.header({"schema": SCHEMA, "order": list(tensors), **named, **header})
        file = self._file(key)
        is_lost = self._sha256(key) is not None and not files.is_file(file, self.path)
        # Straight to the file: captures are large, and the training waits for the processor.
        with files.aside(file, self.path) as aside:
            save_file(contiguous, aside, stated)
            digest = _digest(aside)
            if is_lost and digest != self._sha256(key):
                raise RunFolderError(
                    f"{file}: was missing and has been made again, but differs from what captures/index.jsonl lists. "
                    "Restore the file, or what made it (environment.json names the versions), or start another run."
                )
        self._add(key, {"sha256": digest})

    def _file(self, key: str) -> Path:
        return (self.path if key == lines.MODEL else self.path / "captures") / f"{key}.safetensors"

    def _sha256(self, key: str) -> str | None:
        return self._load_index().get(key, {}).get("sha256")

    def check_is_there(self, key: str) -> None:
        """Refuse a file that the index lists and that is gone.

        Raises:
            RunFolderError: it is missing.
        """
        if self._sha256(key) is not None and not files.is_file(self._file(key), self.path):
            raise RunFolderError(
                f"{self._file(key)}: missing, though captures/index.jsonl lists it. Restore it; a simulated run "
                "makes it again with fedsim run --resume."
            )

    def _verify(self, key: str) -> None:
        """Compare a stored file with its checksum in the index, once.

        Raises:
            RunFolderError: not in the index, missing, or changed since it was written.
        """
        file = self._file(key)
        expected = self._sha256(key)
        if expected is None:
            raise RunFolderError(f"{file}: not in captures/index.jsonl.")
        self.check_is_there(key)
        if key not in self._verified and _digest(file) != expected:
            raise RunFolderError(
                f"{file}: corrupted, its checksum differs from captures/index.jsonl. Restore the file, or delete "
                "it and its line in the index and use --resume."
            )
        self._verified.add(key)

    def _read_header(
        self, key: str, kind: type[_AnyHeader], with_tensors: bool = True
    ) -> tuple[dict[str, Tensor], _AnyHeader]:
        file = self._file(key)
        read = files.read_tensors(file, self.path, "a capture", with_tensors)
        if read is None:
            raise RunFolderError(f"{file}: missing, though captures/index.jsonl lists it.")
        tensors, header = read[0], lines.check_header(file, read[1], kind, "a capture")
        if with_tensors and sorted(header.order) != sorted(tensors):
            raise DamagedFileError(f"{file}: not a capture of fedsim: its header lists other arrays than it holds.")
        return {name: tensors[name] for name in header.order if with_tensors}, header

    def _read_tensors(
        self, key: str, kind: type[_AnyHeader], round: int, client: int | None
    ) -> tuple[dict[str, Tensor], _AnyHeader]:
        self._verify(key)
        tensors, header = self._read_header(key, kind)
        self.check_place(self._file(key), (header.round, header.client, header.run), (round, client))
        return tensors, header

    def check_place(
        self, file: Path, stated: tuple[int, int | None, str | None], expected: tuple[int, int | None]
    ) -> None:
        """Refuse a file that another round, client or run has made.

        Args:
            file: the file.
            stated: round, client and run that its header names; files of an earlier fedsim name no run.
            expected: round and client that its place names.

        Raises:
            RunFolderError: they differ.
        """
        round, client, run = stated
        if (round, client) != expected:
            raise RunFolderError(
                f"{file}: belongs to {_place(round, client)}, as it says itself, and not to {_place(*expected)}. Put it back "
                "where it belongs."
            )
        own = self.run
        if run is not None and own is not None and run != own:
            raise RunFolderError(
                f"{file}: belongs to the run {run}, as it says itself, and this is {own}. Restore the file of this run."
            )

    def has_capture(self, round: int, client: int) -> bool:
        """Return whether the client's reply of the round is stored: in the index, and on disk."""
        return self._is_stored(client_key(round, client))

    def has_global(self, round: int) -> bool:
        """Return whether the round's global weights are stored: in the index, and on disk."""
        return self._is_stored(global_key(round))

    def _is_stored(self, key: str) -> bool:
        return self._sha256(key) is not None and files.is_file(self._file(key), self.path)

    def captured(self, round: int) -> tuple[int, ...]:
        """Return the clients whose replies of the round are stored, ascending."""
        prefix = f"round-{round:04d}/client-"
        found = self._load_index().items()
        return tuple(sorted(int(k.removeprefix(prefix)) for k, e in found if k.startswith(prefix) and "sha256" in e))

    def captured_rounds(self) -> tuple[int, ...]:
        """Return the rounds of which a client's reply is stored, ascending."""
        found = {
            int(key.partition("/")[0].removeprefix("round-"))
            for key, entry in self._load_index().items()
            if "/client-" in key and "sha256" in entry
        }
        return tuple(sorted(found))

    def failures(self, round: int) -> dict[int, str]:
        """Return the clients that failed in the round, with their messages."""
        prefix = f"round-{round:04d}/client-"
        found = self._load_index().items()
        return {int(k.removeprefix(prefix)): e["failed"] for k, e in found if k.startswith(prefix) and "failed" in e}

    def failed_rounds(self) -> tuple[int, ...]:
        """Return the rounds in which a client failed, ascending."""
        found = {key.partition("/")[0] for key, entry in self._load_index().items() if "failed" in entry}
        return tuple(sorted(int(name.removeprefix("round-")) for name in found))

    def write_global(self, round: int, weights: Mapping[str, Tensor], client: int | None = None) -> None:
        """Store the weights that the server sent out in a round, to all clients or to this one alone."""
        named = {} if client is None else {"client": client}
        self._write_tensors(global_key(round, client), weights, {"round": round, **named})

    def read_global(self, round: int, client: int) -> dict[str, Tensor]:
        """Return the weights that the server sent to a client in a round.

        Raises:
            RunFolderError: missing, truncated, changed since it was written, or of another round or run.
        """
        is_own = global_key(round, client) in self._load_index()
        own = client if is_own else None
        return self._read_tensors(global_key(round, own), GlobalHeader, round, own)[0]

    def write_capture(self, capture: Capture) -> None:
        """Store one client's reply."""
        header = {
            "round": capture.round,
            "client": capture.client,
            "kind": capture.kind,
            "metrics": dict(capture.metrics),
            "side": dict(capture.side),
            **({"buffers": list(capture.buffers)} if capture.buffers else {}),
        }
        self._write_tensors(client_key(capture.round, capture.client), capture.arrays, header)

    def write_state(self, round: int, client: int, state: ClientState) -> None:
        """Store what a client's defenses keep after a round; no attack ever sees it."""
        header = {"round": round, "client": client, "values": dict(state.values)}
        self._write_tensors(state_key(round, client), state.tensors, header)

    def read_state(self, round: int, client: int) -> ClientState:
        """Return what a client's defenses kept after a round; empty where they kept nothing.

        Raises:
            RunFolderError: damaged, or of another round, client or run.
        """
        key = state_key(round, client)
        if self._sha256(key) is None:
            return ClientState()
        tensors, header = self._read_tensors(key, StateHeader, round, client)
        return ClientState(tensors, header.values)

    def write_failure(self, round: int, client: int, message: str) -> None:
        """Store that a client failed in a round."""
        self._add(client_key(round, client), {"failed": message})

    def write_refused(self, round: int, client: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Store what a client sent and the server refused; beside the captures, of which it is none."""
        file = self._file(f"round-{round:04d}/rejected-client-{client:03d}")
        with files.aside(file, self.path) as aside:
            save_file(dict(tensors), aside, files.header({"schema": SCHEMA, "round": round, **header}))

    def read_capture(self, round: int, client: int) -> Capture:
        """Return one client's reply.

        Raises:
            RunFolderError: missing, truncated, changed since it was written, or of another round, client or run.
        """
        tensors, header = self._read_tensors(client_key(round, client), CaptureHeader, round, client)
        return Capture(round, client, header.kind, tensors, header.metrics, header.side, tuple(header.buffers))

    def read_header(self, round: int, client: int) -> dict[str, Any]:
        """Return what is stored beside the arrays of a reply: kind, metrics and what the client stated.

        Raises:
            RunFolderError: missing, or no capture; the arrays may be damaged nevertheless.
        """
        header = self._read_header(client_key(round, client), CaptureHeader, with_tensors=False)[1]
        return {"kind": header.kind, "metrics": dict(header.metrics), "side": dict(header.side)}

    def read_side(self, round: int, client: int) -> dict[str, Any]:
        """Return what a client stated beside its update; see `read_header`."""
        return dict(self.read_header(round, client)["side"])

    def sent_shapes(self, round: int, client: int) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays that the server sent to a client in a round.

        Raises:
            RunFolderError: missing, or no capture.
        """
        return {name: tuple(tensor.shape) for name, tensor in self.read_global(round, client).items()}

    def capture_path(self, round: int, client: int | None) -> Path:
        """Return where a client's reply is stored; without a client, the weights that the server sent to all."""
        return self._file(global_key(round) if client is None else client_key(round, client))

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """Store the final global weights."""
        self._write_tensors(lines.MODEL, weights, None)

    def has_model(self) -> bool:
        """Return whether the training came to its end.

        Raises:
            RunFolderError: the final weights have changed since they were written.
        """
        if not self._is_stored(lines.MODEL):
            return False
        self._verify(lines.MODEL)
        return True

    def read_update(self, round: int, client: int) -> Update:
        """Return one client's update, computed from its reply and the round's global weights.

        Raises:
            RunFolderError: see `read_capture`; also a reply that holds other arrays than the request did.
        """
        capture = self.read_capture(round, client)
        tensors = capture.arrays
        if capture.kind == "delta":
            weights = self.read_global(round, client)
            if _is_bare_list(tensors, weights):
                tensors = dict(zip(weights, tensors.values(), strict=True))
            self.check_arrays(replace(capture, arrays=tensors), weights)
            tensors = {
                name: array if name in capture.buffers else _difference(array, weights[name])
                for name, array in tensors.items()
            }
        try:
            examples = self.reported_examples({"metrics": capture.metrics})
        except (OverflowError, ValueError):
            raise DamagedFileError(
                f"{self.capture_path(round, client)}: expected a number of examples, got {dict(capture.metrics)!r:.80}."
            ) from None
        buffers = {name: tensors[name] for name in capture.buffers}
        kept = {name: tensor for name, tensor in tensors.items() if name not in buffers}
        return Update(round, client, capture.kind, kept, examples, buffers)

    @staticmethod
    def reported_examples(header: Mapping[str, Any]) -> int:
        """Return the number of examples that a client reported with its reply; 0 when it reported none."""
        # Legacy clients write the second; some report neither.
        metrics = header["metrics"]
        return int(metrics.get("num-examples", metrics.get("num_examples", 0)))

    def check_arrays(self, capture: Capture, weights: Mapping[str, Tensor]) -> None:
        """Refuse a reply that holds other arrays than the request did.

        Raises:
            RunFolderError: names or shapes differ.
        """
        if _shapes(capture.arrays) != _shapes(weights):
            raise RunFolderError(
                f"{self.capture_path(capture.round, capture.client)}: holds other arrays than the server sent, so their "
                "difference is no update."
            )

    # Artifacts

    def artifact(self, round: int, client: int, name: str) -> Path:
        """Return the path of an artifact of one client's update."""
        return self.path / "artifacts" / f"round-{round:04d}" / f"client-{client:03d}" / name

    def relative(self, path: Path) -> str:
        """Return a path inside the folder as records and reports name it."""
        return path.relative_to(self.path).as_posix()

    # Exclusion

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second fedsim process; the lock ends with this process, however it ends.

        What a killed process was writing aside is removed. Whoever holds the lock may take it again.

        Raises:
            RunFolderError: another process holds it.
        """
        import fcntl

        if self._is_locked:
            yield
            return
        # Appending, so that nothing is cut off; the file stays empty.
        with open(files.open_file(self.path / _LOCK, self.path, os.O_RDWR | os.O_CREAT), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFolderError(f"{self.path}: another fedsim process is working on this run.") from None
            for leftover in filter(files.is_partial, self.path.rglob(".*.partial")):
                leftover.unlink(missing_ok=True)
            self._is_locked = True
            _HELD.add(file)
            try:
                yield
            finally:
                _HELD.discard(file)
                self._is_locked = False


_HELD: set[BinaryIO] = set()
"""The lock files that this process holds."""


def _close_locks() -> None:
    """Close the lock files in a forked process: with them it would hold the locks of a process that was killed."""
    while _HELD:
        _HELD.pop().close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_locks)


def _is_bare_list(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether a client sent arrays without names back, in the order in which they came."""
    is_unnamed = list(tensors) == [str(place) for place in range(len(weights))] != list(weights)
    return is_unnamed and [t.shape for t in tensors.values()] == [w.shape for w in weights.values()]


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """Return new minus old in float32; half precision, doubles and counters are subtracted as doubles."""
    if new.dtype == old.dtype == torch.float32:
        return new - old
    return (new.double() - old.double()).float()


def _is_empty(path: Path) -> bool:
    """Return whether a folder holds nothing, or only what a process leaves that was killed as it began."""
    return all(file.name == _LOCK or files.is_partial(file) for file in path.iterdir())


def _place(round: int, client: int | None) -> str:
    return f"round {round}" if client is None else f"client {client} in round {round}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
