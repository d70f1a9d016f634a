import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.metrics.ratings import rate, scale, worst
from fedsim.metrics.skill import skill
from fedsim.metrics.table import METRICS
from fedsim.recording.records import Record, Round
from fedsim.recording.run_data import RunData
from fedsim.report import overview, tables
from fedsim.report.analysis import Analysis
from fedsim.report.limitations import Cautions, limits
from fedsim.report.naming import Naming
from fedsim.report.summaries import by_client, by_defense


def record(
    client: int = 0,
    round: int = 1,
    attack: str = "inversion",
    params: dict[str, Any] | None = None,
    defenses: tuple[str, ...] = (),
    controls: dict[str, dict[str, float]] | None = None,
    status: str = "found",
    cautions: tuple[str, ...] = (),
    **scores: list[float],
) -> Record:
    """Return a record; scores are given as lists of per-example values."""
    worse = {name: METRICS[name].worse for name in scores}
    plain = {n: {"value": statistics.fmean(v), "per_example": v, "worse": worse[n]} for n, v in scores.items()}
    return Record.model_validate(
        {
            "round": round,
            "client": client,
            "attack": {"name": attack, "params": params or {}},
            "defenses": [{"name": name} for name in defenses],
            "status": status,
            "scores": plain,
            "controls": controls or {},
            "cautions": cautions,
        }
    )


def run_data(*records: Record, clients: int | None = None, rounds: int = 1) -> RunData:
    federation = {"rounds": rounds} | ({"clients": clients} if clients else {})
    lines = tuple(Round(round=r) for r in range(2))
    return RunData(Path(), {"federation": federation}, None, {}, lines, tuple(records), ())


def lines(*records: Record) -> list[overview.Entry]:
    return overview.entries(by_client(records))


GREY = {"grey": {"psnr": 10.0, "ssim": 0.1, "lpips": 0.7}, "own_mean": {"psnr": 12.0, "ssim": 0.2, "lpips": 0.6}}


def test_the_mean_is_over_examples_and_the_skill_is_its_distance_to_the_best_mean_control() -> None:
    one = record(round=1, psnr=[20.0, 30.0, 40.0], controls={"grey": {"psnr": 9.0}, "own_mean": {"psnr": 13.0}})
    two = record(round=2, psnr=[50.0], controls={"grey": {"psnr": 17.0}, "own_mean": {"psnr": 5.0}})
    (row,) = by_client([one, two])
    assert row.mean == 35.0
    assert row.examples == 4
    assert row.controls == pytest.approx({"grey": 11.0, "own_mean": 11.0})
    assert row.skill == pytest.approx(24.0)
    assert row.floor == ("own_mean", pytest.approx(11.0))
    assert (row.peak.round, row.peak.value, row.peak.skill, row.peak.control) == (2, 50.0, 33.0, 17.0)


def test_lower_is_worse_where_the_metric_says_so() -> None:
    (row,) = by_client([record(lpips=[0.1], controls=GREY), record(round=2, lpips=[0.5], controls=GREY)])
    assert (row.best, row.floor) == (("grey", 0.7), ("own_mean", 0.6))
    assert row.skill == pytest.approx(0.4)
    assert row.peak.round == 1
    assert row.verdict == "leaks"


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0, 60), min_size=2, max_size=6), order=st.randoms(use_true_random=False))
def test_summaries_do_not_depend_on_the_order_of_the_records(values: list[float], order: Any) -> None:
    records = [record(client=i % 2, round=i + 1, psnr=[v, v + 1], controls=GREY) for i, v in enumerate(values)]
    shuffled = records.copy()
    order.shuffle(shuffled)
    for before, after in zip(by_client(records), by_client(shuffled), strict=True):
        assert before.clients == after.clients
        assert math.isclose(before.mean, after.mean)
        assert math.isclose(before.skill, after.skill)
        assert (before.verdict, before.reason) == (after.verdict, after.reason)


def test_the_interval_holds_the_mean_and_one_example_has_none() -> None:
    rows = by_client([record(psnr=[10.0, 20.0, 30.0]), record(client=1, psnr=[10.0])])
    assert rows[0].spread.low < rows[0].mean < rows[0].spread.high
    assert rows[1].spread is None


def test_an_attack_that_always_failed_keeps_its_row() -> None:
    (row,) = by_client([record(status="failed"), record(round=2, status="refused")])
    assert (row.metric, row.attempts, row.failed, row.refused, row.verdict) == (None, 2, 1, 1, "inconclusive")


def test_clients_with_the_same_defenses_are_one_group() -> None:
    records = [record(client=c, defenses=("noise",) if c > 1 else (), psnr=[10.0 + c], controls=GREY) for c in range(4)]
    rows = by_defense(records)
    assert [(row.defenses, row.clients) for row in rows] == [("none", (0, 1)), ("noise", (2, 3))]


