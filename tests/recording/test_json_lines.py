import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import RunFolderError
from fedsim.recording.json_lines import JsonLines, read_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=4)


@settings(max_examples=25, deadline=None)
@given(lines=LINES)
def test_lines_come_back_as_they_were_appended(tmp_path_factory, lines):
    file = JsonLines(tmp_path_factory.mktemp("lines") / "new" / "lines.jsonl")
    assert file.read() == []
    for line in lines:
        file.append(line)
    assert file.read() == lines
    file.rewrite(lines[::-1])
    assert file.read() == lines[::-1]


@settings(max_examples=25, deadline=None)
@given(lines=LINES.filter(bool), data=st.data())
def test_a_line_cut_anywhere_does_not_count_and_is_gone_with_the_next(tmp_path_factory, lines, data):
    file = JsonLines(tmp_path_factory.mktemp("lines") / "lines.jsonl")
    file.rewrite(lines)
    content = file.path.read_bytes()
    last = len(content) - content.rstrip(b"\n").rfind(b"\n") - 1
    file.path.write_bytes(content[: len(content) - data.draw(st.integers(1, last))])
    assert file.read() == lines[:-1]
    file.append({"new": 1})
    assert file.read() == [*lines[:-1], {"new": 1}]


@pytest.mark.parametrize("damage", [b"{oops}\n", b"3\n", b"\n", b"\xff\xfe\n"])
@pytest.mark.parametrize("after", [b"", b'{"b": 1}\n'])
def test_a_complete_line_that_is_no_object_is_damage_and_not_skipped(tmp_path, damage, after):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + after)
    with pytest.raises(RunFolderError, match=r"lines\.jsonl: line 2 is not a JSON object"):
        read_lines(path)


def test_what_json_cannot_hold_is_not_written(tmp_path):
    file = JsonLines(tmp_path / "lines.jsonl")
    with pytest.raises(ValueError):
        file.append({"a": float("nan")})
    assert file.read() == []
