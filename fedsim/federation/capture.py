"""From exchanges to the run folder, and back when a run is resumed."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim import wire
from fedsim.errors import RunFolderError
from fedsim.exchange import UpdateKind
from fedsim.federation.grid import Exchange
from fedsim.recording import observed
from fedsim.recording.captures import Capture
from fedsim.recording.client_state import ClientState
from fedsim.recording.run_folder import RunFolder

_STATED = (wire.PRIVACY, wire.LOGGED)

# What is kept of a reply that was refused, at most: bytes and number of its arrays, sizes of a shape, characters of a text.
_MOST_KEPT = 16 * 2**20
_MOST_NAMED = 1000
_MOST_SIZES = 32
_LONGEST = 300


class Recorder:
    """The observer's callback: copies what crossed the wire, and writes it to disk while the next client computes.

    Works on any Flower app: takes the single ArrayRecord of each message, whatever its name, and counts a client's
    train messages where they state no round. Safe to call from several threads, as legacy strategies do. Memory stays
    flat: no more than two replies wait to be written. `seen` counts replies by the type of their message, `skipped` those to
    train messages that could not be stored, by the reason.

    Args:
        folder: where captures go.
        client_of: node id -> client number.
        names_nodes: whether to store which node a client is, and which partition it says that it holds. Node ids are drawn anew
            by every federation.
    """

    def __init__(self, folder: RunFolder, client_of: Callable[[int], int], names_nodes: bool = False) -> None:
        self._folder = folder
        self._client_of = client_of
        self._names_nodes = names_nodes
        self._lock = threading.Lock()
        self._sent: tuple[int, ArrayRecord] | None = None
        self._counted: dict[int, int] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fedsim-capture")
        self._pending: deque[Future[None]] = deque()
        self._failed: deque[BaseException] = deque()
        self.seen: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def __call__(self, exchange: Exchange) -> None:
        """Store one exchange of a training round; other messages are not the observer's business.

        Raises:
            Exception: this exchange could not be stored, or an earlier one; this one is then on its way nevertheless.
        """
        kind = exchange.request.metadata.message_type.partition(".")[0]
        with self._lock:
            self.seen[kind] += 1
            if kind != "train":
                return
            self._store(exchange)
            if self._failed:
                raise self._failed.popleft()

    def flush(self) -> list[BaseException]:
        """Wait until everything shown so far is on disk, and return what could not be written."""
        with self._lock:
            self._wait(0)
            failed = list(self._failed)
            self._failed.clear()
        return failed

    def _wait(self, allowed: int) -> None:
        while len(self._pending) > allowed:
            error = self._pending.popleft().exception()
            if error is not None:
                self._failed.append(error)

    def _write(self, write: Callable[..., None], *what: Any) -> None:
        self._pending.append(self._writer.submit(write, *what))
        self._wait(2)

    def _store(self, exchange: Exchange) -> None:
        request, reply = exchange.request, exchange.reply
        client = self._client_of(request.metadata.dst_node_id)
        round = round_of(request)
        if round is None:
            round = self._counted[client] = self._counted.get(client, 0) + 1
        if reply.has_error():
            self._write(self._folder.write_failure, round, client, wire.failure_text(reply.error.reason or ""))
            return
        for way, content in (("request", request.content), ("reply", reply.content)):
            if len(content.array_records) != 1:
                self.skipped[_why_skipped(way, content)] += 1
                return
        (sent,), (got,) = request.content.array_records.values(), reply.content.array_records.values()
        self._store_global(round, client, sent)
        stated: Any = reply.content.get(wire.UPDATE, {})
        side = {name: dict(record) for name, record in reply.content.config_records.items() if name in _STATED}
        if self._names_nodes:
            side[observed.NODE] = _node(request, reply)
        metrics: dict[str, Any] = {}
        for record in reply.content.metric_records.values():
            metrics.update({key: value for key, value in record.items() if not isinstance(value, list)})
        kind: UpdateKind = "gradient" if stated.get("kind") == "gradient" else "delta"
        buffers = tuple(stated.get("buffers", ()))
        tensors = wire.to_tensors(got)
        kept: Any = reply.content.config_records.get(wire.STATE)
        if kept is not None:
            # First: a capture in the index then tells that this is there, too.
            self._write(self._folder.write_state, round, client, ClientState.from_wire(kept))
        self._write(self._folder.write_capture, Capture(round, client, kind, tensors, metrics, side, buffers))

    def _store_global(self, round: int, client: int, sent: ArrayRecord) -> None:
        # Strategies put one shared record into all messages of a round: the identity check spares the comparison.
        if self._sent is not None and self._sent[0] == round and self._sent[1] is sent:
            return
        weights = wire.to_tensors(sent)
        self._wait(0)
        if not self._folder.has_global(round):
            self._write(self._folder.write_global, round, weights)
            self._sent = (round, sent)
            return
        common = self._folder.read_global(round, -1)
        equal = list(common) == list(weights) and all(torch.equal(common[name], weights[name]) for name in common)
        if equal:
            self._sent = (round, sent)
        else:
            self._write(self._folder.write_global, round, weights, client)


def round_of(request: Message) -> int | None:
    """Return the server round that a request states: in its config, or in its group id as legacy strategies do."""
    for record in request.content.config_records.values():
        if wire.ROUND in record:
            return int(record[wire.ROUND])  # type: ignore[arg-type]
    return int(request.metadata.group_id) if request.metadata.group_id.isdigit() else None


def _node(request: Message, reply: Message) -> dict[str, Any]:
    """Return the id of a client's node and, where its reply states one in a config or a metric record, its partition."""
    found = {observed.NODE_ID: request.metadata.dst_node_id}
    records: tuple[Any, ...] = (*reply.content.config_records.values(), *reply.content.metric_records.values())
    for record in records:
        stated = record.get(observed.PARTITION)
        if isinstance(stated, int) and not isinstance(stated, bool) and stated >= 0:
            found[observed.PARTITION] = stated
    return found


