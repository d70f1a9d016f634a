import errno
import hashlib
import json
import os
import resource
import stat

import pytest
import torch

from fedsim.errors import RunFolderError
from fedsim.exchange import View
from fedsim.recording.captures import Capture
from fedsim.recording.files import write_atomically
from fedsim.recording.run_folder import RunFolder

WEIGHTS = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}


def capture(round=1, client=0, kind="delta", scale=2.0, **metrics):
    arrays = {name: scale * tensor for name, tensor in WEIGHTS.items()}
    return Capture(round, client, kind, arrays, {"num-examples": 4, **metrics}, {"privacy": {"epsilon": 1.5}})


@pytest.fixture
def folder(tiny_scenario, tmp_path):
    return RunFolder.create(tmp_path / "run", tiny_scenario())


@pytest.fixture
def filled(folder):
    folder.write_global(1, WEIGHTS)
    for client in (0, 2):
        folder.write_capture(capture(client=client))
    folder.write_failure(1, 1, "out of battery")
    return folder


def reopened(folder):
    return RunFolder.open(folder.path)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomically(path, "first")

    def cut(descriptor):
        raise OSError(errno.EIO, "of the disk")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(RunFolderError, match=r"new/file: cannot be written: Input/output error\.$"):
        write_atomically(path, b"second, longer")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    write_atomically(path, b"third")
    assert path.read_bytes() == b"third"


# The folder


def test_a_new_folder_holds_the_resolved_scenario(folder, tiny_scenario):
    assert reopened(folder).scenario() == tiny_scenario()
    assert folder.name == "run"
    assert folder.captured_rounds() == () and not folder.has_model()


def test_what_is_already_there_is_never_overwritten(folder, tiny_scenario, tmp_path):
    with pytest.raises(RunFolderError, match=r"run: already exists and is not empty\. Name another"):
        RunFolder.create(folder.path, tiny_scenario())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="already exists"):
        RunFolder.create(tmp_path / "file", tiny_scenario())
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "below", tiny_scenario())
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", tiny_scenario())


def test_a_folder_without_a_scenario_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_captures_come_back_bit_for_bit_and_in_order(filled):
    found = reopened(filled).read_capture(1, 2)
    assert (found.round, found.client, found.kind) == (1, 2, "delta")
    assert list(found.arrays) == ["b", "a"]
    assert all(torch.equal(found.arrays[name], 2 * tensor) for name, tensor in WEIGHTS.items())
    assert found.metrics == {"num-examples": 4} and found.side == {"privacy": {"epsilon": 1.5}}
    assert reopened(filled).read_side(1, 2) == found.side


def test_the_folder_knows_who_replied_and_who_failed(filled):
    filled.write_failure(3, 0, "late")
    for folder in (filled, reopened(filled)):
        assert folder.captured(1) == (0, 2) and folder.captured(2) == ()
        assert folder.failures(1) == {1: "out of battery"} and folder.failures(3) == {0: "late"}
        assert folder.captured_rounds() == (1,)
        assert folder.has_capture(1, 0) and not folder.has_capture(1, 1) and not folder.has_capture(2, 0)
        assert folder.has_global(1) and not folder.has_global(2)


def test_clients_beyond_three_digits_are_in_order(folder):
    for client in (1000, 12, 999):
        folder.write_capture(capture(client=client))
    assert folder.captured(1) == (12, 999, 1000)


def test_an_update_is_the_gradient_or_the_difference_of_the_weights(folder):
    folder.write_global(1, WEIGHTS)
    folder.write_capture(capture(client=0, kind="gradient"))
    folder.write_capture(capture(client=1, kind="delta", scale=3.0))
    gradient, delta = folder.read_update(1, 0), folder.read_update(1, 1)
    assert (gradient.kind, delta.kind, delta.num_examples) == ("gradient", "delta", 4)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(gradient.tensors[name], 2 * tensor)
        assert torch.equal(delta.tensors[name], 3 * tensor - tensor)


def test_a_client_may_send_a_bare_list_back_in_the_order_of_the_request(folder):
    folder.write_global(1, WEIGHTS)
    arrays = {str(place): 3 * tensor for place, tensor in enumerate(WEIGHTS.values())}
    folder.write_capture(Capture(1, 0, "delta", arrays, {}, {}))
    found = folder.read_update(1, 0).tensors
    assert list(found) == list(WEIGHTS) and all(torch.equal(found[n], 2 * tensor) for n, tensor in WEIGHTS.items())


