import errno
import json
import os
import socket

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fedsim.errors import RunFolderError
from fedsim.recording import files


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run" / "part").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("theirs")
    return tmp_path / "run"


def as_link(path):
    path.symlink_to(path.parents[1] / "elsewhere" / "kept")


def as_pipe(path):
    os.mkfifo(path)


def as_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))


def as_link_to_a_device(path):
    path.symlink_to("/dev/zero")


def as_folder(path):
    path.mkdir()


KINDS = {
    as_link: "a symbolic link",
    as_pipe: "exists and is a named pipe, where a file is needed",
    as_socket: "exists and is a socket, where a file is needed",
    as_link_to_a_device: "a symbolic link",
    as_folder: "exists and is a folder, where a file is needed",
}
USES = {
    "read": lambda path, root: files.read(path, root),
    "read as JSON": lambda path, root: files.read_json(path, root),
    "read tensors": lambda path, root: files.read_tensors(path, root, "a capture"),
    "write": lambda path, root: files.write_atomically(path, "new", root),
    "open to append": lambda path, root: files.open_file(path, root, os.O_RDWR | os.O_CREAT),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_no_ordinary_file_is_refused_by_name_and_left_alone(root, make, use, monkeypatch):
    monkeypatch.chdir(root)
    make(root / "file")
    before = (root / "file").lstat()
    with pytest.raises(RunFolderError, match="file: ") as refused:
        use(root / "file", root)
    assert str(refused.value).startswith(f"{root}/file: {KINDS[make]}")
    assert (root / "file").lstat() == before
    assert (root.parent / "elsewhere" / "kept").read_text() == "theirs"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_folder_that_is_a_link_is_not_entered(root, use):
    (root / "link").symlink_to(root.parent / "elsewhere")
    with pytest.raises(RunFolderError, match=r"run/link: a symbolic link, and no path of a run folder is followed"):
        use(root / "link" / "kept", root)
    assert [path.name for path in (root.parent / "elsewhere").iterdir()] == ["kept"]


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("name", ["../elsewhere/kept", "part/../../elsewhere/kept", "/etc/hostname", "", "part/.."])
def test_a_path_that_leads_out_of_the_folder_is_refused(root, use, name):
    with pytest.raises(RunFolderError, match=r"outside the run folder\.$"):
        use(root / name, root)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_refused(root, name):
    with pytest.raises(RunFolderError, match="cannot be read"):
        files.read(root / name, root)


def test_the_folder_itself_may_be_reached_through_a_link_and_hard_links_are_files(root):
    latest = root.parent / "latest"
    latest.symlink_to(root)
    files.write_atomically(latest / "new" / "file", "ours", latest)
    os.link(root / "new" / "file", root / "hard")
    assert files.read(latest / "hard", latest) == b"ours"
    assert files.read(latest / "part" / "nothing", latest) is None
    assert not list(root.rglob("*.partial"))


def test_a_file_where_a_folder_is_needed_is_named(root):
    (root / "file").write_text("mine")
    with pytest.raises(RunFolderError, match=r"run/file: exists and is a file, where a folder is needed"):
        files.write_atomically(root / "file" / "below", "x", root)
    with pytest.raises(RunFolderError, match=r"run/file: exists and is a file, where a folder is needed"):
        files.read(root / "file" / "below", root)


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{oops}", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b'"\xed\xa0\x80"', "not JSON"),
        ("9" * 5000, "not JSON"),
        (nested(files.MAX_DEPTH + 1), f"nested more than {files.MAX_DEPTH} levels deep"),
        (nested(100_000), f"nested more than {files.MAX_DEPTH} levels deep"),
        ('{"a":' * 90 + "1" + "}" * 90, f"nested more than {files.MAX_DEPTH} levels deep"),
    ],
)
def test_json_that_no_fedsim_wrote_is_refused_with_the_reason(text, says, root):
    with pytest.raises(ValueError, match=f"^{says}$"):
        files.parse_json(text)
    (root / "file").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunFolderError, match=rf"run/file: {says}\."):
        files.read_json(root / "file", root)


def test_json_up_to_the_limit_is_read_and_stray_surrogates_become_readable():
    value = json.loads(nested(files.MAX_DEPTH))
    assert files.parse_json(nested(files.MAX_DEPTH)) == value
    assert files.parse_json(json.dumps([[]] * 200)) == [[]] * 200
    text = {"a\ud800": ["b\udfffc", "\U0001f600", "ä"]}
    assert files.parse_json(json.dumps(text)) == {"a\ufffd": ["b\ufffdc", "\U0001f600", "ä"]}


def test_tensors_come_with_their_header(root):
    save_file({"a": torch.arange(3.0)}, root / "file", files.header({"order": ["a"]}))
    tensors, header = files.read_tensors(root / "file", root, "a capture")
    assert torch.equal(tensors["a"], torch.arange(3.0)) and header == {"order": ["a"]}
    assert files.read_tensors(root / "file", root, "a capture", with_tensors=False) == ({}, {"order": ["a"]})
    assert files.read_tensors(root / "none", root, "a capture") is None


@pytest.mark.parametrize("metadata", [None, {}, {"fedsim": "{"}, {"fedsim": nested(100_000)}])
def test_tensors_without_a_header_of_fedsim_are_named(root, metadata):
    save_file({"a": torch.arange(3.0)}, root / "file", metadata)
    with pytest.raises(files.DamagedFileError, match=r"run/file: not a finding of fedsim: "):
        files.read_tensors(root / "file", root, "a finding")


def test_what_a_killed_process_left_of_the_same_number_does_not_stop_a_write(root):
    with files.aside(root / "file", root) as partial:
        left = partial
    left.write_text("half")
    assert files.is_partial(left) and not files.is_partial(root / ".hidden")
    files.write_atomically(root / "file", "whole", root)
    assert (root / "file").read_text() == "whole" and not left.exists()


def test_a_text_that_no_fedsim_writes_so_large_is_refused_before_it_is_read(root):
    with (root / "records.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RunFolderError, match=r"records\.jsonl: 1099511627776 bytes, and at most 1073741824 are read"):
        files.read(root / "records.jsonl", root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_what_to_do_and_leaves_nothing_half_written(root, number):
    files.write_atomically(root / "kept", "first", root)
    with pytest.raises(
        RunFolderError, match=rf"kept: cannot be written: {os.strerror(number)}\. What is complete is kept"
    ):
        with files.aside(root / "kept", root):
            raise OSError(number, os.strerror(number))
    assert (root / "kept").read_text() == "first" and not list(root.glob(".*"))


def test_what_safetensors_says_of_the_disk_is_told_alike(root):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(RunFolderError, match=r"kept: cannot be written: No space left on device\. What is complete"):
        with files.writing(root / "kept"):
            raise SafetensorError(said)
    with pytest.raises(RunFolderError, match=r"kept: cannot be written: header too large\.$"):
        with files.writing(root / "kept"):
            raise SafetensorError("header too large")
