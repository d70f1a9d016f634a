"""Evaluators: asked of the global model after chosen rounds, each failure a line, through kill and resume."""

import io
import json

import audits
import pytest
from PIL import Image

from fedsim import report
from fedsim.errors import PluginError, RunFolderError, ScenarioError
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.simulation import Progress

ASKS = {"name": "stubs:Asks", "rounds": "all"}


@pytest.fixture
def run(tiny_plan, run_folder):
    """Return a function: parts of a scenario -> the plan and the folder of its finished run."""

    def make(*evaluators, **parts):
        parts = {"attacks": [], "federation": {"rounds": 3}, **parts}
        plan = tiny_plan(evaluators=list(evaluators), **parts)
        folder = run_folder(plan)
        audits.simulate(plan, folder, Progress())
        return plan, RunFolder.open(folder.path)

    return make


def timeless(folder):
    return [line.model_dump(exclude={"seconds"}) for line in folder.read_evaluations()]


@pytest.mark.parametrize("processes", [0, 2])
def test_the_model_after_a_round_is_what_the_next_one_sends_out(run, quick_workers, processes):
    _, folder = run(ASKS, audit={"processes": processes})
    lines = folder.read_evaluations()
    assert [line.round for line in lines] == [1, 2, 3]
    for line in lines:
        weights = folder.read_model() if line.round == 3 else folder.read_global(line.round + 1, 0)
        assert line.scores["norm"] == pytest.approx(float(weights["head.weight"].norm()), rel=1e-6)
    assert len({line.scores["draw"] for line in lines}) == 3
    assert {line.evaluator.name for line in lines} == {"stubs:Asks"} and lines[0].cautions == ("a stub",)


def test_rounds_are_chosen_for_each_evaluator(run):
    _, folder = run(ASKS, {**ASKS, "rounds": [1, "last"], "label": "twice", "params": {"how": "refuses"}})
    lines = folder.read_evaluations()
    assert [(line.round, line.evaluator.title, line.status) for line in lines] == [
        (1, "stubs:Asks", "found"),
        (1, "twice", "refused"),
        (2, "stubs:Asks", "found"),
        (3, "stubs:Asks", "found"),
        (3, "twice", "refused"),
    ]
    assert lines[1].message == "not of this model"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "RuntimeError: no answer"),
        ("leaves", "SystemExit: done"),
        ("exits", "its process died"),
        ("waits", "took longer than audit.attack_timeout"),
        ("hoards", "used more than audit.attack_memory (256 MiB)"),
        ("infinite", "not a finite number"),
        ("nothing", "no scores by name"),
        ("untyped", "returned dict, not an Evaluation"),
        ("hides", "returned images 'others' with values that are not finite"),
        ("unsure", "is_inconclusive: 'maybe', neither True nor False"),
    ],
)
def test_an_evaluator_that_fails_is_a_line_and_the_others_go_on(run, how, said, isolated):
    bad = {"name": "stubs:Asks", "params": {"how": how}}
    _, folder = run(bad, ASKS, federation={"rounds": 1}, audit={"attack_timeout": 3.0, "attack_memory": 256})
    failed, found = folder.read_evaluations()
    assert failed.status == "failed" and said in failed.message
    assert found.status == "found" and found.scores["norm"] > 0


def test_the_report_shows_scores_and_failures(run):
    _, folder = run({"name": "stubs:Asks", "params": {"how": "raises"}}, ASKS, federation={"rounds": 1})
    page = report.render(folder.path).read_text()
    assert "Evaluations of the global model" in page and "failed: RuntimeError: no answer" in page
    assert "stubs:Asks" in (folder.path / "tables" / "evaluations.csv").read_text()


def test_what_an_evaluator_doubts_of_itself_is_in_its_line_and_beside_the_numbers_of_the_report(run):
    _, folder = run({"name": "stubs:Asks", "params": {"how": "doubts"}}, ASKS, federation={"rounds": 1})
    doubted, other = folder.read_evaluations()
    assert doubted.is_inconclusive and not other.is_inconclusive
    page = report.render(folder.path).read_text()
    assert "after round 1, inconclusive" in page and "0.5 (0.4 to 0.6)" in page and "it may be" in page
    assert "after round 1: inconclusive, its own checks" in (folder.path / "report.md").read_text()


def test_images_are_strips_in_the_folder_and_the_report_and_the_same_after_a_resume(run):
    plan, folder = run({"name": "stubs:Asks", "rounds": "all", "params": {"how": "shows"}}, federation={"rounds": 2})
    lines = folder.read_evaluations()
    assert [list(line.artifacts) for line in lines] == [["some", "others"]] * 2
    paths = [folder.path / path for line in lines for path in line.artifacts.values()]
    strips = [path.read_bytes() for path in paths]
    assert len({*strips}) == 2 and Image.open(io.BytesIO(strips[0])).size == (24, 8)
    page = report.render(folder.path).read_text()
    assert "others, stubs:Asks, round 2" in page and "stubs:Asks, round 1" not in page
    file = folder.path / "evaluations.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    for path in paths:
        path.unlink()
    audits.simulate(plan, RunFolder.open(folder.path), Progress())
    assert timeless(RunFolder.open(folder.path)) == [line.model_dump(exclude={"seconds"}) for line in lines]
    assert [path.read_bytes() for path in paths[2:]] == strips[2:]


