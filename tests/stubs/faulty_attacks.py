"""Attacks that go wrong on one client's updates and guess otherwise, named in scenarios as `faulty_attacks:Goes`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from stubs import Guess

from fedsim.attack import Attack
from fedsim.exchange import Finding, Observation


class End(BaseException):
    """Derives from BaseException, as KeyboardInterrupt does."""


class UnspeakableError(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def _raise(error: BaseException) -> None:
    raise error


def _spin() -> None:
    while True:
        pass


def _spin_in_c() -> None:
    # Never lets another thread of the process run.
    re.match("(a+)+$", "a" * 60 + "b")


def _wait() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Event().wait()


def _wait_for_a_child() -> None:
    if os.fork() == 0:
        _wait()
    os._exit(0)


def _leave_a_thread() -> None:
    threading.Thread(target=_wait, daemon=False).start()


def _leave_a_child(has_own_session: bool) -> None:
    # It holds the outputs of the program, so that whoever reads them waits for it.
    waiting = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    child = subprocess.Popen(waiting, start_new_session=has_own_session)
    with Path(os.environ["FEDSIM_TEST_NOTE"]).open("a") as note:
        note.write(f"{child.pid}\n")


def _take_memory() -> None:
    # As text and not as a tensor, whose pages may be touched late; nothing else in the tests needs as much.
    held = b"x" * (1024 * 2**20)
    threading.Event().wait()
    del held


def _take_a_little_memory() -> None:
    held = b"x" * (64 * 2**20)
    del held


def _write_a_gigabyte() -> None:
    # Its last byte: what lies before it takes no room on a disk.
    with tempfile.TemporaryFile() as file:
        file.seek(2**30 - 1)
        file.write(b"x")


def _leave_memory_to_a_child() -> None:
    if os.fork() == 0:
        os.setsid()
        _take_memory()
    threading.Event().wait()


def _disturb() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    os.chdir("/")
    raise RuntimeError("after a mess")


FAULTS: Mapping[str, Callable[[], object]] = MappingProxyType(
    {
        "interrupts": lambda: _raise(KeyboardInterrupt("by itself")),
        "leaves a generator": lambda: _raise(GeneratorExit()),
        "ends": lambda: _raise(End("of all")),
        "raises without a text": lambda: _raise(UnspeakableError()),
        "raises a surrogate": lambda: _raise(ValueError("a\ud800b")),
        "raises a long text": lambda: _raise(ValueError("x" * 5_000_000)),
        "disturbs": _disturb,
        "exits": lambda: os._exit(0),
        "dies before its child": _wait_for_a_child,
        "goes on twice": os.fork,
        "changes the directory": lambda: os.chdir("/"),
        "closes files": lambda: os.closerange(3, 200),
        "spins": _spin,
        "spins in C": _spin_in_c,
        "ignores signals": _wait,
        "takes memory": _take_memory,
        "writes a gigabyte": _write_a_gigabyte,
        "takes a little memory": _take_a_little_memory,
        "leaves memory to a child": _leave_memory_to_a_child,
        "leaves a thread": _leave_a_thread,
        "leaves a child": lambda: _leave_a_child(False),
        "leaves a session": lambda: _leave_a_child(True),
    }
)


@dataclass(frozen=True, kw_only=True)
class Goes(Attack):
    """Goes wrong in one way."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})

    fault: str = "spins"
    on: int = 1
    note: str = ""

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        if self.note:
            Path(self.note).touch()
        if observation.update.client == self.on:
            FAULTS[self.fault]()
        return Guess().run(observation, generator)
