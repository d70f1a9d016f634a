"""Holds processes for another one, and ends them with it: `python -m fedsim.deployment.keeper FOLDER`.

Standard input takes lines `{"name", "command", "log"}`, each of which starts a process. Standard output gives lines
`{"name", "code"}` of those that end. Once standard input ends or the parent is gone, by whatever death, the keeper kills all
that it has started, removes FOLDER, and ends. It adopts what its processes leave behind (Linux), so that nothing escapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedsim import process_tree

_PAUSE = 0.1
_PATIENCE = 10.0  # seconds that killed processes may take
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


class _Held:
    """Processes by name."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}

    def start(self, stated: Any) -> None:
        name = str(stated["name"])
        try:
            with Path(stated["log"]).open("wb") as log:
                process = subprocess.Popen(
                    stated["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
        except OSError as error:
            Path(stated["log"]).write_text(f"{error}\n")
            _tell(name, 127)
            return
        self._processes[process.pid] = name, process

    def tell_ended(self) -> None:
        """Tell which have ended, and wait for adopted ones."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if process in self._processes:
                name, started = self._processes.pop(process)
                started.returncode = os.waitstatus_to_exitcode(status)
                _tell(name, started.returncode)


def _tell(name: str, code: int) -> None:
    # Nobody may be there to read it.
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({"name": name, "code": code}).encode() + b"\n")


def _hold(parent: int) -> None:
    held, pending = _Held(), b""
    while os.getppid() == parent:
        held.tell_ended()
        if not select.select([0], [], [], _PAUSE)[0]:
            continue
        content = os.read(0, 65536)
        if not content:
            return
        *lines, pending = (pending + content).split(b"\n")
        for line in lines:
            held.start(json.loads(line))


def _wait_for_killed() -> None:
    """Wait until what was killed is gone, unless the system cannot end it."""
    end = time.monotonic() + _PATIENCE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def main(arguments: list[str]) -> None:
    """Hold processes until the parent lets go of them."""
    parent = os.getppid()
    # Ctrl-C is the parent's, and so is the order to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _adopt_orphans()
    try:
        _hold(parent)
    finally:
        process_tree.end_descendants()
        _wait_for_killed()
        shutil.rmtree(arguments[0], ignore_errors=True)
        if os.getpgrp() == os.getpid():
            # Where the system does not list processes, these are what is left.
            os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
