"""report.pdf: the page as a Chromium without a window prints it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim.errors import FedsimError, printable, printable_line
from fedsim.process_tree import end_session, leader
from fedsim.recording.run_folder import RunFolder

VARIABLE = "FEDSIM_BROWSER"
"""Environment variable that names the browser."""

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
"""What is looked for in PATH where none is named, in this order."""

SECONDS = 180.0
"""How long a browser may take; the page of 20,000 records takes a tenth of it."""

_LOOK = 0.2  # seconds between two looks whether this process was asked to end

_HOW = (
    f"Install Chromium or Chrome, or name one with --browser or in {VARIABLE}; or print report.html from any browser."
)
# Nothing but the page: no profile of the user's, no network, no header of the browser's.
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-pdf-header-footer",
)


def browser(named: str | None = None) -> Path:
    """Return the browser to print with: the one named, else that of the environment, else the first one in PATH.

    Args:
        named: a path, or a name in PATH.

    Raises:
        FedsimError: the one named cannot be run, or there is none.
    """
    for given, where in ((named, "--browser"), (os.environ.get(VARIABLE), VARIABLE)):
        if given:
            found = shutil.which(given)
            if found is None:
                raise FedsimError(
                    f"{where}: {printable_line(given)} is no program that can be run. Give the path of a Chromium or Chrome, "
                    "or its name in PATH."
                )
            return Path(found)
    for name in BROWSERS:
        if found := shutil.which(name):
            return Path(found)
    raise FedsimError(f"report --pdf: no browser in PATH to print with; looked for {', '.join(BROWSERS)}. {_HOW}")


def write(folder: Path, program: Path, seconds: float = SECONDS) -> Path:
    """Print report.html of a run folder into report.pdf beside it, whole or not at all; returns its path.

    Args:
        folder: a run folder with a report.
        program: the browser.
        seconds: how long it may take.

    Raises:
        FedsimError: the browser cannot be started, takes too long, or prints nothing.
        RunFolderError: report.pdf would have to be written through a link.
    """
    target = folder / "report.pdf"
    RunFolder(folder).write(target, printed(folder / "report.html", program, seconds))
    return target


def printed(page: Path, program: Path, seconds: float = SECONDS) -> bytes:
    """Return a page as PDF; see `write`."""
    with (
        _sigterm_later() as asked,
        tempfile.TemporaryDirectory("", "fedsim-pdf-", ignore_cleanup_errors=True) as scratch,
    ):
        out, said = Path(scratch) / "report.pdf", Path(scratch) / "stderr"
        # Chromium refuses to run as root with its sandbox; the page runs its own script alone, and loads nothing.
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        places = [f"--user-data-dir={scratch}/profile", f"--print-to-pdf={out}", page.resolve().as_uri()]
        with said.open("wb") as errors:
            try:
                process = subprocess.Popen(
                    [program, *_FLAGS, *sandbox, *places],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                raise FedsimError(f"{program}: cannot be started: {error.strerror}. {_HOW}") from None
            started = leader(process.pid)
            try:
                code = _waited(process, seconds, asked)
            except subprocess.TimeoutExpired:
                raise FedsimError(
                    f"{program}: has not printed {page} after {seconds:g} s, and was ended. {_HOW}"
                ) from None
            finally:
                end_session(started)
                process.wait()
        content = out.read_bytes() if out.is_file() else b""
        if not content.startswith(b"%PDF"):
            lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((f", {printable(line.strip(), 300)}" for line in reversed(lines) if line.strip()), "")
            raise FedsimError(f"{program}: printed no PDF of {page} (exit code {code}{last}). {_HOW}")
        return content


def _waited(process: subprocess.Popen[bytes], seconds: float, asked: Sequence[int]) -> int:
    """Return the exit code of a process; ends this one where it was asked to end meanwhile.

    Raises:
        subprocess.TimeoutExpired: it has not ended in time.
    """
    end = time.monotonic() + seconds
    while not asked:
        left = end - time.monotonic()
        try:
            return process.wait(max(0.0, min(_LOOK, left)))
        except subprocess.TimeoutExpired:
            if left <= _LOOK:
                raise
    sys.exit(128 + asked[0])


@contextlib.contextmanager
def _sigterm_later() -> Iterator[Sequence[int]]:
    """Let SIGTERM end this process once the block has ended, with what it started; gives the signals so far."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        sys.exit(128 + asked[0])
