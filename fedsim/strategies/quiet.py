"""Keeping Flower's log out of our own display, and hearing what it warns of."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_flower() -> Iterator[list[str]]:
    """Let only errors of Flower's logger through inside; importing Flower sets the level, so import it before.

    Yields:
        What Flower warns of in this thread, as it comes; the innermost of several contexts hears it.
    """
    logger, thread, heard = logging.getLogger("flwr"), threading.get_ident(), list[str]()

    def is_error(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        if record.levelno >= logging.WARNING and record.thread == thread:
            heard.append(record.getMessage())
        return False

    before = logger.level
    logger.setLevel(logging.WARNING)
    logger.filters.insert(0, is_error)
    try:
        yield heard
    except KeyboardInterrupt:
        before = logging.CRITICAL + 1  # the program ends, and Flower's thread for the server goes on for a moment
        raise
    finally:
        logger.removeFilter(is_error)
        logger.setLevel(before)
