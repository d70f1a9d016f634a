"""A run folder damaged in any way gives a report with notes, or one error that the command line prints; never a traceback."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from fedsim import simulation
from fedsim.audit import attempt
from fedsim.errors import FedsimError, RunFolderError
from fedsim.exchange import View
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.recording import consistency, environment
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, rendering, tables, view
from fedsim.report.analysis import Analysis
from fedsim.report.gallery import gallery
from fedsim.scenario import parse, yaml_loader
from fedsim.seeds import numpy_generator
from fedsim.simulation import Progress

STUBS = Path(__file__).parents[1] / "stubs"
SCENARIO = {
    "name": "damaged",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 16, "test_samples": 4, "auxiliary_samples": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": [{"name": "stubs:Fades"}],
    "audit": {"processes": 0, "calibrate": "all"},
}
MUTATIONS = 1000
SHARE = 125  # of them in one test, so that they spread over workers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run without its report, its plan and its inputs."""
    path = tmp_path_factory.mktemp("damage") / "run"
    scenario = parse(SCENARIO, "damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUBS)
        patch.setattr("fedsim.report.render", lambda path: path / "report.html")
        plan = planning.of(scenario)
        simulation.simulate(plan, RunFolder.create(path, scenario), Progress())
        yield path, plan, inputs.of(plan)


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch):
    """Curves take longer than all the rest."""
    for name in ("leakage", "trajectory", "utility"):
        monkeypatch.setattr(f"fedsim.report.plots.{name}", lambda *_: b'<svg viewBox="0 0 1 1"/>')


@pytest.fixture
def with_a_known_scenario(whole, monkeypatch):
    """Parse the scenario of the whole run once: that takes longer than to read all other files."""
    text, parsed = (whole[0] / "scenario.yaml").read_text(), yaml_loader.read(whole[0] / "scenario.yaml")
    parse_any = yaml_loader.parse
    monkeypatch.setattr(
        "fedsim.scenario.yaml_loader.parse",
        lambda given, *others: copy.deepcopy(parsed) if given == text else parse_any(given, *others),
    )


def noted(path, is_rendered=True):
    """Return the notes of a report, whose tables can be made, and whose text if that is wanted."""
    found = reading.read(path)
    analysis = Analysis(found)
    written = [*tables.csv_files(analysis).values(), analysis.headline]
    if is_rendered:
        written.append(rendering._markdown().get_template("report.md.j2").render(view.context(analysis)))
    notes = [*found.notes, *gallery(found, analysis.naming, {}).notes]
    for text in (*written, *notes):
        text.encode()
    return notes


def gone_through(path, plan):
    """Read all that resume and audit read, in their order."""
    folder = RunFolder.open(path)
    folder.check()
    inputs.check_scenario(folder, folder.scenario())
    environment.origin(path)
    consistency.check(folder, plan.scenario, trains=True)
    consistency.check(folder, plan.scenario, trains=False)
    folder.has_model()
    for round in folder.captured_rounds():
        for client in folder.captured(round):
            folder.read_side(round, client)
            folder.read_update(round, client)
            for planned in plan.attacks:
                attempt.forget_failure(folder, View.of_update(round, client), planned)


# Ways to damage a file: generator, content, another file's content -> what is there then


def flipped(draw, content, other):
    changed = bytearray(content)
    for place in draw.integers(0, max(1, len(content)), int(draw.integers(1, 4))):
        if place < len(changed):
            changed[place] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def cut(draw, content, other):
    return content[: int(draw.integers(0, max(1, len(content))))]


def with_a_part_twice(draw, content, other):
    start, end = sorted(draw.integers(0, len(content) + 1, 2))
    return content[:end] + content[start:]


def swapped(draw, content, other):
    return other


def of_another_type(draw, content, other):
    texts = ("", "null", "3", "[]", "{}", '"x"', "[1, 2]", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 5000)
    return texts[draw.integers(len(texts))].encode() + b"\n" * int(draw.integers(2))


ODD = (
    None, True, -1, 0, 1.5, 10**12, 10**30, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", "x", "../x", "a\0b",
    "\ud800", "x" * 300, "/etc/hostname", [], {}, [None], {"x": []}, [[1e308]], {"name": 3},
)  # fmt: skip


