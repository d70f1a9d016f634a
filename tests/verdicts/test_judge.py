"""What may be claimed: leaks by scores beyond luck, resistance by proof alone, and everything else inconclusive."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fedsim.defense import MEANINGFUL_DELTA, MEANINGFUL_EPSILON
from fedsim.metrics import luck
from fedsim.recording.records import Budget, Calibration, Record, Round, Trial
from fedsim.recording.run_data import RunData
from fedsim.report import summary
from fedsim.report.analysis import Analysis
from fedsim.report.overview import client_verdicts, entries, headline, overall
from fedsim.report.summaries import by_client
from fedsim.verdicts.judge import Judge, worst
from fedsim.verdicts.scores import scored
from fedsim.verdicts.significance import significance

CONTROLS = {"grey": {"psnr": 12.0}, "own_mean": {"psnr": 18.0}}
ONE = {"pictures": 1, "batch_size": 1, "steps": 1}
MANY = {"pictures": 60, "batch_size": 60, "steps": 1}


def line(value=11.0, client=0, round=1, status="found", controls=CONTROLS, attack=(), defenses=(), **fields):
    score = {"value": value, "per_example": [value], "worse": "higher"}
    return Record.model_validate(
        {
            "round": round,
            "client": client,
            "attack": {"name": "inversion", "recovers": ["images"], **dict(attack)},
            "defenses": list(defenses),
            "status": status,
            "inapplicable": [],
            "workload": ONE,
            "scores": {"psnr": score} if status == "found" else {},
            "controls": controls if status == "found" else {},
            **fields,
        }
    )


def calibration(*values, round=1, status="found", controls=CONTROLS, **fields):
    trials = [
        {
            "status": "found",
            "scores": {"psnr": {"value": value, "per_example": [value], "worse": "higher"}},
            "controls": controls,
        }
        for value in (values or (60.0, 61.0, 62.0))
    ]
    content = {"round": round, "attack": {"name": "inversion"}, "status": status, "workload": ONE}
    return Calibration.model_validate(content | {"trials": trials if status == "found" else []} | fields)


def judged(*records, calibrations=(), budgets=None):
    return by_client(records, Judge.of_records(records, calibrations, budgets or {}))


def budget(epsilon, delta=1e-5):
    return Budget(epsilon=epsilon, delta=delta, neighbors="replace")


MASK = [{"name": "mask"}]
NOISE = [{"name": "noise", "adds_noise": True}]


def of_client(rows, client):
    (row,) = (row for row in rows if row.clients == (client,))
    return row


def test_a_client_resists_where_most_unprotected_clients_of_the_round_leak():
    rows = judged(line(60.0), line(61.0, client=1), line(11.0, client=2), line(11.0, client=3, defenses=MASK))
    leaky, masked = of_client(rows, 0), of_client(rows, 3)
    assert (leaky.verdict, masked.verdict) == ("leaks", "resisted")
    assert "2 of 3 unprotected clients" in masked.reason and "60.0 dB" in masked.reason


def test_a_client_resists_where_a_calibration_of_the_round_leaks():
    (row,) = judged(line(11.0, defenses=MASK), calibrations=[calibration(60.0, 11.0, 62.0)])
    assert row.verdict == "resisted" and "2 of 3 that the auditor made itself" in row.reason


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        ([], "it was not calibrated on updates of an image as this client's"),
        ([calibration(12.5, 12.0, 11.0)], "images leak from 0 of 3 updates without a defense"),
        ([calibration(round=2)], "it was not calibrated"),
        ([calibration(status="failed", message="broke")], "its calibration failed"),
        ([calibration(attack={"name": "inversion", "params": {"steps": 9}})], "it was not calibrated"),
        ([calibration(grants=["labels"])], "it was not calibrated"),
        ([calibration(workload=MANY)], "it was not calibrated"),
        ([calibration(60.0)], "images leak from 1 of 1 updates without a defense"),
        ([calibration(149.0, 11.0, 12.0, 10.0)], "images leak from 1 of 4 updates without a defense"),
        ([calibration(60.0, 11.0)], "images leak from 1 of 2 updates without a defense"),
    ],
)
def test_without_a_calibration_of_which_most_leak_at_the_same_place_nothing_is_claimed(proof, says):
    (row,) = judged(line(11.0, defenses=MASK), calibrations=proof)
    assert row.verdict == "inconclusive" and says in row.reason


def test_a_leak_in_another_round_is_no_proof():
    leaks = [line(60.0, client=c) for c in (0, 1)]
    assert of_client(judged(*leaks, line(11.0, client=2, defenses=MASK)), 2).verdict == "resisted"
    assert of_client(judged(*leaks, line(11.0, client=2, round=2, defenses=MASK)), 2).verdict == "inconclusive"


def test_leaks_of_small_updates_are_no_proof_for_large_ones():
    small = [line(60.0, client=c) for c in (0, 1, 2)]
    large = line(11.0, client=3, defenses=MASK, workload=MANY)
    found = of_client(judged(*small, large), 3)
    assert found.verdict == "inconclusive" and "not calibrated on updates of 60 images" in found.reason
    assert of_client(judged(*small, line(11.0, client=3, defenses=MASK)), 3).verdict == "resisted"


def test_a_calibration_of_which_few_leak_outweighs_unprotected_clients_that_all_do():
    leaks = [line(60.0, client=c) for c in range(8)]
    rows = judged(*leaks, line(11.0, client=9, defenses=MASK), calibrations=[calibration(60.0, 11.0, 11.0)])
    assert of_client(rows, 9).verdict == "inconclusive"


def test_a_calibration_is_rated_by_what_the_attack_finds_in_another_update_too():
    """An attack that never looks, and whose images happen to be near, finds the same in every update."""
    blind = calibration(60.0, 61.0, 62.0, controls={**CONTROLS, "wrong_update": {"psnr": 61.0}})
    (row,) = judged(line(11.0, defenses=MASK), calibrations=[blind])
    assert row.verdict == "inconclusive" and "leak from 0 of 3" in row.reason


def test_a_client_without_a_defense_never_resists():
    (row,) = judged(line(11.0), calibrations=[calibration()])
    assert row.verdict == "inconclusive" and "carries no defense" in row.reason


def test_a_client_that_only_the_strategy_protects_never_resists_and_proves_nothing():
    clipped = [{"name": "DifferentialPrivacyClientSideFixedClipping", "is_strategy": True}]
    (row,) = judged(line(11.0, defenses=clipped), calibrations=[calibration()])
    assert row.verdict == "inconclusive" and "and to the calibration as well" in row.reason
    leaks = [line(60.0, client=c, defenses=clipped) for c in (1, 2, 3)]
    found = of_client(judged(line(11.0, defenses=[*clipped, *MASK]), *leaks), 0)
    assert found.verdict == "inconclusive" and "not calibrated" in found.reason


def test_what_leaks_as_much_from_another_clients_update_is_never_said_to_have_resisted():
    """Two clients with the same image, found exactly: the other one's finding scores as much."""
    same = line(119.0, defenses=MASK, controls={**CONTROLS, "wrong_update": {"psnr": 119.0}})
    (row,) = judged(same, calibrations=[calibration()])
    assert row.verdict == "inconclusive" and "finds as much in another client's update" in row.reason
    blind = line(11.0, defenses=MASK, controls={**CONTROLS, "wrong_update": {"psnr": 11.0}})
    assert judged(blind, calibrations=[calibration()])[0].verdict == "resisted"