def test_one_attack_with_two_settings_is_told_apart_by_what_differs() -> None:
    records = [record(attack="match", params={"steps": 9, "loss": loss}) for loss in ("l2", "cosine")]
    records.append(record(attack="other", params={"steps": 9}))
    names = [Naming(records).attack(one) for one in records]
    assert names == ["match (loss=l2)", "match (loss=cosine)", "other"]
    labeled = [
        one.model_copy(update={"attack": one.attack.model_copy(update={"label": "by angle"})}) for one in records
    ]
    mixed = [records[0], labeled[1], records[2]]
    assert [Naming(mixed).attack(one) for one in mixed] == ["match (loss=l2)", "by angle", "other"]


@pytest.mark.parametrize(
    ("metric", "value", "control", "level"),
    [
        ("psnr", 12.9, 12.0, "none"),
        ("psnr", 13.0, 12.0, "partial"),
        ("psnr", 18.0, 12.0, "leaks"),
        ("psnr", 3.0, 12.0, "none"),
        ("psnr", 60.0, None, "unrated"),
        ("fft2d", 0.0, 0.5, "unrated"),
        ("another", 9.0, 0.0, "unrated"),
        # A guess that is right three times in four leaves a quarter, and all of it was found.
        ("label_recall", 1.0, 0.75, "leaks"),
        ("label_recall", 0.5, 0.25, "partial"),
        # A guess that is nearly always right leaves nothing to find.
        ("label_recall", 1.0, 1.0, "unrated"),
        ("label_recall", 1.0, 0.95, "unrated"),
        ("label_recall", 0.94, 0.94, "none"),
        # Errors are rated by how far they come from the control's to none.
        ("soft_label_error", 0.08, 0.9, "leaks"),
        ("soft_label_error", 0.4, 0.9, "partial"),
        ("soft_label_error", 0.5, 0.9, "none"),
        ("feature_error", 0.05, 0.5, "leaks"),
        ("feature_error", 1.5, 0.5, "none"),
        ("feature_error", 0.0, 0.0, "unrated"),
    ],
)
def test_levels_follow_the_thresholds(metric: str, value: float, control: float | None, level: str) -> None:
    worse = METRICS[metric].worse if metric in METRICS else "higher"
    assert rate(metric, value, control, worse) == level


def test_a_image_that_shows_no_more_than_its_own_mean_color_leaks_in_part_alone() -> None:
    assert rate("psnr", 20.0, 12.0, "higher", floor=20.5) == "partial"
    assert rate("psnr", 20.0, 12.0, "higher", floor=19.0) == "leaks"
    assert rate("psnr", 12.5, 12.0, "higher", floor=30.0) == "none"


def test_the_worst_of_no_levels_is_unrated() -> None:
    assert worst([]) == "unrated"
    assert worst(["none", "leaks", "unrated"]) == "leaks"


LUCK = {"wrong_update": {"label_recall": 1.0}, "prior": {"label_recall": 1.0}, "uniform": {"label_recall": 0.5}}


def test_labels_are_rated_against_chance_and_not_against_lucky_guesses() -> None:
    one = record(label_recall=[1.0] * 5, controls={**LUCK, "chance": {"label_recall": 0.5}})
    (row,) = by_client([one])
    assert (row.best, row.beside, row.skill, row.verdict) == (("chance", 0.5), ("wrong_update", 1.0), 0.5, "leaks")
    assert tables.record_rows([one], Naming([one]))[0]["best_control"] == "chance"


@pytest.mark.parametrize(("labels", "verdict"), [(1, "inconclusive"), (4, "inconclusive"), (5, "leaks")])
def test_labels_found_by_luck_are_neither_a_leak_nor_resistance(labels: int, verdict: str) -> None:
    """Of two equally likely classes four right guesses in a row are luck one time in 16, five one time in 32."""
    (row,) = by_client([record(label_recall=[1.0] * labels, controls={"chance": {"label_recall": 0.5}})])
    assert row.verdict == verdict
    assert ("luck explains" in row.reason) == (verdict == "inconclusive")


def test_labels_that_a_blind_guess_finds_too_are_inconclusive() -> None:
    controls = {"wrong_update": {"label_recall": 0.0}, "chance": {"label_recall": 0.96}}
    for recall in (0.0, 0.96, 1.0):
        (row,) = by_client([record(label_recall=[recall], controls=controls)])
        assert (row.level, row.verdict, row.reason) == ("unrated", "inconclusive", "a blind guess does as well")


def test_records_older_than_chance_are_rated_against_the_better_blind_guess() -> None:
    controls = {**LUCK, "prior": {"label_recall": 0.75}}
    (row,) = by_client([record(label_recall=[1.0] * 20, controls=controls)])
    assert (row.best, row.verdict) == (("prior", 0.75), "leaks")


