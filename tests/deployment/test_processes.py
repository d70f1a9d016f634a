"""The keeper's processes: plain Python ones, of which one leaves an orphan in a session of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_running, wait_until

from fedsim import process_tree
from fedsim.deployment.processes import Processes
from fedsim.errors import FedsimError

pytestmark = pytest.mark.skipif(not process_tree.tells_memory(), reason="this system does not list processes")

# Starts a process that has no parent any more, in a session of its own, as a daemon does.
ORPHAN = """
import os, subprocess, sys, time
code = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
if os.fork() == 0:
    os.setsid()
    subprocess.Popen([sys.executable, "-S", "-c", code])
    os._exit(0)
os.wait()
time.sleep(99)
"""
# As in a terminal: what runs in the background inherits that Ctrl-C is ignored.
DRIVER = """
import signal, sys, time
from fedsim.deployment.processes import Processes

signal.signal(signal.SIGINT, signal.default_int_handler)
with Processes({}) as held:
    held.start("parent", [sys.executable, "-S", "-c", sys.argv[1]])
    print(held.folder, flush=True)
    time.sleep(99)
"""


def python(code, *arguments):
    return [sys.executable, "-S", "-c", code, *arguments]


def orphan_of(folder):
    log = folder / "parent.log"
    wait_until(lambda: log.is_file() and log.read_text().endswith("\n"))
    return int(log.read_text())


@pytest.mark.parametrize(
    "sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "interrupt", "terminate"]
)
def test_nothing_outlives_a_driver_that_is_killed_or_interrupted(sign):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, ORPHAN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with driver:
        folder = Path(driver.stdout.readline().strip())
        orphan = orphan_of(folder)
        keeper, *_ = process_tree.descendants(driver.pid)
        family = [keeper, *process_tree.descendants(keeper)]
        assert orphan in family, "the keeper has not adopted it"
        driver.send_signal(sign)
    wait_until(lambda: not any(map(is_running, family)))
    wait_until(lambda: not folder.exists())


def test_leaving_the_context_ends_all_and_removes_the_folder():
    with Processes({"FEDSIM_TEST": "here"}) as held:
        code = "import os; print(os.environ['FEDSIM_TEST'], os.environ['FLWR_HOME'], flush=True)"
        held.start("short", python(code))
        held.start("parent", python(ORPHAN))
        wait_until(lambda: "short" in held.ended())
        assert held.ended() == {"short": 0} and held.said("short").split() == ["here", str(held.folder)]
        family = [orphan_of(held.folder)]
    assert not any(map(is_running, family)) and not held.folder.exists()


def test_an_exception_ends_all_too():
    with pytest.raises(ZeroDivisionError), Processes({}) as held:
        held.start("parent", python(ORPHAN))
        orphan = orphan_of(held.folder)
        raise ZeroDivisionError
    assert not is_running(orphan)


def test_a_process_that_fails_is_told_with_its_last_lines_and_may_be_started_again():
    with Processes({}) as held:
        held.start("one", python("import sys; print('\\033[31mred', *range(3), sep='\\n'); sys.exit(7)"))
        wait_until(lambda: "one" in held.ended())
        assert held.ended() == {"one": 7}
        assert held.said("one") == "  \\x1b[31mred\n  0\n  1\n  2", "no escape code reaches the terminal"
        held.start("one", python("import time; time.sleep(99)"))
        assert held.ended() == {}
        held.start("none", ["/no/such/program"])
        wait_until(lambda: "none" in held.ended())
        assert held.ended()["none"] == 127 and "No such file" in held.said("none")
        assert held.said("never started") == ""


def test_a_keeper_that_is_killed_is_told_and_its_session_ends():
    with Processes({}) as held:
        held.start("one", python("import os, time; print(os.getpid(), flush=True); time.sleep(99)"))
        wait_until(lambda: held.said("one"))
        process = int(held.said("one"))
        (keeper,) = (one for one in process_tree.descendants(os.getpid()) if process in process_tree.descendants(one))
        os.kill(keeper, signal.SIGKILL)

        def is_refused():
            try:
                held.ended()
            except FedsimError as error:
                return "was killed" in str(error)
            return False

        wait_until(is_refused)
        with pytest.raises(FedsimError, match="holds two was killed"):
            held.start("two", python(""))
    wait_until(lambda: not is_running(process))
    assert not held.folder.exists()