def _why_skipped(way: str, content: RecordDict) -> str:
    """Return why the arrays of a message cannot be told apart, or are not there."""
    names = list(content.array_records)
    if not names:
        return f"the {way} holds no ArrayRecord"
    return f"the {way} holds {len(names)} ArrayRecords ({', '.join(names)}), where fedsim reads one"


def keep_refused(folder: RunFolder, client: int, exchange: Exchange, fault: str) -> None:
    """Store a reply that was refused beside the captures, as evidence; no attack and no strategy ever sees it.

    A client may send anything: of a large reply only so much is kept, and the header says what was left out.
    """
    content, arrays, tensors, room = (
        exchange.reply.content,
        list[dict[str, Any]](),
        dict[str, torch.Tensor](),
        _MOST_KEPT,
    )
    sent = [(record, *item) for record, found in content.array_records.items() for item in found.items()]
    for record, name, array in sent[:_MOST_NAMED]:
        texts = {"record": record, "name": name, "dtype": array.dtype}
        stated: dict[str, Any] = {key: text[:_LONGEST] for key, text in texts.items()}
        stated["shape"] = list(array.shape)[:_MOST_SIZES]
        if len(array.data) <= room:
            # By number and as bytes: neither its name nor its format need be one that the file can hold.
            tensors[str(len(arrays))] = torch.frombuffer(bytearray(array.data or b"\0"), dtype=torch.uint8)
            room -= len(array.data)
        else:
            stated["bytes_left_out"] = len(array.data)
        arrays.append(stated)
    metrics = {
        name[:_LONGEST]: {key[:_LONGEST]: repr(value)[:_LONGEST] for key, value in islice(record.items(), _MOST_NAMED)}
        for name, record in islice(content.metric_records.items(), _MOST_SIZES)
    }
    header = {"client": client, "fault": fault, "arrays": arrays, "arrays_left_out": len(sent) - len(arrays)}
    folder.write_refused(round_of(exchange.request) or 0, client, tensors, {**header, "metrics": metrics})


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two tensors are equal in every bit, NaN included."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