def test_another_clients_image_stays_a_control_that_rates() -> None:
    (row,) = by_client([record(psnr=[15.0], controls={**GREY, "wrong_update": {"psnr": 14.5}})])
    assert (row.best, row.beside, row.level) == (("wrong_update", 14.5), None, "none")


def test_one_leaked_round_in_many_is_a_leak_of_images_but_not_of_labels() -> None:
    controls = {"grey": {"psnr": 10.0}, "prior": {"label_recall": 0.1}}
    records = [
        record(round=r, psnr=[80.0 if r == 7 else 10.0], label_recall=[float(r == 7)], controls=controls)
        for r in range(1, 21)
    ]
    rows = by_client(records)
    assert {row.metric: row.level for row in rows} == {"psnr": "leaks", "label_recall": "none"}
    assert rows[0].peak.round == 7


def test_one_leaked_round_in_many_is_a_leak_of_features_but_not_of_soft_labels() -> None:
    controls = {"dataset_mean": {"feature_error": 0.5}, "uniform": {"soft_label_error": 0.8}}
    records = [
        record(round=r, feature_error=[0.7 * (r != 7)], soft_label_error=[0.8 * (r != 7)], controls=controls)
        for r in range(1, 21)
    ]
    rows = by_client(records)
    assert {row.metric: row.level for row in rows} == {"feature_error": "leaks", "soft_label_error": "none"}
    assert [(row.peak.round, row.peak.value) for row in rows] == [(7, 0.0), (7, 0.0)]
    assert [line.kind for line in overview.entries(rows)] == ["features", "soft labels"]


def test_the_attempt_that_decides_on_features_comes_with_its_own_control() -> None:
    records = [
        record(round=r, feature_error=[error], controls={"dataset_mean": {"feature_error": blind}})
        for r, error, blind in ((1, 0.1, 0.9), (2, 0.01, 0.2))
    ]
    (row,) = by_client(records)
    assert (row.peak.round, row.peak.value, row.peak.control, row.verdict) == (2, 0.01, 0.2, "leaks")
    assert row.peak.skill == pytest.approx(0.19)


def test_structure_that_psnr_misses_decides_the_verdict() -> None:
    (line,) = lines(record(psnr=[10.5], ssim=[0.7], controls=GREY))
    assert (line.summary.metric, line.verdict, line.decisive.metric) == ("psnr", "leaks", "ssim")


def test_the_headline_counts_the_clients_that_leak_and_names_their_defenses() -> None:
    workload = {"pictures": 1, "batch_size": 1, "steps": 1}
    records = [record(client=c, psnr=[60.0 + c], controls=GREY) for c in range(3)]
    records += [record(client=c, defenses=("mask",), psnr=[10.0], controls=GREY) for c in (3, 4)]
    records = [Record.model_validate(one.model_dump() | {"workload": workload}) for one in records]
    found = overview.headline(run_data(*records), lines(*records))
    assert found == (
        "3 of 5 clients leak their images: clients 0, 1 and 2 (no defense), "
        "most clearly at 62.0 dB PSNR where the best blind guess reaches 10.0 dB (own mean color, "
        "a floor known from the truth: 12.0 dB); 2 resisted inversion."
    )


UNPROVEN = "the client carries no defense, and the attack fails nevertheless: it does not work here"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], "No attack has been recorded yet."),
        (
            [record(status="failed")],
            "Inconclusive: no attack returned a finding; 1 failed and 0 were refused.",
        ),
        (
            [record(psnr=[60.0])],
            "Inconclusive for the images of the only client: inversion: it was scored beside no control.",
        ),
        (
            [record(psnr=[10.0], controls=GREY)],
            f"Inconclusive for the images of the only client: inversion: {UNPROVEN}.",
        ),
        (
            [record(psnr=[13.5], controls=GREY), record(client=1, psnr=[10.0], controls=GREY)],
            "1 of 2 clients leaks part of its images: client 0 (no defense), most clearly at 13.5 dB PSNR where the best "
            "blind guess reaches 10.0 dB (own mean color, a floor known from the truth: 12.0 dB); 1 is inconclusive (client 1; "
            f"inversion: {UNPROVEN}).",
        ),
        (
            [record(label_recall=[1.0] * 5, controls={"prior": {"label_recall": 0.5}})],
            "1 of 1 client leaks its labels: client 0 (no defense), "
            "most clearly at 1.00 recall where the best blind guess reaches 0.50.",
        ),
        (
            [record(soft_label_error=[0.001] * 2, controls={"uniform": {"soft_label_error": 0.9}})],
            "1 of 1 client leaks its soft labels: client 0 (no defense), "
            "most clearly at 0.0010 soft-label error where the best blind guess reaches 0.9000.",
        ),
        (
            [record(feature_error=[0.2], controls={"dataset_mean": {"feature_error": 0.5}})],
            "1 of 1 client leaks part of its features: client 0 (no defense), "
            "most clearly at 0.2000 feature error where the best blind guess reaches 0.5000.",
        ),
        (
            [
                record(label_recall=[1.0] * 5, controls={"prior": {"label_recall": 0.5}}),
                record(soft_label_error=[0.0] * 2, controls={"uniform": {"soft_label_error": 0.9}}),
                record(feature_error=[0.5], controls={"dataset_mean": {"feature_error": 0.4}}),
            ],
            "1 of 1 client leaks its labels: client 0 (no defense), most clearly at 1.00 recall where the best blind "
            "guess reaches 0.50; soft labels leak from 1 of 1; features inconclusive for 1 of 1.",
        ),
    ],
)
def test_the_headline_says_what_is_known(records: list[Record], expected: str) -> None:
    assert overview.headline(run_data(*records), lines(*records)) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "client 0"),
        (3, "clients 0, 1 and 2"),
        (20, f"clients {', '.join(map(str, range(19)))} and 19"),
        (23, f"clients {', '.join(map(str, range(20)))} and 3 more"),
    ],
)
def test_of_many_clients_the_first_are_named(count: int, expected: str) -> None:
    assert overview.clients_named(range(count)) == expected