def test_a_image_of_a_batch_that_another_clients_update_explains_is_never_said_to_have_resisted():
    example = {"psnr": {"index": 3, "value": 110.0, "control": 12.0, "floor": 18.0, "luck": 98.0}}
    (row,) = judged(line(11.0, defenses=MASK, best_example=example), calibrations=[calibration()])
    assert row.verdict == "inconclusive" and "finds as much in another client's update" in row.reason


def batch(best, others=7):
    """Return a record of a batch of which one image is found so many decibels beyond a blind guess of it."""
    values = [12.0 + best, *[11.0] * others]
    score = {"value": sum(values) / len(values), "per_example": values, "worse": "higher"}
    example = {"psnr": {"index": 0, "value": 12.0 + best, "control": 12.0, "floor": 11.5, "luck": 0.0}}
    return line(0.0, defenses=MASK, scores={"psnr": score}, best_example=example)


@pytest.mark.parametrize(
    ("best", "verdict"), [(0.5, "resisted"), (1.05, "inconclusive"), (5.9, "partial"), (6.1, "leaks")]
)
def test_the_best_image_of_a_batch_counts_as_the_best_of_as_many(best, verdict):
    (row,) = judged(batch(best), calibrations=[calibration()])
    assert row.verdict == verdict
    assert (row.peak.example is not None) == (best > 1)


