import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_running, wait_until

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


def test_a_thread_that_has_ended_hides_no_children_of_others(monkeypatch, tmp_path):
    threads = tmp_path / "proc" / "7" / "task"
    for thread in range(20):
        (threads / str(thread)).mkdir(parents=True)
        # The files of odd threads cannot be read, nor the folders of children.
        if thread % 2 == 0:
            (threads / str(thread) / "children").write_text(f"{100 + thread} ")
    monkeypatch.setattr(process_tree, "Path", lambda path: tmp_path / path.removeprefix("/"))
    assert sorted(process_tree.descendants(7)) == [100 + thread for thread in range(0, 20, 2)]


# Starts a process in its session, which starts one in a session of its own, and ends.
LEAVES = """
import os, signal
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"%d %d\\n" % (os.getppid(), os.getpid()))
    signal.pause()
os.read(0, 1)
"""


def test_a_session_ends_with_what_its_members_have_started_and_its_leader_may_be_gone():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LEAVES], start_new_session=True, **pipes) as process:
        left = [int(one) for one in process.stdout.readline().split()]
        leader = process_tree.leader(process.pid)
        # Another process that has got the same number.
        process_tree.end_session(leader._replace(began=leader.began - 1))
        assert process.poll() is None and all(map(is_running, left))
        process.stdin.close()
        process.wait(60)
        assert len(left) == 2 and all(map(is_running, left))
        process_tree.end_session(leader)
    wait_until(lambda: not any(map(is_running, left)))


def test_where_no_process_is_listed_a_session_ends_as_a_group(monkeypatch, tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], start_new_session=True, stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(process_tree, "Path", lambda path: tmp_path / path.removeprefix("/"))
        leader = process_tree.leader(process.pid)
        assert leader == (process.pid, None)
        process_tree.end_session(leader)
        assert process.wait(60) == -signal.SIGKILL
        process_tree.end_session(leader)


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
