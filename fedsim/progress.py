"""How far an attack has come, told while it runs to a listener; the attack cannot tell whether there is one."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

INTERVAL = 0.5
"""Seconds at least between two steps of one attack that are passed on."""


class Step(NamedTuple):
    """How far an attack has come.

    Args:
        done: iterations that lie behind it.
        total: iterations in all.
        loss: observable loss at the last one; None when it told none.
        seconds_left: at the pace since its first step; None while there is no pace.
    """

    done: int
    total: int
    loss: float | None
    seconds_left: float | None


class _Listener:
    def __init__(self, sink: Callable[[Step], None], interval: float, clock: Callable[[], float]) -> None:
        self._sink, self._interval, self._clock = sink, interval, clock
        self._first: tuple[float, int] | None = None
        self._due = 0.0
        self.error: Exception | None = None

    def hear(self, done: int, total: int, loss: float | None) -> None:
        now = self._clock()
        if self._first is None:
            self._first = now, done
        elif now < self._due or self.error is not None:
            return
        self._due = now + self._interval
        began, since = self._first
        left = (now - began) * max(0, total - done) / (done - since) if done > since else None
        try:
            self._sink(Step(done, total, loss, left))
        except Exception as error:  # noqa: BLE001  (a listener's fault is none of the attack: raised once that has ended)
            self.error = error


_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


def advance(done: int, total: int, loss: float | None = None) -> None:
    """Tell that an iteration is over; cheap enough for every one, and without effect where nobody listens.

    Args:
        done: iterations that lie behind the attack.
        total: iterations in all, restarts included; an estimate will do.
        loss: observable loss at this one, where it is at hand.
    """
    # Whether these are numbers must not depend on a listener either.
    done, total, loss = operator.index(done), operator.index(total), None if loss is None else float(loss)
    listener = _listener.get()
    if listener is not None:
        listener.hear(done, total, loss)


@contextlib.contextmanager
def listening(
    sink: Callable[[Step], None], interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Pass the steps of the attack that runs inside on to a sink.

    Args:
        sink: called in the attack's thread, so it should return at once.
        interval: seconds at least between two calls.
        clock: the present in seconds.

    Raises:
        Exception: what the sink has raised, at the end; it is not called again after that.
    """
    listener = _Listener(sink, interval, clock)
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
    if listener.error is not None:
        raise listener.error