def test_a_leak_beside_a_good_blind_attempt_is_not_measured_from_it_twice():
    """The same attack finds 2 dB in any update, and 4 dB in this client's: what it finds in others is its mean, no scatter."""
    rounds = [line(16.0, round=r, controls={**CONTROLS, "wrong_update": {"psnr": 14.0}}) for r in range(1, 9)]
    (row,) = judged(*rounds)
    assert (row.verdict, row.level) == ("partial", "partial")


def counted(recall, round, labels=40, chance=0.15):
    hits = round_half(recall * labels)
    score = {"value": hits / labels, "per_example": [1.0] * hits + [0.0] * (labels - hits), "worse": "higher"}
    controls = {"chance": {"label_recall": chance}}
    use = {"name": "count", "recovers": ["labels"]}
    return line(0.0, round=round, attack=use, defenses=MASK, scores={"label_recall": score}, controls=controls)


def round_half(value):
    return int(value + 0.5)


def test_the_labels_of_one_round_of_ten_are_a_leak_that_the_mean_hides():
    (row,) = judged(counted(1.0, 1), *(counted(0.1, r) for r in range(2, 11)))
    assert row.mean == pytest.approx(0.19)
    assert (row.verdict, row.peak.round, row.peak.value) == ("leaks", 1, 1.0)


def test_one_right_label_in_one_round_of_ten_is_luck():
    records = [counted(1.0 if r == 4 else 0.0, r, labels=1, chance=0.2) for r in range(1, 11)]
    (row,) = judged(*records)
    assert row.verdict == "inconclusive" and row.level == "none"


@pytest.mark.parametrize(
    ("right", "labels", "chance", "verdict"),
    [
        (0, 1, 0.5, "inconclusive"),  # one wrong coin
        (6, 16, 0.5, "inconclusive"),
        (50, 200, 0.5, "resisted"),
        (57, 96, 0.71, "resisted"),
        (3, 8, 0.46, "inconclusive"),
        (0, 40, 0.15, "resisted"),
    ],
)
def test_guesses_that_luck_decides_resist_only_where_there_are_enough_to_rule_a_leak_out(
    right, labels, chance, verdict
):
    """By hand: the upper bound of Clopper and Pearson against chance + 15% of what it leaves."""
    own = counted(right / labels, 1, labels, chance)
    proof = [
        calibration(attack=own.attack.model_dump(), workload=ONE).model_copy(
            update={
                "trials": tuple(
                    Trial.model_validate(
                        {
                            "status": "found",
                            "scores": {"label_recall": {"value": 1.0, "per_example": [1.0] * 40, "worse": "higher"}},
                            "controls": {"chance": {"label_recall": chance}},
                        }
                    )
                    for _ in range(3)
                )
            }
        )
    ]
    (row,) = judged(own, calibrations=proof)
    assert row.verdict == verdict, row.reason
    assert verdict == "resisted" or "too few to rule a leak out" in row.reason


@given(st.integers(1, 60), st.data())
def test_the_highest_share_is_where_so_few_right_guesses_are_a_matter_of_one_in_twenty(examples, data):
    right = data.draw(st.integers(0, examples))
    most = luck.highest(float(right), examples)
    if right == examples:
        assert most == 1.0
    else:
        assert binom.cdf(right, examples, most) == pytest.approx(luck.SIGNIFICANCE, rel=1e-6)


def test_one_round_without_proof_leaves_the_client_inconclusive():
    records = [line(11.0, round=r, defenses=MASK) for r in (1, 2, 3)]
    (row,) = judged(*records, calibrations=[calibration(round=1), calibration(round=3)])
    assert row.verdict == "inconclusive" and "(1 of 3 attempts)" in row.reason


def test_an_attack_that_is_not_made_for_the_update_proves_nothing():
    unfit = line(11.0, defenses=MASK, inapplicable=["it is made for 1 image in an update, and here are 500"])
    (row,) = judged(unfit, calibrations=[calibration()])
    assert (row.verdict, row.reason) == ("inconclusive", "it is made for 1 image in an update, and here are 500")


def test_a_leak_is_a_leak_even_where_the_attack_is_not_made_for_the_update():
    (row,) = judged(line(60.0, inapplicable=["it is made for 1 image in an update, and here are 2"]))
    assert row.verdict == "leaks"


@pytest.mark.parametrize("status", ["failed", "refused"])
def test_a_failed_or_refused_attempt_proves_nothing(status):
    rows = judged(line(status=status, message="no luck", defenses=MASK), calibrations=[calibration()])
    (entry,) = entries(rows)
    assert (entry.kind, entry.verdict) == ("images", "inconclusive")
    assert entry.reason.endswith("no luck")