def test_the_difference_of_other_number_types_is_float32(folder):
    sent = {
        "half": torch.tensor([1.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "wide": torch.tensor([1.0]).double(),
    }
    folder.write_global(1, sent)
    new = {"half": sent["half"] + 0.5, "count": torch.tensor(9), "wide": sent["wide"] + 1e-9}
    folder.write_capture(Capture(1, 0, "delta", new, {}, {}))
    found = folder.read_update(1, 0).tensors
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert found["half"].item() == 0.5 and found["count"].item() == 2.0
    assert found["wide"].item() == pytest.approx(1e-9, rel=1e-6)


def test_the_shapes_that_were_sent_are_read_without_the_arrays(filled):
    assert filled.sent_shapes(1, 0) == {"b": (3,), "a": (2, 2)}
    assert filled.failed_rounds() == (1,)


def test_weights_sent_to_one_client_alone_are_those_its_update_starts_from(folder):
    folder.write_global(1, WEIGHTS)
    folder.write_global(1, {name: 0 * tensor for name, tensor in WEIGHTS.items()}, client=1)
    for client in (0, 1):
        folder.write_capture(capture(client=client))
    assert torch.equal(folder.read_update(1, 0).tensors["b"], WEIGHTS["b"])
    assert torch.equal(folder.read_update(1, 1).tensors["b"], 2 * WEIGHTS["b"])


@pytest.mark.parametrize(("metrics", "expected"), [({"num_examples": 7}, 7), ({}, 0)])
def test_num_examples_is_what_was_reported_under_either_name_or_none(folder, metrics, expected):
    folder.write_capture(Capture(1, 0, "gradient", WEIGHTS, metrics, {}))
    assert folder.read_update(1, 0).num_examples == expected


@pytest.mark.parametrize("arrays", [{"b": torch.zeros(3)}, {**WEIGHTS, "b": torch.zeros(1)}])
def test_a_reply_of_other_arrays_than_the_request_is_no_update(folder, arrays):
    folder.write_global(1, WEIGHTS)
    folder.write_capture(Capture(1, 0, "delta", arrays, {}, {}))
    with pytest.raises(RunFolderError, match=r"client-000\.safetensors: holds other arrays than the server sent"):
        folder.read_update(1, 0)


def file_of(folder):
    return folder.path / "captures" / "round-0001" / "client-002.safetensors"


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: flip(content, 3),
        lambda content: flip(content, len(content) // 2),
        lambda content: flip(content, len(content) - 1),
    ],
    ids=["one byte short", "half", "empty", "flip in the length", "flip in the middle", "flip at the end"],
)
def test_a_damaged_capture_is_named_and_never_trusted(filled, damage):
    path = file_of(filled)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFolderError, match=r"round-0001/client-002\.safetensors: corrupted"):
        reopened(filled).read_capture(1, 2)
    reopened(filled).read_capture(1, 0)


def test_a_capture_that_the_index_lists_but_is_gone_is_named(filled):
    file_of(filled).unlink()
    with pytest.raises(RunFolderError, match=r"client-002\.safetensors: missing"):
        reopened(filled).read_capture(1, 2)


def test_a_file_that_the_index_does_not_list_does_not_count(filled):
    index = filled.path / "captures" / "index.jsonl"
    index.write_bytes(b"".join(line for line in index.read_bytes().splitlines(True) if b"client-002" not in line))
    folder = reopened(filled)
    assert folder.captured(1) == (0,) and not folder.has_capture(1, 2)
    with pytest.raises(RunFolderError, match=r"not in captures/index\.jsonl"):
        folder.read_capture(1, 2)
    folder.write_capture(capture(client=2, scale=5.0))
    assert torch.equal(reopened(folder).read_capture(1, 2).arrays["b"], 5 * WEIGHTS["b"])


def test_a_half_written_index_line_does_not_count(filled):
    index = filled.path / "captures" / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-4])
    folder = reopened(filled)
    assert folder.captured(1) == (0, 2) and folder.failures(1) == {}
    folder.write_failure(1, 1, "again")
    assert reopened(folder).failures(1) == {1: "again"}


def test_something_else_under_a_captures_name_is_refused(filled):
    path, index = file_of(filled), filled.path / "captures" / "index.jsonl"
    path.write_bytes(b"not safetensors")
    with index.open("ab") as file:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        file.write(json.dumps({"key": "round-0001/client-002", "sha256": digest}).encode() + b"\n")
    with pytest.raises(RunFolderError, match=r"client-002\.safetensors: corrupted, Error while deserializing"):
        reopened(filled).read_capture(1, 2)


def test_leftovers_of_a_killed_write_are_ignored(filled):
    for name in (".client-001.safetensors.1.2.partial", ".index.jsonl.1.2.partial"):
        (file_of(filled).parent / name).write_bytes(b"half")
    (filled.path / ".records.jsonl.1.2.partial").write_bytes(b"half")
    folder = reopened(filled)
    assert folder.captured(1) == (0, 2) and folder.records.read() == []


def test_another_view_of_the_folder_sees_new_captures_after_a_refresh(filled):
    view = reopened(filled)
    assert view.captured(1) == (0, 2)
    filled.write_capture(capture(client=5))
    view.refresh()
    assert view.captured(1) == (0, 2, 5)


