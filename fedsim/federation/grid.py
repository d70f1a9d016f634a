"""Wrappers around Flower's Grid, the one narrow place that every exchange passes.

Strategies stay unchanged. From the strategy to the wire: `CompletingGrid` gives the reply of a client that does not train a
parameter the mean of those that do, `AppliedGradientsGrid` turns shared gradients into the weights that strategies expect,
`OrderedGrid` puts nodes and replies into partition order, `ReplayingGrid` answers from an earlier, interrupted run,
`ObservingGrid` shows every exchange to a callback as soon as it is complete, `CheckingGrid` turns a reply that is none of the
model into a failure of its client.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim import wire
from fedsim.errors import FedsimError

_log = logging.getLogger(__name__)
_NOT_TAKEN = "could not be asked: its node has left, or the message is larger than the SuperLink takes"


class GridProxy(Grid):
    """A Grid that hands everything on to another."""

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Any) -> None:
        """See `Grid.set_run`."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See `Grid.run`."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """See `Grid.get_nodes`."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        return self._inner.send_and_receive(list(messages), timeout=timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Exchange:
    """A request and its reply, as they are on the wire at that moment; copy what is to be kept."""

    request: Message
    reply: Message


class PollingGrid(GridProxy):
    """Waits for replies by pulling here rather than in the inner grid, so that each can be dealt with as it comes."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until every reply is there or the time is over, as Flower's own grids do."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        # Flower's in-memory grid polls every 0.1 s; the one that talks HTTP every 3 s.
        interval = float(getattr(self._inner, "pull_interval", 3.0))
        while waiting:
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if end is not None and time.monotonic() >= end:
                break
            if waiting and not arrived:
                time.sleep(interval)
        return replies


class EndableGrid(PollingGrid):
    """Raises once the runtime that carries the messages has ended, since no reply and no node will ever come."""

    def __init__(self, inner: Grid, ended: threading.Event) -> None:
        super().__init__(inner)
        self._ended = ended

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        self._check()
        return self._inner.get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        self._check()
        return self._inner.pull_messages(message_ids)

    def _check(self) -> None:
        if self._ended.is_set():
            raise RuntimeError("the simulation runtime has ended before the server was done")


class PairingGrid(PollingGrid):
    """Brings every reply together with its request, as soon as it is there."""

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self._sent: dict[str, Message] = {}

    def _received(self, exchange: Exchange) -> Message:
        """Return the reply to hand on."""
        return exchange.reply

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`; sending gives each message its id, in place."""
        sent = list(messages)
        ids = list(self._inner.push_messages(sent))
        self._sent.update((message.metadata.message_id, message) for message in sent)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return [self._paired(reply) for reply in self._inner.pull_messages(message_ids)]

    def _paired(self, reply: Message) -> Message:
        request = self._sent.pop(reply.metadata.reply_to_message_id, None)
        return reply if request is None else self._received(Exchange(request, reply))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `PollingGrid.send_and_receive`; what is not answered by then is forgotten."""
        requests = list(messages)
        try:
            return super().send_and_receive(requests, timeout=timeout)
        finally:
            for request in requests:
                self._sent.pop(request.metadata.message_id, None)


class ObservingGrid(PairingGrid):
    """Shows every exchange to `on_exchange`, one at a time, as soon as the reply is there.

    An exception of the callback must never disturb the host's training: it is logged and kept in `errors`.
    """

    def __init__(self, inner: Grid, on_exchange: Callable[[Exchange], None]) -> None:
        super().__init__(inner)
        self._on_exchange = on_exchange
        self.errors: list[BaseException] = []

    def _received(self, exchange: Exchange) -> Message:
        try:
            self._on_exchange(exchange)
        except FedsimError as error:
            _log.error("fedsim could not record an exchange: %s", error)
            self.errors.append(error)
        except Exception as error:  # noqa: BLE001  (boundary: the host's training goes on, and the error is kept)
            _log.exception("fedsim could not record an exchange")
            self.errors.append(error)
        return exchange.reply


class CheckingGrid(PairingGrid):
    """Puts a failure in the place of every reply that must not reach the strategy, and of one that does not come.

    Args:
        inner: the next grid.
        fault_of: what is wrong with the reply of an exchange, or None.
        on_refused: called with the exchange and its fault before the failure takes the reply's place.
        patience: how many seconds to wait for the replies to a number of messages that were sent together.
    """

    def __init__(
        self,
        inner: Grid,
        fault_of: Callable[[Exchange], str | None],
        on_refused: Callable[[Exchange, str], None],
        patience: Callable[[int], float],
    ) -> None:
        super().__init__(inner)
        self._fault_of = fault_of
        self._on_refused = on_refused
        self._patience = patience
        self._given_up_at: dict[str, tuple[float, str]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`; the time to answer begins. A SuperLink takes none for a node that has left for good."""
        sent = list(messages)
        taken = set(super().push_messages(sent))
        now, patience = time.monotonic(), self._patience(len(sent))
        ids = [message.metadata.message_id for message in sent]
        late = now + patience, f"did not answer within {patience:.0f} s"
        self._given_up_at.update({known: late if known in taken else (now, _NOT_TAKEN) for known in ids})
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`; a client that is given up has failed, and what it sends later is left alone."""
        wanted = list(message_ids)
        replies = list(super().pull_messages([known for known in wanted if known in self._sent]))
        return [*replies, *(self._give_up(known) for known in wanted if self._is_over(known))]

    def _is_over(self, message_id: str) -> bool:
        return message_id in self._sent and time.monotonic() >= self._given_up_at[message_id][0]

    def _give_up(self, message_id: str) -> Message:
        _, said = self._given_up_at.pop(message_id)
        return wire.failure(self._sent.pop(message_id), said)

    def _received(self, exchange: Exchange) -> Message:
        self._given_up_at.pop(exchange.request.metadata.message_id, None)
        fault = None if exchange.reply.has_error() else self._fault_of(exchange)
        if fault is None:
            return exchange.reply
        self._on_refused(exchange, fault)
        return wire.failure(exchange.request, f"its reply was refused: {fault}")