def test_a_control_neither_leaks_nor_proves_anything():
    blind = line(60.0, attack={"is_control": True})
    assert client_verdicts(entries(judged(blind)))[0].kinds == {}
    assert overall(entries(judged(blind))) == "inconclusive"


@pytest.mark.parametrize(
    ("own", "stated"),
    [
        ({}, "no finite epsilon"),
        ({0: budget(None)}, "no finite epsilon"),
        ({0: budget(MEANINGFUL_EPSILON + 1)}, "an epsilon of 11 with a delta of 1e-05"),
        ({0: budget(8.4, 0.999999)}, "an epsilon of 8.4 with a delta of 1"),
        ({0: budget(0.1, 2 * MEANINGFUL_DELTA)}, "an epsilon of 0.1 with a delta of 0.002"),
        ({1: budget(1.0)}, "no finite epsilon"),
    ],
)
def test_noise_without_a_meaningful_budget_is_never_resistance(own, stated):
    (row,) = judged(line(11.0, defenses=NOISE), calibrations=[calibration()], budgets=own)
    assert row.verdict == "inconclusive"
    assert (
        row.reason
        == f"this attack is blind to what noise drew or added; {stated} is no guarantee against one that is not"
    )


@pytest.mark.parametrize("own", [budget(3.0), budget(MEANINGFUL_EPSILON, MEANINGFUL_DELTA)])
def test_noise_with_a_meaningful_budget_may_be_resistance(own):
    (row,) = judged(line(11.0, defenses=NOISE), calibrations=[calibration()], budgets={0: own})
    assert row.verdict == "resisted"


def test_a_budget_that_is_refuted_counts_as_none():
    judge = Judge.of_records([line(11.0, defenses=NOISE)], [calibration()], {0: budget(3.0)})
    (row,) = by_client([line(11.0, defenses=NOISE)], replace(judge, refuted=frozenset({0})))
    assert row.verdict == "inconclusive" and "a claimed budget that its own draws refute is no guarantee" in row.reason


def test_one_exact_copy_in_a_batch_of_many_is_a_leak_that_the_mean_hides():
    examples = {"psnr": {"index": 17, "value": 60.0, "control": 12.0, "floor": 18.0, "luck": 0.0}}
    (row,) = judged(line(12.1, best_example=examples))
    assert (row.verdict, row.peak.example.index) == ("leaks", 17)


def test_the_best_of_many_images_is_no_leak_where_another_clients_update_does_as_well():
    examples = {"psnr": {"index": 17, "value": 19.5, "control": 12.0, "floor": 18.0, "luck": 7.0}}
    (row,) = judged(line(12.1, defenses=MASK, best_example=examples), calibrations=[calibration()])
    assert row.verdict == "inconclusive"


def test_the_worst_of_many_blind_rounds_is_luck_and_the_reason_says_so():
    """Fifty rounds of an attack that learns nothing, the luckiest of which is above the threshold of a partial leak."""
    records = [
        line(13.2 if r == 9 else 12.0, round=r, defenses=MASK, controls={**CONTROLS, "wrong_update": {"psnr": 12.0}})
        for r in range(1, 51)
    ]
    (row,) = judged(*records, calibrations=[calibration(round=r) for r in range(1, 51)])
    assert (row.verdict, row.peak.round) == ("inconclusive", 9)
    assert row.reason == "1 of 50 attempts is beyond a blind guess, and luck explains that"


def test_many_rounds_slightly_beyond_a_blind_guess_are_no_luck_though_none_is_by_itself():
    """Blind attempts scatter by 1.5 dB, so that 1.4 dB may be luck once; in 16 of 20 rounds it is not."""
    others = [
        line(12.0, client=9, round=r, controls={**CONTROLS, "wrong_update": {"psnr": w}})
        for r, w in enumerate([12.0, 13.5, 10.5, 12.0, 13.4, 9.0] * 10, 1)
    ]
    records = [line(13.4 if r <= 16 else 11.0, round=r, defenses=MASK) for r in range(1, 21)]
    (row,) = (row for row in judged(*records, *others) if row.clients == (0,))
    assert (row.verdict, row.level) == ("partial", "partial")
    once = [line(13.4 if r <= 2 else 11.0, round=r, defenses=MASK) for r in range(1, 21)]
    (row,) = (row for row in judged(*once, *others) if row.clients == (0,))
    assert row.verdict == "inconclusive" and "luck explains" in row.reason


