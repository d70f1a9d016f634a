"""Keeping Flower's progress log out of our own display."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Let only errors of Flower's logger through inside; importing Flower sets the level, so import it before."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
