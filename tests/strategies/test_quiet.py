"""Flower's log stays out of our own display, also when a run is interrupted."""

import logging

import flwr  # noqa: F401  (sets the level of its logger)
import pytest

from fedsim.strategies.quiet import quiet_flower


@pytest.fixture
def logger():
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before)


def emitted(logger, *levels):
    """Return which levels reach a handler."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.levelno)
    logger.addHandler(handler)
    try:
        for level in levels:
            logger.log(level, "said")
    finally:
        logger.removeHandler(handler)
    return seen


def test_inside_only_errors_pass_and_warnings_are_heard(logger):
    with quiet_flower() as heard:
        assert emitted(logger, logging.INFO, logging.WARNING, logging.ERROR) == [logging.ERROR]
    assert heard == ["said"]
    assert emitted(logger, logging.INFO) == [logging.INFO]


def test_after_an_error_it_speaks_again_and_after_an_interruption_it_does_not(logger):
    with pytest.raises(ValueError, match="reason"), quiet_flower():
        raise ValueError("reason")
    assert emitted(logger, logging.INFO) == [logging.INFO]
    with pytest.raises(KeyboardInterrupt), quiet_flower():
        raise KeyboardInterrupt
    assert emitted(logger, logging.INFO, logging.ERROR) == []
