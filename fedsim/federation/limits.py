"""One client's work kept to its time, and to itself: whatever ends it becomes an ordinary exception, on every engine."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from fedsim.errors import told

_Result = TypeVar("_Result")
_AGAIN = 1.0  # seconds until work that swallowed the first interruption gets the next


class ClientTimeoutError(RuntimeError):
    """The client worked longer than `federation.client_timeout`."""


class ClientEndedError(RuntimeError):
    """The client tried to end its process, or raised what is no ordinary exception."""


class _Expired(BaseException):
    """Not an Exception, so that work which catches those ends nevertheless."""


def contained(work: Callable[[], _Result], seconds: float) -> _Result:
    """Return what `work` returns.

    Where this is the main thread, as in the inline engine and in Ray's workers, the time is limited: Python code, sleeping
    and waiting are interrupted, a single call into foreign code that never comes back is not. Ctrl-C passes.

    Raises:
        ClientTimeoutError: the time is over.
        ClientEndedError: `work` raised SystemExit or another exception that is no `Exception`.
        Exception: whatever else `work` raised.
    """
    over = threading.Event()
    try:
        with _alarm(seconds, over):
            result = work()
    except _Expired:
        pass
    except KeyboardInterrupt:
        raise
    except Exception:
        if not over.is_set():
            raise
    except BaseException as error:
        raise ClientEndedError(f"the client tried to end its process: {told(error)}") from error
    if over.is_set():
        raise ClientTimeoutError(f"took longer than federation.client_timeout, {seconds:g} s")
    return result


@contextlib.contextmanager
def _alarm(seconds: float, over: threading.Event) -> Iterator[None]:
    """Raise `_Expired` in here after that time, again and again until it is obeyed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    ended = threading.Event()

    def expire(number: int, frame: FrameType | None) -> None:
        if not ended.is_set():
            over.set()
            raise _Expired

    handler = signal.signal(signal.SIGALRM, expire)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        try:
            yield
        finally:
            ended.set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
