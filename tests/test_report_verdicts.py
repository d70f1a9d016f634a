"""What may be claimed: leaks by scores beyond luck, resistance by proof alone, and everything else inconclusive."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsim import plugins
from fedsim.applicability import Applicability, Setting
from fedsim.attack import Attack
from fedsim.defense import MEANINGFUL_DELTA, MEANINGFUL_EPSILON, Defense
from fedsim.report import summary
from fedsim.report.evidence import Budget, Calibration, Evidence, Record, Round
from fedsim.report.glance import client_verdicts, entries, headline, overall
from fedsim.report.summaries import by_client
from fedsim.report.verdicts import Judge, worst

CONTROLS = {"grey": {"psnr": 12.0}, "own_mean": {"psnr": 18.0}}


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
            "scores": {"psnr": score} if status == "found" else {},
            "controls": controls if status == "found" else {},
            **fields,
        }
    )


def calibration(value=60.0, round=1, status="found", **fields):
    score = {"value": value, "per_example": [value], "worse": "higher"}
    content = {"round": round, "attack": {"name": "inversion"}, "status": status, "pictures": 1, "updates": 1}
    if status == "found":
        content |= {"scores": {"psnr": score}, "controls": {"grey": {"psnr": 12.0}}}
    return Calibration.model_validate(content | fields)


def judged(*records, calibrations=(), budgets=None):
    return by_client(records, Judge.of_records(records, calibrations, budgets or {}))


def budget(epsilon, delta=1e-5):
    return Budget(epsilon=epsilon, delta=delta, neighbors="replace")


MASK = [{"name": "mask"}]
NOISE = [{"name": "noise", "adds_noise": True}]


def test_a_client_resists_where_an_unprotected_client_of_the_round_leaks():
    leaky, masked = judged(line(60.0), line(11.0, client=1, defenses=MASK))
    assert (leaky.verdict, masked.verdict) == ("leaks", "resisted")
    assert "unprotected clients" in masked.reason and "60.0 dB" in masked.reason


def test_a_client_resists_where_a_calibration_of_the_round_leaks():
    (row,) = judged(line(11.0, defenses=MASK), calibrations=[calibration()])
    assert row.verdict == "resisted" and "the auditor made itself" in row.reason


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        ([], "it was not calibrated"),
        ([calibration(12.5)], "in its calibration the pictures did not leak either"),
        ([calibration(round=2)], "it was not calibrated"),
        ([calibration(status="failed", message="broke")], "its calibration failed"),
        ([calibration(attack={"name": "inversion", "params": {"steps": 9}})], "it was not calibrated"),
    ],
)
def test_without_a_calibration_that_leaks_in_the_round_nothing_is_claimed(proof, says):
    (row,) = judged(line(11.0, defenses=MASK), calibrations=proof)
    assert row.verdict == "inconclusive" and says in row.reason


def test_a_leak_in_another_round_is_no_proof():
    rows = judged(line(60.0), line(11.0, client=1, round=2, defenses=MASK))
    assert rows[1].verdict == "inconclusive"


def test_one_round_without_proof_leaves_the_client_inconclusive():
    records = [line(11.0, round=r, defenses=MASK) for r in (1, 2, 3)]
    (row,) = judged(*records, calibrations=[calibration(round=1), calibration(round=3)])
    assert row.verdict == "inconclusive" and "(1 of 3 attempts)" in row.reason


def test_an_attack_that_is_not_made_for_the_update_proves_nothing():
    unfit = line(11.0, defenses=MASK, inapplicable=["it is made for 1 picture in an update, and here are 500"])
    (row,) = judged(unfit, calibrations=[calibration()])
    assert (row.verdict, row.reason) == ("inconclusive", "it is made for 1 picture in an update, and here are 500")


def test_a_leak_is_a_leak_even_where_the_attack_is_not_made_for_the_update():
    (row,) = judged(line(60.0, inapplicable=["it is made for 1 picture in an update, and here are 2"]))
    assert row.verdict == "leaks"


@pytest.mark.parametrize("status", ["failed", "refused"])
def test_a_failed_or_refused_attempt_proves_nothing(status):
    rows = judged(line(status=status, message="no luck", defenses=MASK), calibrations=[calibration()])
    (entry,) = entries(rows)
    assert (entry.kind, entry.verdict) == ("pictures", "inconclusive")
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


def test_one_exact_copy_in_a_batch_of_many_is_a_leak_that_the_mean_hides():
    examples = {"psnr": {"index": 17, "value": 60.0, "control": 12.0, "floor": 18.0, "luck": 0.0}}
    (row,) = judged(line(12.1, best_example=examples))
    assert (row.verdict, row.peak.example.index) == ("leaks", 17)


def test_the_best_of_many_pictures_is_no_leak_where_another_clients_update_does_as_well():
    examples = {"psnr": {"index": 17, "value": 19.5, "control": 12.0, "floor": 18.0, "luck": 7.0}}
    (row,) = judged(line(12.1, best_example=examples))
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
    assert (found.verdict, found.kinds) == ("leaks", {"pictures": "resisted", "labels": "leaks"})


def test_an_attack_that_is_known_to_work_outweighs_one_that_cannot_tell():
    other = line(11.0, attack={"name": "other"}, defenses=MASK)
    found = client_verdicts(entries(judged(line(11.0, defenses=MASK), other, calibrations=[calibration()])))[0]
    assert found.kinds == {"pictures": "resisted"}


def test_what_cannot_be_known_is_worse_than_what_resisted():
    assert worst(["resisted", "inconclusive"]) == "inconclusive"
    assert worst(["inconclusive", "partial"]) == "partial"
    assert worst([]) == "inconclusive"


def evidence(*records, calibrations=()):
    rounds = (Round(round=0), Round(round=1))
    return Evidence(Path(), {"name": "one"}, None, {}, rounds, records, (), calibrations)


def test_the_summary_for_programs_holds_verdict_reason_value_control_and_round():
    found = json.loads(summary.as_json(evidence(line(60.0), line(11.0, client=1, defenses=NOISE))))
    assert (found["schema"], found["name"], found["verdict"]) == (1, "one", "leaks")
    assert found["clients"]["1"] == {"verdict": "inconclusive", "kinds": {"pictures": "inconclusive"}}
    first, second = found["attacks"]
    assert (first["client"], first["attack"], first["kind"], first["verdict"]) == (0, "inversion", "pictures", "leaks")
    assert (first["metric"], first["value"], first["round"]) == ("psnr", 60.0, 1)
    assert (first["control"], first["floor"]) == ({"name": "grey", "value": 12.0}, {"name": "own_mean", "value": 18.0})
    assert (first["reason"], second["verdict"]) == (None, "inconclusive")
    assert "no guarantee" in second["reason"]
    read = evidence(line(60.0), line(11.0, client=1, defenses=NOISE))
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


ATTACKS = {name: plugins.build("attacks", Attack, name, {}, "attacks") for name in plugins.installed("attacks")}
DEFENSES = sorted(plugins.installed("defenses"))
SETTINGS = st.builds(
    Setting,
    pictures=st.none() | st.integers(1, 600),
    batch_size=st.integers(1, 64),
    kind=st.sampled_from(["gradient", "delta"]),
    steps=st.none() | st.integers(1, 80),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    has_soft_labels=st.booleans(),
    model=st.frozensets(
        st.sampled_from(["linear classifier", "learned position embedding", "patch projection", "APRIL first block"])
    ),
)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if not attack.is_control])
def test_every_attack_says_what_it_is_made_for(name):
    assert isinstance(ATTACKS[name].applicability, Applicability)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(ATTACKS)),
    defense=st.sampled_from(DEFENSES),
    setting=SETTINGS,
    value=st.floats(0, 100),
    proof=st.sampled_from(["client", "calibration", "none"]),
    status=st.sampled_from(["found", "failed", "refused"]),
)
def test_an_update_that_an_attack_is_not_made_for_is_never_said_to_have_resisted_it(
    name, defense, setting, value, proof, status
):
    attack = ATTACKS[name]
    obstacles = () if attack.applicability is None else attack.applicability.obstacles(setting)
    assume(obstacles or attack.is_control)
    use = {"name": name, "is_control": attack.is_control, "recovers": sorted(attack.recovers)}
    records = [line(value, 1, status=status, attack=use, defenses=[{"name": defense}], inapplicable=list(obstacles))]
    if proof == "client":
        records.append(line(60.0, 0, attack=use))
    known = [calibration(attack={"name": name})] if proof == "calibration" else []
    found = [entry for entry in entries(judged(*records, calibrations=known)) if entry.client == 1]
    assert found and all(entry.verdict != "resisted" for entry in found)


def test_every_installed_defense_is_found():
    assert all(issubclass(plugins.load(plugins.find("defenses", n, ""), Defense, ""), Defense) for n in DEFENSES)
