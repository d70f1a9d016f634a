"""What crossed the wire in a run: replies of clients, weights that the server sent, and what clients keep, in captures/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsim.errors import RunFolderError
from fedsim.exchange import Update, UpdateKind, View
from fedsim.recording import files, headers
from fedsim.recording.capture_index import CaptureIndex, digest
from fedsim.recording.client_state import ClientState
from fedsim.recording.files import DamagedFileError
from fedsim.recording.headers import (
    CaptureHeader,
    GlobalHeader,
    IndexLine,
    StateHeader,
    client_key,
    global_key,
    state_key,
)
from fedsim.recording.records import SCHEMA

_AnyHeader = TypeVar("_AnyHeader", CaptureHeader, GlobalHeader, StateHeader)


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


class Captures:
    """Checked writes and reads of captures/ in a run folder.

    Args:
        path: of the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = CaptureIndex(path)

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

    def index(self) -> list[IndexLine]:
        """Return the lines of captures/index.jsonl.

        Raises:
            RunFolderError: a line is damaged.
        """
        return self._index.read()

    @property
    def index_path(self) -> Path:
        """Where the index of the captures is."""
        return self._index.path

    def refresh(self) -> None:
        """Read the capture index again, after another process has written to the folder."""
        self._index.refresh()

    def _write_tensors(self, key: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None) -> None:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        stated = None
        if header is not None:
            run = self.run
            named = {} if run is None else {"run": run}
            stated = files.header({"schema": SCHEMA, "order": list(tensors), **named, **header})
        file, expected = self._index.file(key), self._index.sha256(key)
        is_lost = expected is not None and not self._index.is_stored(key)
        # Straight to the file: captures are large, and the training waits for the processor.
        with files.aside(file, self.path) as aside:
            save_file(contiguous, aside, stated)
            sha256 = digest(aside)
            if is_lost and sha256 != expected:
                raise RunFolderError(
                    f"{file}: was missing and has been made again, but differs from what captures/index.jsonl lists. "
                    "Restore the file, or what made it (environment.json names the versions), or start another run."
                )
        self._index.add(IndexLine(key=key, sha256=sha256))

    def check_is_there(self, key: str) -> None:
        """Refuse a file that the index lists and that is gone.

        Raises:
            RunFolderError: it is missing.
        """
        self._index.check_is_there(key)

    def _read_header(
        self, key: str, kind: type[_AnyHeader], with_tensors: bool = True
    ) -> tuple[dict[str, Tensor], _AnyHeader]:
        file = self._index.file(key)
        read = files.read_tensors(file, self.path, "a capture", with_tensors)
        if read is None:
            raise RunFolderError(f"{file}: missing, though captures/index.jsonl lists it.")
        tensors, header = read[0], headers.check_header(file, read[1], kind, "a capture")
        if with_tensors and sorted(header.order) != sorted(tensors):
            raise DamagedFileError(f"{file}: not a capture of fedsim: its header lists other arrays than it holds.")
        return {name: tensors[name] for name in header.order if with_tensors}, header

    def _read_tensors(
        self, key: str, kind: type[_AnyHeader], round: int, client: int | None
    ) -> tuple[dict[str, Tensor], _AnyHeader]:
        self._index.verify(key)
        tensors, header = self._read_header(key, kind)
        self.check_place(self._index.file(key), (header.round, header.client, header.run), (round, client))
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
        return self._index.is_stored(client_key(round, client))

    def is_captured(self, round: int, client: int) -> bool:
        """Return whether the client's reply of the round was stored, though it may have been removed since."""
        return self._index.sha256(client_key(round, client)) is not None

    def is_removed(self, round: int, client: int) -> bool:
        """Return whether an audit has removed the client's reply of the round, and nobody has made it again."""
        return self.is_removed_key(client_key(round, client))

    def is_removed_key(self, key: str) -> bool:
        """Return whether an audit has removed the file that the index lists under a key."""
        return self._index.is_removed(key)

    def remove_updates(self, round: int, clients: Sequence[int]) -> None:
        """Remove the replies of clients in a round from disk; the index goes on to list them."""
        self._index.remove(round, clients)

    def has_global(self, round: int) -> bool:
        """Return whether the round's global weights are stored: in the index, and on disk."""
        return self._index.is_stored(global_key(round))

    def captured(self, round: int) -> tuple[int, ...]:
        """Return the clients whose replies of the round are stored, ascending."""
        return self._index.captured(round)

    def captured_rounds(self) -> tuple[int, ...]:
        """Return the rounds of which a client's reply is stored, ascending."""
        return self._index.captured_rounds()

    def failures(self, round: int) -> dict[int, str]:
        """Return the clients that failed in the round, with their messages."""
        return self._index.failures(round)

    def failed_rounds(self) -> tuple[int, ...]:
        """Return the rounds in which a client failed, ascending."""
        return self._index.failed_rounds()

    def write_global(self, round: int, weights: Mapping[str, Tensor], client: int | None = None) -> None:
        """Store the weights that the server sent out in a round, to all clients or to this one alone."""
        named = {} if client is None else {"client": client}
        self._write_tensors(global_key(round, client), weights, {"round": round, **named})

    def read_global(self, round: int, client: int) -> dict[str, Tensor]:
        """Return the weights that the server sent to a client in a round.

        Raises:
            RunFolderError: missing, truncated, changed since it was written, or of another round or run.
        """
        is_own = global_key(round, client) in self._index
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
        if self._index.sha256(key) is None:
            return ClientState()
        tensors, header = self._read_tensors(key, StateHeader, round, client)
        return ClientState(tensors, header.values)

    def write_failure(self, round: int, client: int, message: str) -> None:
        """Store that a client failed in a round."""
        self._index.add(IndexLine(key=client_key(round, client), failed=message))

    def write_refused(self, round: int, client: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Store what a client sent and the server refused; beside the captures, of which it is none."""
        file = self._index.file(f"round-{round:04d}/rejected-client-{client:03d}")
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
        return self._index.file(global_key(round) if client is None else client_key(round, client))

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """Store the final global weights."""
        self._write_tensors(headers.MODEL, weights, None)

    def read_model(self) -> dict[str, Tensor]:
        """Return the final global weights.

        Raises:
            RunFolderError: missing, truncated, or changed since they were written.
        """
        self._index.verify(headers.MODEL)
        weights: dict[str, Tensor] = load_file(self._index.file(headers.MODEL))
        return weights

    def model_digest(self) -> str | None:
        """Return the SHA-256 of the file of the final global weights; None where the training has not ended."""
        return self._index.sha256(headers.MODEL)

    def has_model(self) -> bool:
        """Return whether the training came to its end.

        Raises:
            RunFolderError: the final weights have changed since they were written.
        """
        if not self._index.is_stored(headers.MODEL):
            return False
        self._index.verify(headers.MODEL)
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

    def captures_of(self, view: View) -> list[tuple[int, int]]:
        """Return round and client of each captured update that a view shows, in this order."""
        return [(round, client) for round in view.rounds for client in self.captured(round) if client in view.clients]


def _is_bare_list(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether a client sent arrays without names back, in the order in which they came."""
    is_unnamed = list(tensors) == [str(place) for place in range(len(weights))] != list(weights)
    return is_unnamed and [t.shape for t in tensors.values()] == [w.shape for w in weights.values()]


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """Return new minus old in float32; half precision, doubles and counters are subtracted as doubles."""
    if new.dtype == old.dtype == torch.float32:
        return new - old
    return (new.double() - old.double()).float()


def _place(round: int, client: int | None) -> str:
    return f"round {round}" if client is None else f"client {client} in round {round}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
