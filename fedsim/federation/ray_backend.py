"""Flower's Ray backend, in which a lost process costs one message, and an interruption leaves no thread behind.

Flower gives the next message to an actor that is lost and not yet back, which then fails as well, client after client. And it
ends Ray while its threads wait for actors at work, which they then do for ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.server.superlink.fleet.vce.backend import raybackend
from ray.exceptions import RayActorError, RayError

_RESTART = 120.0  # seconds for Ray to start an actor again, which imports torch
_END = 10.0  # seconds for threads to hear that their actors were killed
_PAUSE = 0.2


class RayBackend(raybackend.RayBackend):
    """As Flower's, with actors that are there when they get a message."""

    _is_ending = False

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Have an actor run the ClientApp; one that is lost is back before it gets another message."""
        assert self.pool is not None
        job: Any = (self.app_fn, message, str(context.node_config["partition-id"]), context)
        future = self.pool.submit(lambda actor, *given: actor.run.remote(*given), job)
        try:
            _, reply, updated = ray.get(future)
        except RayActorError:
            self._wait_for(self.pool._future_to_actor[future])
            raise
        finally:
            self.pool.add_actor_back_to_pool(future)
        return reply, updated

    def _wait_for(self, actor: Any) -> None:
        end = time.monotonic() + _RESTART
        while not self._is_ending and time.monotonic() < end:
            with contextlib.suppress(RayError):
                ray.get(actor.__ray_ready__.remote(), timeout=_RESTART)
                return
            time.sleep(_PAUSE)

    def terminate(self) -> None:
        """End actors at work first, so that no thread waits for an answer of a Ray that is gone."""
        self._is_ending = True
        if self.pool is not None:
            at_work: list[Any] = list(self.pool._future_to_actor.values())
            for actor in at_work:
                ray.kill(actor)
            end = time.monotonic() + _END
            while self.pool._future_to_actor and time.monotonic() < end:
                time.sleep(_PAUSE)
        super().terminate()


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Have Flower's simulation runtime use this backend in the place of its own."""
    own = raybackend.RayBackend
    vars(raybackend)["RayBackend"] = RayBackend
    try:
        yield
    finally:
        vars(raybackend)["RayBackend"] = own