def test_the_verdict_of_a_client_is_the_worst_over_what_may_leak():
    label = {"label_recall": {"value": 1.0, "per_example": [1.0] * 5, "worse": "higher"}}
    counted = line(attack={"name": "count", "recovers": ["labels"]}, defenses=MASK, scores=label)
    counted = counted.model_copy(update={"controls": {"chance": {"label_recall": 0.2}}})
    rows = judged(line(11.0, defenses=MASK), counted, calibrations=[calibration()])
    found = client_verdicts(entries(rows))[0]
    assert (found.verdict, found.kinds) == ("leaks", {"images": "resisted", "labels": "leaks"})


def beside(other, **fields):
    """Return the verdict on the images of a client that resisted one attack, and of which another one has this record."""
    strong = {"name": "strong", **fields.pop("attack", {})}
    records = [line(11.0, defenses=MASK), line(other, attack=strong, defenses=MASK, **fields)]
    lines = entries(judged(*records, calibrations=[calibration(), calibration(attack={"name": "strong"})]))
    read = run_data(*records, calibrations=[calibration(), calibration(attack={"name": "strong"})])
    return client_verdicts(lines)[0].kinds["images"], headline(read, lines)


def test_an_attack_that_is_known_to_work_outweighs_one_that_cannot_tell_and_the_headline_names_both():
    found, said = beside(11.0, inapplicable=["it is made for 1 image in an update, and here are 500"])
    assert found == "resisted"
    assert said == "No leak of images was found: 1 of 1 client resisted inversion (strong cannot tell)."
    assert beside(11.0)[1] == "No leak of images was found: 1 of 1 client resisted inversion and strong."


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "failed", "message": "took longer than audit.attack_timeout (3600 s)"},
        {"controls": {**CONTROLS, "wrong_update": {"psnr": 40.0}}, "value": 40.0},
        {name: getattr(batch(1.05), name) for name in ("scores", "best_example")},
    ],
    ids=["timeout", "as much in another update", "luck"],
)
def test_an_attack_that_met_something_is_not_outweighed_by_one_that_resisted(fields):
    found, said = beside(fields.pop("value", 11.0), **fields)
    assert found == "inconclusive"
    assert said.startswith("Inconclusive for the images of the only client: strong: ")


def test_a_client_whose_images_were_never_attacked_is_not_said_to_have_resisted():
    labels = [counted(0.1, 1), *(counted(1.0, 1).model_copy(update={"client": c, "defenses": ()}) for c in (1, 2))]
    lines = [entry for entry in entries(judged(*labels)) if entry.client == 0]
    found = client_verdicts(lines)[0]
    assert (found.kinds, found.verdict, overall(lines)) == ({"labels": "resisted"}, "inconclusive", "inconclusive")
    assert headline(run_data(*labels), lines).endswith("images were not attacked.")


def test_what_cannot_be_known_is_worse_than_what_resisted():
    assert worst(["resisted", "inconclusive"]) == "inconclusive"
    assert worst(["inconclusive", "partial"]) == "partial"
    assert worst([]) == "inconclusive"


ROUNDS = (Round(round=0), Round(round=1))


@pytest.mark.parametrize("right", [20, 3])
def test_labels_that_a_defense_put_in_place_count_as_hits_where_they_are_found(right):
    name, examples = "label_recall@trained", [1.0] * right + [0.0] * (20 - right)
    score = {"value": right / 20, "per_example": examples, "worse": "higher"}
    own = {"value": 0.0, "per_example": [0.0] * 20, "worse": "higher"}
    found = line(
        defenses=MASK,
        attack={"recovers": ["labels"]},
        scores={"label_recall": own, name: score},
        controls={"chance": {"label_recall": 0.1, name: 0.1}},
        trained_on={"inputs": 20, "other_labels": True},
    )
    shown = significance(scored([found], name), name, luck.BlindSkills.of(()))
    assert shown.level == ("leaks" if right == 20 else "none")


def run_data(*records, calibrations=(), scenario=None, rounds=ROUNDS):
    return RunData(
        Path(), {"name": "one", **(scenario or {})}, None, {}, tuple(rounds), records, (), tuple(calibrations)
    )