class OrderedGrid(GridProxy):
    """Gives node ids and replies in partition order: random node ids and arrival times no longer matter.

    Strategies sample clients from the list of node ids and sum replies in their order; both orders become a function of
    the partition numbers alone.
    """

    def __init__(self, inner: Grid, partition: Mapping[int, int]) -> None:
        super().__init__(inner)
        self._partition = partition

    def _position(self, node: int) -> int:
        return self._partition.get(node, -1)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that were there at the start, whether they still are: messages to a lost one fail.

        A strategy that misses a node would wait for it without end.
        """
        return sorted(self._partition, key=self._position)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return self._sorted(self._inner.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        return self._sorted(self._inner.send_and_receive(list(messages), timeout=timeout))

    def _sorted(self, replies: Iterable[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: self._position(reply.metadata.src_node_id))


def partitions(grid: Grid, nodes: Iterable[int], timeout: float) -> dict[int, int]:
    """Ask every node for its partition number (`query.identify`).

    Raises:
        FedsimError: a node answers with an error, with something else, or not within `timeout` seconds.
    """
    asks = [Message(RecordDict(), node, "query.identify") for node in nodes]
    answers = {answer.metadata.src_node_id: answer for answer in grid.send_and_receive(asks, timeout=timeout)}
    found = {}
    for node in (ask.metadata.dst_node_id for ask in asks):
        answer = answers.get(node)
        if answer is None:
            raise FedsimError(f"node {node} did not say within {timeout:.0f} s which client it is.")
        if answer.has_error():
            said = wire.failure_text(answer.error.reason or "")
            raise FedsimError(f"node {node} could not say which client it is; it said: {said}.")
        stated: Any = answer.content.get(wire.NODE, {})
        if wire.PARTITION not in stated:
            raise FedsimError(f"node {node} did not say which client it is, so it does not run fedsim's ClientApp.")
        found[node] = int(stated[wire.PARTITION])
    return found


class ReplayingGrid(GridProxy):
    """Answers train messages from an earlier, interrupted run and sends only the others.

    The strategy runs again from round 1 on the recorded replies, so that any state it holds (moments, accountants) is
    rebuilt exactly without pickling it, and no client computes twice.

    Args:
        inner: the next grid.
        replay: request -> recorded reply, or None when the client has to be asked.
        prepare: changes a request before it is really sent.
    """

    def __init__(
        self, inner: Grid, replay: Callable[[Message], Message | None], prepare: Callable[[Message], None]
    ) -> None:
        super().__init__(inner)
        self._replay = replay
        self._prepare = prepare

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        replies: list[Message] = []
        to_send: list[Message] = []
        for message in messages:
            recorded = self._replay(message)
            if recorded is None:
                self._prepare(message)
                to_send.append(message)
            else:
                replies.append(recorded)
        if to_send:
            replies += self._inner.send_and_receive(to_send, timeout=timeout)
        return replies


class AppliedGradientsGrid(GridProxy):
    """FedSGD for any strategy: replaces a shared gradient g by the weights W - learning_rate * g of one SGD step.

    Clients send gradients over the wire; Flower's strategies aggregate weights. The step happens here, at the server. Buffers
    have no gradient: their new values pass as they are.

    Args:
        inner: the next grid.
        learning_rate: round -> that of the step.
    """

    def __init__(self, inner: Grid, learning_rate: Callable[[int], float]) -> None:
        super().__init__(inner)
        self._learning_rate = learning_rate

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        requests = list(messages)
        by_node = {request.metadata.dst_node_id: request for request in requests}
        replies = list(self._inner.send_and_receive(requests, timeout=timeout))
        for reply in replies:
            if not reply.has_error() and _kind(reply) == "gradient":
                self._apply(by_node[reply.metadata.src_node_id], reply)
        return replies

    def _apply(self, request: Message, reply: Message) -> None:
        weights = wire.to_tensors(request.content[wire.ARRAYS])  # type: ignore[arg-type]
        gradients = wire.to_tensors(reply.content[wire.ARRAYS])  # type: ignore[arg-type]
        stated: Any = reply.content[wire.UPDATE]
        config: Any = request.content[wire.CONFIG]
        buffers, rate = stated.get("buffers", ()), self._learning_rate(int(config[wire.ROUND]))
        stepped = {
            name: gradients[name] if name in buffers else weight - rate * gradients[name]
            for name, weight in weights.items()
        }
        reply.content[wire.ARRAYS] = wire.to_arrays(stepped)


class CompletingGrid(GridProxy):
    """Averages a parameter over the clients that train it, for strategies that take the weighted mean of all replies.

    What the other clients send of it is replaced by that mean, which leaves the mean of all as it is; where nobody trains it,
    by the weights that were sent out. So a defense that adds parameters is not diluted by clients that do not carry it.
    Captures, and so attacks, lie behind: they hold what was sent.

    Args:
        inner: the next grid; its replies hold weights.
        untrained: node id and round -> names of parameters that the node's client leaves alone.
    """

    def __init__(self, inner: Grid, untrained: Callable[[int, int], Sequence[str]]) -> None:
        super().__init__(inner)
        self._untrained = untrained

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        requests = list(messages)
        replies = list(self._inner.send_and_receive(requests, timeout=timeout))
        if requests and requests[0].metadata.message_type == "train":
            self._complete(requests[0], [reply for reply in replies if not reply.has_error()])
        return replies

    def _complete(self, request: Message, replies: Sequence[Message]) -> None:
        config: Any = request.content[wire.CONFIG]
        left = [set(self._untrained(reply.metadata.src_node_id, int(config[wire.ROUND]))) for reply in replies]
        names = set[str]().union(*left)
        if not names:
            return
        sent = wire.to_tensors(request.content[wire.ARRAYS])  # type: ignore[arg-type]
        arrays = [wire.to_tensors(reply.content[wire.ARRAYS]) for reply in replies]  # type: ignore[arg-type]
        counts = [_examples(reply) for reply in replies]
        for name in names:
            trained = [
                (own[name], count)
                for own, count, leaves in zip(arrays, counts, left, strict=True)
                if name not in leaves
            ]
            mean = _mean(trained) if trained else sent[name]
            for own, leaves in zip(arrays, left, strict=True):
                if name in leaves:
                    own[name] = mean
        for reply, own, leaves in zip(replies, arrays, left, strict=True):
            if leaves:
                reply.content[wire.ARRAYS] = wire.to_arrays(own)


def _mean(weighted: Sequence[tuple[Tensor, int]]) -> Tensor:
    total = sum(count for _, count in weighted)
    mean = torch.stack([tensor.double() * (count / total) for tensor, count in weighted]).sum(0)
    return mean.to(weighted[0][0].dtype)


def _examples(reply: Message) -> int:
    metrics: Any = reply.content[wire.METRICS]
    return int(metrics[wire.NUM_EXAMPLES])


def _kind(reply: Message) -> str:
    stated: Any = reply.content.get(wire.UPDATE, {})
    return str(stated.get("kind", "delta"))