class Replayer:
    """Gives the recorded reply of a request, if an earlier run of the same scenario has stored it.

    Args:
        folder: the run.
        client_of: node id -> client number.
        fault_of: what is wrong with the reply of an exchange, or None; an earlier version may have stored any.
    """

    def __init__(
        self,
        folder: RunFolder,
        client_of: Callable[[int], int],
        fault_of: Callable[[Exchange], str | None] = lambda exchange: None,
    ) -> None:
        self._folder = folder
        self._client_of = client_of
        self._fault_of = fault_of
        self._replayed: set[int] = set()
        self._compared: tuple[int, ArrayRecord] | None = None
        self.asked: set[int] = set()
        """Rounds in which a client had to be asked."""

    def replay(self, request: Message) -> Message | None:
        """Return the recorded reply or failure; None when the client has to be asked.

        Raises:
            RunFolderError: this run sends other weights than the recorded one did, or the capture is missing, corrupted, or a
                reply that would be refused today.
        """
        client, round = self._client_of(request.metadata.dst_node_id), round_of(request)
        if request.metadata.message_type != "train" or round is None:
            return None
        self._compare(round, client, request.content[wire.ARRAYS])  # type: ignore[arg-type]
        failure = self._folder.failures(round).get(client)
        if failure is not None:
            return wire.failure(request, failure)
        if not self._folder.has_capture(round, client):
            self.asked.add(round)
            return None
        capture = self._folder.read_capture(round, client)
        self._replayed.add(client)
        content = RecordDict(
            {
                wire.ARRAYS: ArrayRecord({name: Array(tensor.numpy()) for name, tensor in capture.arrays.items()}),
                wire.METRICS: MetricRecord(dict(capture.metrics)),
                wire.UPDATE: ConfigRecord(
                    {"kind": capture.kind, **({"buffers": list(capture.buffers)} if capture.buffers else {})}
                ),
            }
        )
        reply = Message(content, reply_to=request)
        fault = self._fault_of(Exchange(request, reply))
        if fault is not None:
            raise RunFolderError(
                f"{self._folder.path}: the capture of round {round}, client {client} is refused: {fault}. Delete its line in "
                "captures/index.jsonl and use --resume, which asks the client again."
            )
        self._folder.check_arrays(capture, self._folder.read_global(round, client))
        return reply

    def _compare(self, round: int, client: int, sent: ArrayRecord) -> None:
        """Compare what is sent with what was sent; weights of a round that were lost alone are stored again."""
        # Strategies put one shared record into all messages of a round.
        if self._compared is not None and self._compared[0] == round and self._compared[1] is sent:
            return
        weights = wire.to_tensors(sent)
        if not self._folder.has_global(round):
            if self._folder.captured(round):
                self._folder.write_global(round, weights)
            return
        stored = self._folder.read_global(round, client)
        name = next((name for name in {**stored, **weights} if not _is_same(stored.get(name), weights.get(name))), None)
        if name is not None:
            raise RunFolderError(
                f"{self._folder.capture_path(round, None)}: round {round} now sends other weights than this run did, the "
                f"first in {name!r}. The model, the seed or a version has changed (environment.json names the versions). Put "
                "it back, or start another run."
            )
        self._compared = (round, sent)

    def prepare(self, request: Message) -> None:
        """Give a client back what it had after its earlier rounds; the shared record stays untouched.

        That is how often it has taken part, for its privacy accounting, and what its defenses keep. Its node lacks the replayed
        rounds; lost replies that it made again lie before and among them.
        """
        client, round = self._client_of(request.metadata.dst_node_id), round_of(request)
        if request.metadata.message_type == "train" and round is not None and client in self._replayed:
            done = [earlier for earlier in range(1, round) if client in self._folder.captured(earlier)]
            config: Any = dict(request.content[wire.CONFIG])
            content = RecordDict(dict(request.content))
            content[wire.CONFIG] = ConfigRecord({**config, wire.PARTICIPATIONS: len(done)})
            kept = self._folder.read_state(done[-1], client) if done else ClientState()
            if kept:
                content[wire.STATE] = ConfigRecord(kept.to_wire())  # type: ignore[arg-type]
            request.content = content
