import errno
import os
import subprocess
import sys
import threading

import pytest

from fedsim.errors import RunFolderError
from fedsim.recording.folder_lock import LOCK
from fedsim.recording.run_folder import RunFolder


@pytest.fixture
def folder(tiny_scenario, tmp_path):
    return RunFolder.create(tmp_path / "run", tiny_scenario())


def test_who_holds_the_folder_may_take_it_again_and_others_not_before_the_end(folder):
    with folder.locked():
        with folder.locked():
            pass
        with pytest.raises(RunFolderError, match="another fedsim process"), RunFolder.open(folder.path).locked():
            pass
    with RunFolder.open(folder.path).locked():
        pass


def test_another_thread_of_the_holder_may_take_the_folder_again(folder):
    taken = []

    def take():
        with folder.locked():
            taken.append(True)

    with folder.locked():
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        with pytest.raises(RunFolderError, match="another fedsim process"), RunFolder.open(folder.path).locked():
            pass
    assert taken == [True]


def test_what_a_killed_process_was_writing_aside_goes_when_the_folder_is_taken_and_not_before_the_end(folder):
    leftover = folder.path / ".report.md.1.1.partial"
    leftover.touch()
    with folder.locked():
        assert not leftover.exists()
        leftover.touch()
        with folder.locked():
            assert leftover.exists()


def test_a_pipe_in_place_of_the_lock_is_refused_without_waiting_for_its_other_end(folder):
    os.mkfifo(folder.path / LOCK)
    with pytest.raises(RunFolderError, match=r"\.lock: exists and is a named pipe"), folder.locked():
        pass


def test_a_folder_that_is_gone_is_not_made_again(folder):
    folder.path.rename(folder.path.with_name("elsewhere"))
    with pytest.raises(RunFolderError, match="no such folder"), folder.locked():
        pass
    assert not folder.path.exists()


def test_a_file_system_without_locks_is_named_and_nothing_else_is_taken_for_a_lock(folder, monkeypatch):
    def lacking(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", lacking)
    with pytest.raises(RunFolderError, match=r"\.lock: cannot be locked: Function not implemented"), folder.locked():
        pass


HOLD = """
import os
import sys
from pathlib import Path
from fedsim.recording.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1])).locked():
    is_worker = sys.argv[2] == "forks" and os.fork() == 0
    if sys.argv[2] == "alone" or is_worker:
        print("held", flush=True)
    sys.stdin.read()
    if is_worker:
        os._exit(0)
"""


@pytest.mark.parametrize("what", ["alone", "forks"])
def test_a_second_process_is_kept_out_until_the_first_is_killed_also_where_its_worker_lives_on(folder, what):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match="another fedsim process"), folder.locked():
            pass
        holder.kill()
        holder.wait()
        with folder.locked():
            pass
    finally:
        holder.kill()
        holder.communicate()
