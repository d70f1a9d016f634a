"""The inline engine: clients are called in this process, through a Grid of ours. Milliseconds a round."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim import wire
from fedsim.errors import message_of
from fedsim.federation._flwr_private import Run, identify_process


class InlineGrid(Grid):
    """Runs a ClientApp for each message when its reply is pulled, one client at a time, whatever thread asks.

    Messages are pickled both ways, as between processes, so that no array is shared with the server.
    """

    pull_interval = 0.0

    def __init__(self, client_app: ClientApp, clients: int, run_config: UserConfig | None = None) -> None:
        identify_process(1)
        self._run = Run.create_empty(1)
        self._app = client_app
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._contexts = {
            1000 + i: Context(
                1, 1000 + i, {wire.PARTITION: i, "num-partitions": clients}, RecordDict(), dict(run_config or {})
            )
            for i in range(clients)
        }

    def set_run(self, run: Any) -> None:
        """See `Grid.set_run`."""
        self._run = run

    @property
    def run(self) -> Any:
        """See `Grid.run`."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`."""
        ids = []
        with self._lock:
            for message in messages:
                message_id = message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
                self._waiting[message_id] = pickle.dumps(message)
                ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return one reply at a time, in the order of sending."""
        wanted = set(message_ids)
        with self._lock:
            message_id = next((known for known in self._waiting if known in wanted), None)
            return [] if message_id is None else [self._answer(pickle.loads(self._waiting.pop(message_id)))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _answer(self, message: Message) -> Message:
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
            copy: Message = pickle.loads(pickle.dumps(reply))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (as Flower's worker: any client fault becomes an error reply)
            said = message_of(error) or type(error).__name__
            return wire.failure(message, f"ClientAppException occurred. Message: {said}")
        return copy


def run(server_app: ServerApp, client_app: ClientApp, clients: int, run_config: UserConfig | None = None) -> None:
    """Run a Flower app to its end in this process, with a run configuration; exceptions of the server reach the caller."""
    grid = InlineGrid(client_app, clients, run_config)
    server_app(grid, Context(1, 1, {}, RecordDict(), dict(run_config or {})))
