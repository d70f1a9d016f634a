"""Processes that end when this one does, however it ends: they belong to a keeper (`fedsim.deployment.keeper`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedsim import process_tree
from fedsim.errors import FedsimError, printable_lines

_LAST = 4000  # bytes of a log that a message may show
_LAST_LINES = 12
_PATIENCE = 20.0  # seconds that a killed keeper may take


class Processes:
    """A keeper with a temporary folder, and what it holds. Leaving the context ends all and removes the folder.

    Args:
        environment: of all processes, beyond this one's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedsim-"))
        self._environment = {**os.environ, **environment, "FLWR_HOME": str(self.folder)}
        self._ended: dict[str, int] = {}
        self._unread = b""

    def __enter__(self) -> Processes:
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedsim.deployment.keeper", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        self._leader = process_tree.leader(self._keeper.pid)
        assert self._keeper.stdout is not None
        os.set_blocking(self._keeper.stdout.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        # An interruption must not leave anything behind either.
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(_PATIENCE)
        finally:
            process_tree.end_session(self._leader)
            self._keeper.wait()
            self._keeper.stdout.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; its outputs go to a log.

        Raises:
            FedsimError: the keeper is gone.
        """
        line = json.dumps({"name": name, "command": list(command), "log": str(self._log(name))}).encode() + b"\n"
        self._ended.pop(name, None)
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(line)
            self._keeper.stdin.flush()
        except OSError:
            raise FedsimError(f"the process that holds {name} was killed. Start the run again.") from None

    def ended(self) -> Mapping[str, int]:
        """Return the processes that have ended, with their exit codes.

        Raises:
            FedsimError: the keeper is gone, and all that it held with it.
        """
        assert self._keeper.stdout is not None
        while content := self._keeper.stdout.read(65536):
            *lines, self._unread = (self._unread + content).split(b"\n")
            for line in lines:
                stated = json.loads(line)
                self._ended[stated["name"]] = stated["code"]
        if self._keeper.poll() is not None:
            raise FedsimError(
                "the process that holds the SuperLink and the SuperNodes was killed. Start the run again."
            )
        return self._ended

    def said(self, name: str) -> str:
        """Return the last lines that a process has printed, for a message; empty where it has printed none."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST))
                content = log.read()
        except FileNotFoundError:
            return ""
        lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
        return printable_lines("\n".join(f"  {line}" for line in lines[-_LAST_LINES:]))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
