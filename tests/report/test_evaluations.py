"""Scores of evaluators in the report: intervals in one cell, curves against what the names say, the same over rounds."""

import csv
import io
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import printable
from fedsim.evaluator import Evaluation
from fedsim.recording.records import EvaluationRecord
from fedsim.report import evaluations, tables
from fedsim.report.plots import Interval
from fedsim.seeds import torch_generator
from fedsim.strips import png_strip


def line(round=1, scores=None, name="pgd", **fields):
    scores = {"accuracy": 0.5} if scores is None else scores
    stated = {"schema": 1, "round": round, "evaluator": {"name": name}, "status": "found", "message": None}
    return EvaluationRecord.model_validate({**stated, "scores": scores, "seconds": 1.0, "seed": 0, **fields})


def ranged(name, value, half=0.1):
    return {name: value, f"{name}, 95% from": value - half, f"{name}, 95% to": value + half}


CURVE = {**ranged("accuracy at epsilon 0", 0.9), **ranged("accuracy at epsilon 8/255", 0.4), "other": 3.0}


def drawn(figure):
    return str(figure.drawing)


def test_a_score_and_its_interval_stand_in_one_cell():
    (table,) = evaluations.tables([line(scores={**CURVE, "lone, 95% from": 0.25})])
    assert dict(table.rows) == {
        "accuracy at epsilon 0": ("0.9 (0.8 to 1)",),
        "accuracy at epsilon 8/255": ("0.4 (0.3 to 0.5)",),
        "other": ("3",),
        "lone, 95% from": ("0.25",),
    }


def test_rounds_are_columns_and_the_inconclusive_ones_say_so():
    lines = [line(1), line(2, scores={"more": 1.0}, cautions=["a reason"], is_inconclusive=True)]
    (table,) = evaluations.tables(lines)
    assert table.columns == ("after round 1", "after round 2, inconclusive") and table.inconclusive == (2,)
    assert dict(table.rows) == {"accuracy": ("0.5", ""), "more": ("", "1")} and table.cautions == ("a reason",)


def test_the_csv_file_holds_every_score_and_whether_it_is_doubted():
    rows = evaluations.rows([line(scores=CURVE, is_inconclusive=True), line(scores={}, status="failed", message="no")])
    read = list(csv.DictReader(io.StringIO(tables.as_csv(rows))))
    assert [row["score"] for row in read] == [*CURVE, ""]
    assert [row["is_inconclusive"] for row in read] == ["True"] * len(CURVE) + ["False"]


def test_accuracy_against_epsilon_is_one_plot_for_all_evaluators_after_their_last_round():
    lines = [line(1, CURVE), line(3, CURVE, cautions=["why"], is_inconclusive=True), line(3, CURVE, name="square")]
    curve = evaluations.figures(lines)[0]
    assert curve.caption.startswith("Accuracy of the global model against epsilon")
    assert "pgd, inconclusive, round 3: 0.9 at 0, 0.4 at 0.0314; square, round 3: 0.9 at 0" in curve.alt
    assert "pgd, inconclusive, round 3, epsilon 0.0314: 0.400, 95% from 0.300 to 0.500" in drawn(curve)


def test_scores_with_intervals_are_drawn_over_rounds_where_there_are_several():
    assert len(evaluations.figures([line(1, CURVE)])) == 1
    _, over = evaluations.figures([line(1, CURVE), line(2, CURVE, is_inconclusive=True)])
    assert over.caption.startswith("Scores of pgd over rounds; inconclusive after round 2")
    assert "other" not in over.alt
    assert len(re.findall(r"Round \d: 0\.\d{3}, 95% from", drawn(over).replace("accuracy at epsilon 8/255, ", ""))) == 4


def test_more_lines_than_colors_are_left_out_and_counted():
    scores = {name: value for number in range(9) for name, value in ranged(f"class {number}", 0.5).items()}
    (over,) = evaluations.figures([line(1, scores), line(2, scores)])
    assert "7 of 9 lines are drawn" in over.caption


def test_nothing_is_drawn_of_failures_and_of_single_points():
    failed = line(scores={}, status="failed", message="no")
    assert evaluations.figures([failed, line(scores={"accuracy at epsilon 0.1": 0.5}), line(name="other")]) == []
    assert evaluations.tables([failed])[0].troubles == ((1, "failed: no"),)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=12), st.floats(-10, 10), max_size=6), st.integers(1, 3))
def test_whatever_the_names_are_each_score_is_shown_once(scores, rounds):
    scores = {printable(name, 40): value for name, value in scores.items()}
    lines = [line(round, {**scores, **ranged("accuracy", 0.5)}) for round in range(1, rounds + 1)]
    found = evaluations.intervals(lines[0].scores)
    assert set(found) == {*scores, "accuracy"} and found["accuracy"] == Interval(0.5, 0.4, 0.6)
    (table,) = evaluations.tables(lines)
    assert sorted(row.name for row in table.rows) == sorted(found)


def test_who_calls_an_evaluation_inconclusive_says_why():
    with pytest.raises(ValueError, match="cautions: expected why"):
        Evaluation({"accuracy": 0.5}, (), True)


def test_images_that_are_gone_or_elsewhere_are_a_note_and_those_there_are_strips(tmp_path):
    (tmp_path / "run").mkdir()
    strip = torch.rand(3, 3, 8, 8, generator=torch_generator(0))
    for place in ("run/here.png", "outside.png"):
        (tmp_path / place).write_bytes(png_strip(strip))
    notes = []
    artifacts = {"here": "here.png", "gone": "gone.png", "elsewhere": "../outside.png"}
    found = evaluations.examples(tmp_path / "run", [line(1), line(2, artifacts=artifacts), line(3)], notes)
    assert [(shown.title, shown.round) for shown in found] == [("pgd", 2)]
    assert [(strip.title, strip.count) for strip in found[0].strips] == [("here", 3)]
    assert len(notes) == 2 and notes[0].startswith("gone.png: no such file") and "outside.png" in notes[1]