def test_a_line_of_an_earlier_version_is_read_and_taken_for_undoubted(run):
    _, folder = run(ASKS, federation={"rounds": 1})
    file = folder.path / "evaluations.jsonl"
    line = json.loads(file.read_text())
    del line["is_inconclusive"]
    assert "artifacts" not in line
    file.write_text(json.dumps(line) + "\n")
    (read,) = RunFolder.open(folder.path).read_evaluations()
    assert not read.is_inconclusive and read.scores["norm"] > 0


def test_a_resumed_run_asks_what_is_missing_alone(run):
    plan, folder = run(ASKS)
    expected = timeless(folder)
    file = folder.path / "evaluations.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for left in ("", lines[1], "".join(lines[:2]) + lines[2][:9]):
        file.write_text(left)
        audits.simulate(plan, RunFolder.open(folder.path), Progress())
        assert timeless(RunFolder.open(folder.path)) == expected
    seconds = [line.seconds for line in RunFolder.open(folder.path).read_evaluations()]
    audits.simulate(plan, RunFolder.open(folder.path), Progress())
    assert [line.seconds for line in RunFolder.open(folder.path).read_evaluations()] == seconds


def test_an_audit_asks_failed_ones_again_and_added_ones(run, tiny_plan):
    _, folder = run(ASKS, federation={"rounds": 2})
    lines = [json.loads(line) for line in (folder.path / "evaluations.jsonl").read_text().splitlines()]
    lines[0] |= {"status": "failed", "message": "out of luck", "scores": {}}
    (folder.path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = {**ASKS, "rounds": [1], "params": {"how": "refuses"}}
    plan = tiny_plan(evaluators=[ASKS, other], attacks=[], federation={"rounds": 2})
    audits.audit(plan, RunFolder.open(folder.path), Progress())
    found = RunFolder.open(folder.path).read_evaluations()
    assert [(line.round, line.status) for line in found] == [(1, "found"), (1, "refused"), (2, "found")]


def test_evaluators_leave_the_identity_of_a_run_and_its_scenario_alone(tiny_scenario):
    from fedsim.planning.inputs import run_id

    plain, asked = tiny_scenario(), tiny_scenario(evaluators=[ASKS])
    assert run_id(plain) == run_id(asked)
    assert "evaluators" not in plain.resolved() and asked.resolved()["evaluators"][0]["name"] == "stubs:Asks"


@pytest.mark.parametrize(
    ("evaluators", "said"),
    [
        (["no_such"], r"evaluators\.0\.name: no evaluator 'no_such'"),
        ([{**ASKS, "rounds": [9]}], r"evaluators\.0\.rounds: no round 9"),
        ([ASKS, ASKS], r"evaluators\.1: stubs:Asks is listed before, as evaluators\.0"),
        ([{**ASKS, "params": {"how": "badly"}}], r"evaluators\.0\.params\.how: expected one of"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_run(tiny_scenario, evaluators, said):
    with pytest.raises(ScenarioError, match=said):
        planning.make(tiny_scenario(evaluators=evaluators))


def test_a_model_that_an_evaluator_will_refuse_is_told_before_anything_is_trained(tiny_plan):
    at_once = {**ASKS, "params": {"how": "refuses at once"}}
    notes = tiny_plan(evaluators=[ASKS, at_once, "transfer"]).notes
    assert "evaluators.1: stubs:Asks will be refused: not of a model of 10 classes." in notes
    assert any(note.startswith("evaluators.2: transfer will be refused: it needs a source") for note in notes)
    assert not any("evaluators.0" in note for note in notes)
    on_a_cnn = tiny_plan(
        model={"name": "convnet", "kwargs": {}}, evaluators=["position_probe", "shuffle_accuracy"]
    ).notes
    assert [note.partition(" will be refused")[0] for note in on_a_cnn if "will be refused" in note] == [
        "evaluators.0: position_probe",
        "evaluators.1: shuffle_accuracy",
    ]
    with pytest.raises(PluginError, match=r"evaluators\.0: check of stubs:Asks .* raised RuntimeError: no answer"):
        tiny_plan(evaluators=[{**ASKS, "params": {"how": "breaks at once"}}])


def test_a_damaged_line_is_named(run):
    plan, folder = run(ASKS, federation={"rounds": 1})
    (folder.path / "evaluations.jsonl").write_text('{"round": -1}\n')
    with pytest.raises(RunFolderError, match=r"evaluations\.jsonl: line 1 is damaged"):
        audits.simulate(plan, RunFolder.open(folder.path), Progress())
