import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import process_tree

MEBIBYTE = 2**20

pytestmark = pytest.mark.skipif(not process_tree.tells_memory(), reason="this system does not tell")


# Holds 256 MiB; then has three copies, in sessions of their own. Goes on with each line that it gets.
FAMILY = """
import os, signal
print("begun", flush=True)
input()
held = b"x" * (256 * 2**20)
print("full", flush=True)
input()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"%d\\n" % os.getpid())
        signal.pause()
os.write(1, b"parted\\n")
input()
"""


@pytest.fixture
def parent():
    """Return a process that runs `FAMILY`; it and its copies end when the test does."""
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        yield process
        for one in (*process_tree.descendants(process.pid), process.pid):
            os.kill(one, 9)


def test_what_a_process_shares_with_its_copies_counts_once(parent):
    assert parent.stdout.readline() == "begun\n"
    before = process_tree.memory(parent.pid)
    parent.stdin.write("\n")
    assert parent.stdout.readline() == "full\n"
    assert 256 * MEBIBYTE <= process_tree.memory(parent.pid) - before < 264 * MEBIBYTE
    parent.stdin.write("\n")
    heard = {parent.stdout.readline().strip() for _ in range(4)}
    assert {str(one) for one in process_tree.descendants(parent.pid)} == heard - {"parted"}
    assert 256 * MEBIBYTE <= process_tree.memory(parent.pid) - before < 288 * MEBIBYTE


def test_a_child_of_a_child_is_a_descendant_and_a_process_that_has_ended_holds_nothing():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == b"1\n"
        assert len(process_tree.descendants(process.pid)) == 1
        assert process_tree.memory(process.pid) > MEBIBYTE
        process.communicate(b"\n")
    assert process_tree.memory(process.pid) == 0 and process_tree.descendants(process.pid) == []


def test_a_system_without_proc_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(process_tree, "Path", lambda path: tmp_path / path.removeprefix("/"))
    assert not process_tree.tells_memory()
    me = os.getpid()
    there = tmp_path / "proc" / str(me)
    (there / "task" / str(me)).mkdir(parents=True)
    (there / "task" / str(me) / "children").touch()
    (there / "smaps_rollup").write_text("Pss: 3 kB\n")
    assert not process_tree.tells_memory(), "too old to tell files from the rest"
    (there / "smaps_rollup").write_text(Path(f"/proc/{me}/smaps_rollup").read_text())
    assert process_tree.tells_memory()