def test_artifacts_are_named_relative_to_the_folder(folder):
    path = folder.artifact(View.of_update(3, 12), "x.png")
    assert folder.relative(path) == "artifacts/round-0003/client-012/x.png"


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "round-x/client-000", "sha256": "0"}',
        '{"key": "round-0001/client-1x", "sha256": "0"}',
        '{"key": "round-0001/../../x", "sha256": "0"}',
        '{"key": 3, "sha256": "0"}',
        '{"key": "round-0001/client-000", "sha256": 3}',
        '{"key": "round-0001/client-000"}',
    ],
)
def test_an_index_line_that_names_no_capture_is_damage(line, filled):
    index = filled.path / "captures" / "index.jsonl"
    index.write_text(index.read_text() + line + "\n")
    number = index.read_text().count("\n")
    for use in (RunFolder.check, RunFolder.captured_rounds, lambda folder: folder.read_capture(1, 0)):
        with pytest.raises(RunFolderError, match=rf"index\.jsonl: line {number} is damaged"):
            use(reopened(filled))


def test_the_side_of_a_damaged_capture_is_not_read(filled):
    file_of(filled).write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"client-002\.safetensors: not a capture of fedsim"):
        reopened(filled).read_side(1, 2)


# Rights


def test_all_of_a_run_folder_can_be_read_by_its_owner_alone(tmp_path, tiny_scenario):
    before = os.umask(0)
    try:
        made = RunFolder.create(tmp_path / "private" / "run", tiny_scenario())
        with made.locked():
            made.write_global(1, WEIGHTS)
            made.write_capture(capture())
            made.write_model(WEIGHTS)
            made.rounds.append({"schema": 1, "round": 0})
            made.write(made.path / "tables" / "records.csv", "text")
    finally:
        os.umask(before)
    rights = {path: stat.S_IMODE(path.stat().st_mode) for path in [made.path, *made.path.rglob("*")]}
    assert {right for path, right in rights.items() if path.is_dir()} == {0o700}
    assert {right for path, right in rights.items() if path.is_file()} == {0o600} and len(rights) > 9


# Captures of somebody else


def sealed(folder, content):
    """Put bytes in the place of a capture, with their checksum in the index."""
    file = folder.capture_path(1, 0)
    file.write_bytes(content)
    lines = [json.loads(line) for line in folder.index_path.read_text().splitlines()]
    for line in lines:
        if line["key"] == "round-0001/client-000":
            line["sha256"] = hashlib.sha256(content).hexdigest()
    folder.index_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return reopened(folder)


def tensors_file(shape, stated, held):
    header = {"__metadata__": {"fedsim": "{}"}, "w": {"dtype": "F32", "shape": shape, "data_offsets": [0, stated]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * held


HOSTILE = {
    "a shape of a terabyte": tensors_file([2**38], 2**40, 8),
    "a shape that overflows": tensors_file([2**62, 2**62], 8, 8),
    "a shape beyond its bytes": tensors_file([2**38], 8, 8),
    "more bytes than it states": tensors_file([2], 8, 4096),
    "fewer bytes than it states": tensors_file([2], 8, 4),
    "a header of a terabyte": (2**40).to_bytes(8, "little") + b"{}",
    "a header that is too deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "an archive": b"PK\x03\x04" + b"\0" * 60,
    "a pickle": b"\x80\x04cos\nsystem\n(S'exit'\ntR.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_capture_that_states_what_it_does_not_hold_is_refused_before_its_room_is_made(kind, filled, monkeypatch):
    hostile = sealed(filled, HOSTILE[kind])
    monkeypatch.setattr("fedsim.recording.capture_index.digest", lambda path: pytest.fail("it was read"))
    with pytest.raises(RunFolderError, match=r"client-000\.safetensors: corrupted, "):
        hostile.read_capture(1, 0)


def test_a_hostile_capture_takes_no_memory(filled):
    hostile = sealed(filled, HOSTILE["a shape of a terabyte"])
    with open(filled.capture_path(1, 0), "ab") as file:
        file.truncate(2**36)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunFolderError, match="corrupted"):
        hostile.read_capture(1, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "KiB"


def test_a_hostile_model_with_its_checksum_is_refused_by_name(filled):
    filled.write_model(WEIGHTS)
    content = tensors_file([2**38], 2**40, 8)
    (filled.path / "model.safetensors").write_bytes(content)
    text = filled.index_path.read_text().splitlines()
    line = {**json.loads(text[-1]), "sha256": hashlib.sha256(content).hexdigest()}
    filled.index_path.write_text("\n".join([*text[:-1], json.dumps(line)]) + "\n")
    with pytest.raises(RunFolderError, match=r"model\.safetensors: corrupted"):
        reopened(filled).read_model()


@pytest.mark.parametrize(
    "key", ["../../outside", "/etc/passwd", "round-0001/../../x", "round-0001/client-000/..", "model\0"]
)
def test_a_key_that_leads_out_of_the_folder_is_refused(key, filled):
    with filled.index_path.open("a") as file:
        file.write(json.dumps({"key": key, "sha256": "0" * 64}) + "\n")
    with pytest.raises(RunFolderError, match="names no file"):
        reopened(filled).captured_rounds()