def test_cautions_that_differ_in_numbers_alone_are_one_with_a_count() -> None:
    records = [record(client=c, cautions=(f"rank {40 + c} of 48", "few samples")) for c in range(3)]
    records.append(record(client=3, cautions=("few samples",)))
    cautions = Cautions(records)
    rank, few = cautions.listed()
    assert (rank.number, rank.text, rank.varies, rank.count, rank.clients) == (1, "rank 40 of 48", True, 3, (0, 1, 2))
    assert (few.varies, few.count) == (False, 4)
    assert cautions.of_record(records[3]) == [2]
    assert cautions.of_attack(0, "inversion") == [1, 2]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1], "Some means rest on 1 example only, and have no interval."),
        ([4], "Some means rest on 4 examples only: their intervals are rough and too narrow."),
        (
            [3, 1, 20],
            "Some means rest on 1 and 3 examples only: their intervals are rough and too narrow, and those of 1 "
            "example have none.",
        ),
        ([10, 20], None),
    ],
)
def test_means_of_few_examples_are_a_doubt(counts: list[int], expected: str | None) -> None:
    records = [record(client=c, psnr=[60.0] * count, controls=GREY) for c, count in enumerate(counts)]
    assert limits(run_data(*records), by_client(records)) == ([expected] if expected else [])


def test_clients_without_a_record_and_missing_rounds_are_limits() -> None:
    one = record(client=1, psnr=[60.0] * 10, controls=GREY)
    found = limits(run_data(one, clients=3, rounds=4), by_client([one]))
    assert found[0].startswith("The run is not complete: 1 of 4 rounds")
    assert found[1].startswith("No record of clients 0 and 2")


def test_every_score_has_a_flat_row_with_all_its_digits() -> None:
    one = record(psnr=[1 / 3], ssim=[0.5], controls=GREY)
    rows = list(
        csv.DictReader(io.StringIO(tables.csv_files(Analysis(run_data(one, record(status="failed"))))["records.csv"]))
    )
    assert [row["metric"] for row in rows] == ["psnr", "ssim", ""]
    assert float(rows[0]["value"]) == pytest.approx(1 / 3, rel=1e-9)
    assert (rows[0]["best_control"], rows[0]["floor"]) == ("grey", "own_mean")
    assert float(rows[0]["skill"]) == pytest.approx(skill(1 / 3, 10.0, "higher"), rel=1e-9)
    assert json.loads(rows[0]["params"]) == {}


def test_tables_without_rows_are_not_written() -> None:
    assert set(tables.csv_files(Analysis(run_data()))) == {"rounds.csv"}


def test_numbers_are_written_with_unit_and_sign() -> None:
    assert scale("psnr").write(61.25) == "61.2 dB"
    assert scale("psnr").write(-0.01, signed=True) == "+0.0 dB"
    assert scale("psnr").between(1.0, 2.0) == "1.0 to 2.0 dB"
    assert scale("unheard_of").write(0.12345) == "0.123"


@pytest.mark.parametrize("start", ["=1+2", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_text_that_a_spreadsheet_would_compute_begins_with_an_apostrophe_and_numbers_stay_numbers(start):
    for value, cell in (
        (start, f"'{start}".replace("\r", "\n")),
        (-1.5, "-1.5"),
        (-3, "-3"),
        ("plain", "plain"),
        (None, ""),
    ):
        (row,) = csv.DictReader(io.StringIO(tables.as_csv([{"cell": value, "last": 1}]), newline=""))
        assert row == {"cell": cell, "last": "1"}