def altered(draw, value):
    """Return a JSON value in which one part, anywhere, is something else or gone."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw.integers(6) == 0:
        return ODD[draw.integers(len(ODD))]
    key = inner[draw.integers(len(inner))]
    changed = value.copy()
    if draw.integers(8) == 0:
        del changed[key]
    elif isinstance(value, dict) and draw.integers(12) == 0:
        changed[str(ODD[draw.integers(len(ODD))])] = changed.pop(key)
    else:
        changed[key] = altered(draw, value[key])
    return changed


def with_an_odd_value(draw, content, other):
    try:
        values = [json.loads(line) for line in content.splitlines()]
        ends = "\n"
    except ValueError:
        try:
            values, ends = [json.loads(content)], ""
        except ValueError:
            return flipped(draw, content, other)
    place = int(draw.integers(len(values))) if values else 0
    return "".join(json.dumps(altered(draw, v) if n == place else v) + ends for n, v in enumerate(values)).encode()


def with_an_odd_header(draw, content, other):
    """Alter the header of a safetensors file, or what fedsim put into it."""
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return with_an_odd_value(draw, content, other)
    if draw.integers(4) and "fedsim" in header.get("__metadata__", {}):
        header["__metadata__"]["fedsim"] = json.dumps(altered(draw, json.loads(header["__metadata__"]["fedsim"])))
    else:
        header = altered(draw, header)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + size :]


def gone(draw, content, other):
    return None


WAYS = (flipped, cut, with_a_part_twice, swapped, of_another_type, with_an_odd_value, with_an_odd_header, gone)


def sealed(folder, path, content):
    """Return the index in which the changed file has its checksum."""
    index = folder / "captures" / "index.jsonl"
    key = path.relative_to(folder / "captures").with_suffix("").as_posix()
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    digest = hashlib.sha256(content).hexdigest()
    return "".join(
        json.dumps(line | {"sha256": digest} if line["key"] == key else line) + "\n" for line in lines
    ).encode()


def damaged(number, path, before):
    """Return a file of the run and what is in it after the damage of that number."""
    draw = numpy_generator(number, "damage")
    names = sorted(before)
    # The same number of damages for each file, and for each way.
    name, way = names[number % len(names)], WAYS[(number // len(names)) % len(WAYS)]
    other = before[names[draw.integers(len(names))]]
    return name, way(draw, before[name], other), bool(draw.integers(2))


@pytest.mark.parametrize("first", range(0, MUTATIONS, SHARE))
def test_no_damage_ends_in_a_traceback(first, whole, with_a_known_scenario):
    path, plan, _ = whole
    before = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    refused = told = 0
    for number in range(first, first + SHARE):
        name, content, seals = damaged(number, path, before)
        changed = {name: content}
        is_capture = name.parts[0] == "captures" and name.suffix == ".safetensors"
        if is_capture and content is not None and seals:
            changed[Path("captures/index.jsonl")] = sealed(path, path / name, content)
        try:
            for one, text in changed.items():
                (path / one).unlink() if text is None else (path / one).write_bytes(text)
            try:
                told += bool(noted(path, is_rendered=number % 7 == 0))
            except FedsimError as error:
                str(error).encode()
            if name.suffix != ".png":
                try:
                    gone_through(path, plan)
                except FedsimError as error:
                    refused += 1
                    str(error).encode()
        except Exception as error:
            error.add_note(f"damage {number} of {name}: {content if content is None else content[:300]!r}")
            raise
        finally:
            for one in changed:
                (path / one).write_bytes(before[one])
    # Most damages are found out; the rest made no difference, or none that anybody could know of.
    assert refused > SHARE / 5 and told > SHARE / 3
    assert noted(path) == []
    gone_through(path, plan)


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "link outside", "folder"])
def test_what_is_no_file_is_refused_or_noted_before_it_is_opened(kind, whole, tmp_path):
    path, plan, _ = whole
    run = Path(shutil.copytree(path, tmp_path / "run"))
    for file in sorted(file for file in run.rglob("*") if file.is_file()):
        kept = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero" if kind == "link to a device" else path / file.relative_to(run))
        name = file.relative_to(run).as_posix()
        if name.endswith(
            (".png", "records.jsonl", "calibrations.jsonl", "rounds.jsonl", "environment.json", "scenario.yaml")
        ):
            assert [note for note in noted(run) if note.startswith(f"{name}: ")], name
        if not name.endswith(".png"):
            with pytest.raises(RunFolderError, match=name):
                gone_through(run, plan)
                with RunFolder.open(run).locked():
                    pass
        shutil.rmtree(file) if kind == "folder" else file.unlink()
        file.write_bytes(kept)


@pytest.mark.parametrize("first", range(0, MUTATIONS, 2 * SHARE))
def test_a_damaged_run_is_audited_and_resumed_or_refused(first, whole, tmp_path):
    path, plan, seen = whole
    before = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for number in range(first, first + 2 * SHARE, 25):
        run = Path(shutil.copytree(path, tmp_path / str(number)))
        name, content, _ = damaged(number, run, before)
        (run / name).unlink() if content is None else (run / name).write_bytes(content)
        for step in (simulation.audit, simulation.simulate):
            try:
                step(plan, RunFolder.open(run), Progress(), seen)
            except FedsimError as error:
                assert str(error)
            except Exception as error:
                error.add_note(f"damage {number} of {name}: {content if content is None else content[:300]!r}")
                raise
        shutil.rmtree(run)


@pytest.mark.parametrize(
    "name",
    ["scenario.yaml", "records.jsonl", "calibrations.jsonl", "inputs.json", "captures/round-0001/global.safetensors"],
)
def test_the_command_line_ends_with_2_and_the_files_name(name, whole, tmp_path, fedsim):
    run = Path(shutil.copytree(whole[0], tmp_path / "run"))
    (run / name).unlink()
    (run / name).symlink_to("/dev/zero")
    for command in (("audit", run), ("run", "--resume", run)):
        outcome = fedsim(*command)
        assert outcome.code == 2 and "Traceback" not in outcome.output
        assert outcome.message.startswith(f"fedsim: {run / name}: a symbolic link")
