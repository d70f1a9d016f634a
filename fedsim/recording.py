"""The run folder: what capture, audit and report hand to one another.

    scenario.yaml            resolved scenario
    environment.json         versions, platform, where each package was imported from
    inputs.json              what the captures were made from: settings, and digests of the data
    captures/index.jsonl     one line per file or failed client, with a SHA-256
    captures/round-0001/     global.safetensors and client-000.safetensors: the wire, verbatim; what the server refused
                             is in rejected-client-000.safetensors
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
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from fedsim import environment, lines, yaml_loader
from fedsim.errors import RunFolderError
from fedsim.exchange import Update, UpdateKind
from fedsim.lines import SCHEMA
from fedsim.scenario import Scenario, parse


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: aside first, flushed to disk, then renamed."""
    with _aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a place to write to; what is there at the end is flushed to disk and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RunFolderError(f"{file}: missing, though captures/index.jsonl lists it.") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{file}: not a capture of fedsim: {error}.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON Lines file; a half-written last line does not count.

    Raises:
        RunFolderError: a complete line is not a JSON object, so the file was damaged by something else than a kill.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            raise RunFolderError(f"{path}: line {number} is not a JSON object. Delete the file to redo it.") from None
    return found


class JsonLines:
    """An append-only JSON Lines file, safe against a kill in the middle of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return the complete lines."""
        return read_lines(self.path)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line and flush it to disk; a half-written line before it is cut off first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            self._cut_half_line(file)
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
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
        write_atomically(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


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
    """

    round: int
    client: int
    kind: UpdateKind
    arrays: Mapping[str, Tensor]
    metrics: Mapping[str, int | float]
    side: Mapping[str, Any]


class RunFolder:
    """Paths, atomic writes and checked reads of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds = JsonLines(path / "rounds.jsonl")
        self.records = JsonLines(path / "records.jsonl")
        self.calibrations = JsonLines(path / "calibrations.jsonl")
        self._index = JsonLines(path / "captures" / "index.jsonl")
        self._entries: dict[str, dict[str, Any]] | None = None
        self._verified: set[str] = set()
        self._is_locked = False

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run folder; that of an observed app may have no scenario yet.

        Raises:
            RunFolderError: there is none at `path`.
        """
        if not (path / "scenario.yaml").is_file() and not environment.is_observed(path):
            raise RunFolderError(f"{path}: not a run folder, it has no scenario.yaml.")
        return cls(path)

    def check(self) -> None:
        """Refuse lines that no fedsim wrote, before anything is added to them.

        Raises:
            RunFolderError: a line is no JSON object, of another schema, or does not hold what it must.
        """
        lines.check(self.rounds.path, self.rounds.read(), lines.RoundLine)
        lines.check(self.records.path, self.records.read(), lines.RecordLine)
        lines.check(self.calibrations.path, self.calibrations.read(), lines.CalibrationLine)
        lines.check(self._index.path, self._index.read(), lines.IndexLine)

    @classmethod
    def create(cls, path: Path, scenario: Scenario | None) -> RunFolder:
        """Make a run folder with the resolved scenario in it, if there is one.

        Raises:
            RunFolderError: `path` already holds something, or cannot be made.
        """
        try:
            occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
            if occupied:
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

    def has_scenario(self) -> bool:
        """Return whether the run has a scenario; an observed one may get it later."""
        return (self.path / "scenario.yaml").is_file()

    def scenario(self) -> Scenario:
        """Return the scenario of the run.

        Raises:
            RunFolderError: the run was observed without one.
            ScenarioError: it is damaged.
        """
        if not self.has_scenario():
            raise RunFolderError(
                f"{self.path}: was observed without a scenario. Name one: fedsim audit {self.path} --scenario FILE. It "
                "says at least the model of the app; README shows an example."
            )
        file = self.path / "scenario.yaml"
        return parse(yaml_loader.read(file, yaml_loader.RESOLVED), str(file))

    def write_scenario(self, scenario: Scenario) -> None:
        """Store the resolved scenario; for an observed app what was stated alone, since defaults say nothing about it."""
        content = scenario.stated() if environment.is_observed(self.path) else scenario.resolved()
        write_atomically(self.path / "scenario.yaml", yaml_loader.dump(content))

    # Captures

    def _load_index(self) -> dict[str, dict[str, Any]]:
        if self._entries is None:
            found = lines.check(self._index.path, self._index.read(), lines.IndexLine)
            self._entries = {line.key: line.model_dump(exclude_none=True) for line in found}
        return self._entries

    def refresh(self) -> None:
        """Read the capture index again, after another process has written to the folder."""
        self._entries = None

    def _add(self, key: str, entry: dict[str, Any]) -> None:
        # Reading the index before the first write also finds what an earlier, killed run has captured.
        entries = self._load_index()
        self._index.append({"key": key, **entry})
        entries[key] = {"key": key, **entry}

    def _write_tensors(self, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        stated = {"fedsim": json.dumps({"schema": SCHEMA, "order": list(tensors), **header})}
        file = self._file(key)
        # Straight to the file: captures are large, and the training waits for the processor.
        with _aside(file) as aside:
            save_file(contiguous, aside, stated)
            digest = _digest(aside)
        self._add(key, {"sha256": digest})

    def _file(self, key: str) -> Path:
        return self.path / "captures" / f"{key}.safetensors"

    @staticmethod
    def _key(round: int, client: int) -> str:
        return f"round-{round:04d}/client-{client:03d}"

    @staticmethod
    def _global_key(round: int, client: int | None = None) -> str:
        # An active server may send other weights to one client; those are stored beside the round's.
        return f"round-{round:04d}/global" + ("" if client is None else f"-{client:03d}")

    def _read_tensors(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        file = self._file(key)
        entry = self._load_index().get(key)
        if entry is None or "sha256" not in entry:
            raise RunFolderError(f"{file}: not in captures/index.jsonl.")
        with _reading(file):
            if key not in self._verified and _digest(file) != entry["sha256"]:
                raise RunFolderError(
                    f"{file}: corrupted, its checksum differs from captures/index.jsonl. Restore the file, or delete "
                    "it and its line in the index and use --resume."
                )
            self._verified.add(key)
            with safe_open(file, "pt") as opened:
                header = json.loads(opened.metadata()["fedsim"])
                tensors = {name: opened.get_tensor(name) for name in header["order"]}
        return tensors, header

    def has_capture(self, round: int, client: int) -> bool:
        """Return whether the client's reply of the round is stored."""
        return "sha256" in self._load_index().get(self._key(round, client), {})

    def has_global(self, round: int) -> bool:
        """Return whether the round's global weights are stored."""
        return self._global_key(round) in self._load_index()

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
        self._write_tensors(self._global_key(round, client), weights, {"round": round})

    def read_global(self, round: int, client: int) -> dict[str, Tensor]:
        """Return the weights that the server sent to a client in a round."""
        own = self._global_key(round, client)
        return self._read_tensors(own if own in self._load_index() else self._global_key(round))[0]

    def write_capture(self, capture: Capture) -> None:
        """Store one client's reply."""
        header = {
            "round": capture.round,
            "client": capture.client,
            "kind": capture.kind,
            "metrics": dict(capture.metrics),
            "side": dict(capture.side),
        }
        self._write_tensors(self._key(capture.round, capture.client), capture.arrays, header)

    def write_failure(self, round: int, client: int, message: str) -> None:
        """Store that a client failed in a round."""
        self._add(self._key(round, client), {"failed": message})

    def write_refused(self, round: int, client: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Store what a client sent and the server refused; beside the captures, of which it is none."""
        file = self._file(f"round-{round:04d}/rejected-client-{client:03d}")
        with _aside(file) as aside:
            save_file(dict(tensors), aside, {"fedsim": json.dumps({"schema": SCHEMA, "round": round, **header})})

    def read_capture(self, round: int, client: int) -> Capture:
        """Return one client's reply.

        Raises:
            RunFolderError: missing, truncated or changed since it was written.
        """
        tensors, header = self._read_tensors(self._key(round, client))
        return Capture(round, client, header["kind"], tensors, header["metrics"], header["side"])

    def read_header(self, round: int, client: int) -> dict[str, Any]:
        """Return what is stored beside the arrays of a reply: kind, metrics and what the client stated.

        Raises:
            RunFolderError: missing, or no capture; the arrays may be damaged nevertheless.
        """
        file = self._file(self._key(round, client))
        with _reading(file), safe_open(file, "pt") as opened:
            header = json.loads(opened.metadata()["fedsim"])
            return {"kind": header["kind"], "metrics": dict(header["metrics"]), "side": dict(header["side"])}

    def read_side(self, round: int, client: int) -> dict[str, Any]:
        """Return what a client stated beside its update; see `read_header`."""
        return dict(self.read_header(round, client)["side"])

    def sent_shapes(self, round: int, client: int) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays that the server sent to a client in a round, without reading them.

        Raises:
            RunFolderError: missing, or no capture.
        """
        own = self._global_key(round, client)
        file = self._file(own if own in self._load_index() else self._global_key(round))
        with _reading(file), safe_open(file, "pt") as opened:
            order = json.loads(opened.metadata()["fedsim"])["order"]
            return {name: tuple(opened.get_slice(name).get_shape()) for name in order}

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """Store the final global weights."""
        write_atomically(self.path / "model.safetensors", save({n: t.contiguous() for n, t in weights.items()}))

    def has_model(self) -> bool:
        """Return whether the training came to its end."""
        return (self.path / "model.safetensors").is_file()

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
            if _shapes(tensors) != _shapes(weights):
                raise RunFolderError(
                    f"{self._file(self._key(round, client))}: holds other arrays than the server sent, so their "
                    "difference is no update."
                )
            tensors = {name: _difference(array, weights[name]) for name, array in tensors.items()}
        return Update(round, client, capture.kind, tensors, self.reported_examples({"metrics": capture.metrics}))

    @staticmethod
    def reported_examples(header: Mapping[str, Any]) -> int:
        """Return the number of examples that a client reported with its reply; 0 when it reported none."""
        # Legacy clients write the second; some report neither.
        metrics = header["metrics"]
        return int(metrics.get("num-examples", metrics.get("num_examples", 0)))

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
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFolderError(f"{self.path}: another fedsim process is working on this run.") from None
            for leftover in self.path.rglob(".*.partial"):
                leftover.unlink(missing_ok=True)
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False


def _is_bare_list(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether a client sent arrays without names back, in the order in which they came."""
    is_unnamed = list(tensors) == [str(place) for place in range(len(weights))] != list(weights)
    return is_unnamed and [t.shape for t in tensors.values()] == [w.shape for w in weights.values()]


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """Return new minus old in float32; half precision, doubles and counters are subtracted as doubles."""
    if new.dtype == old.dtype == torch.float32:
        return new - old
    return (new.double() - old.double()).float()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