def audited(*records, clients=(0, 1), rounds=(1,), attacks=("inversion",), calibrations=(), only=()):
    """Return headline, verdict and verdicts by client of an audit of a scenario, in which these took part."""
    took_part = [Round(round=0), *(Round(round=r, participants=clients) for r in rounds)]
    scenario = {
        "federation": {"clients": len(clients), "rounds": len(rounds)},
        "attacks": list(attacks),
        "audit": dict(only),
    }
    found = run_data(*records, scenario=scenario, rounds=took_part, calibrations=calibrations)
    said = summary.of(Analysis(found))
    return said["headline"], said["verdict"], {int(c): one["verdict"] for c, one in said["clients"].items()}


def test_all_that_was_asked_for_and_found_is_what_the_headline_says():
    records = [line(11.0, client=c, defenses=MASK) for c in (0, 1)]
    said, verdict, _ = audited(*records, calibrations=[calibration()])
    assert (said, verdict) == ("No leak of images was found: 2 of 2 clients resisted inversion.", "resisted")


def test_clients_and_rounds_that_the_audit_leaves_out_are_counted_and_the_run_is_inconclusive():
    one = line(11.0, client=1, defenses=MASK)
    said, verdict, by_number = audited(
        one, rounds=(1, 2, 3), clients=(0, 1), calibrations=[calibration()], only={"clients": [1], "rounds": [1]}
    )
    assert said == (
        "No leak of images was found: 1 of 2 clients resisted inversion; audited are 1 of 2 clients and 1 of 3 rounds."
    )
    assert (verdict, by_number) == ("inconclusive", {1: "resisted"})


def test_records_that_the_scenario_asks_for_and_that_are_gone_leave_the_client_inconclusive():
    records = [line(11.0, client=c, defenses=MASK) for c in (0, 1)]
    said, verdict, by_number = audited(
        *records, rounds=(1, 2, 3), calibrations=[calibration(round=r) for r in (1, 2, 3)]
    )
    assert said.startswith("Inconclusive for the images of all 2 clients: inversion: no record of 2 of the 3 attempts")
    assert said.endswith("audited are 1 of 3 rounds; 4 attempts that the scenario asks for have no record.")
    assert (verdict, by_number) == ("inconclusive", {0: "inconclusive", 1: "inconclusive"})


def test_an_attack_that_the_scenario_asks_for_and_that_left_no_record_leaves_the_client_inconclusive():
    record = line(11.0, defenses=MASK)
    asked = {"clients": (0,), "calibrations": [calibration()]}
    assert audited(record, **asked)[1:] == ("resisted", {0: "resisted"})
    said, verdict, by_number = audited(record, attacks=("inversion", "stronger"), **asked)
    assert said.endswith("1 attempts that the scenario asks for have no record.")
    assert (verdict, by_number) == ("inconclusive", {0: "inconclusive"})


def test_a_leak_stays_a_leak_however_little_was_audited():
    said, verdict, _ = audited(line(60.0, client=1), clients=(0, 1, 2), only={"clients": [1]})
    assert said.startswith("1 of 3 clients leaks its images") and said.endswith("; audited are 1 of 3 clients.")
    assert verdict == "leaks"


def test_the_summary_for_programs_holds_verdict_reason_value_control_and_round():
    found = json.loads(summary.as_json(Analysis(run_data(line(60.0), line(11.0, client=1, defenses=NOISE)))))
    assert (found["schema"], found["name"], found["verdict"]) == (1, "one", "leaks")
    assert found["clients"]["1"] == {"verdict": "inconclusive", "kinds": {"images": "inconclusive"}}
    first, second = found["attacks"]
    assert (first["client"], first["attack"], first["kind"], first["verdict"]) == (0, "inversion", "images", "leaks")
    assert (first["metric"], first["value"], first["round"]) == ("psnr", 60.0, 1)
    assert (first["control"], first["floor"]) == ({"name": "grey", "value": 12.0}, {"name": "own_mean", "value": 18.0})
    assert (first["reason"], second["verdict"]) == (None, "inconclusive")
    assert "no guarantee" in second["reason"]
    read = run_data(line(60.0), line(11.0, client=1, defenses=NOISE))
    assert found["headline"] == headline(read, entries(by_client(read.records, Judge.of(read))))


@pytest.mark.parametrize(
    ("verdict", "failing"),
    [
        ("leaks", {"leaks", "partial", "inconclusive"}),
        ("partial", {"partial", "inconclusive"}),
        ("inconclusive", {"inconclusive"}),
        ("resisted", set()),
    ],
)
def test_a_verdict_fails_where_it_is_as_bad_as_asked_or_worse(verdict, failing):
    assert {asked for asked in ("leaks", "partial", "inconclusive") if summary.is_failure(verdict, asked)} == failing
