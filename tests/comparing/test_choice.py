import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import record, write_run

from fedsim.comparing.choice import choices, front
from fedsim.comparing.settings import families
from fedsim.comparing.sources import sources

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_other_point_beats(points):
    def beats(one, other):
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    found = front([(float(accuracy), float(leakage)) for accuracy, leakage in points])
    expected = {n for n, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert set(found) == expected
    assert [points[place][0] for place in found] == sorted(points[place][0] for place in found)


@pytest.fixture
def chosen(tmp_path):
    """Return a function: names of runs and what each shows -> the choices of their only family."""

    def choose(margin=1.0, **runs):
        folders = [write_run(tmp_path / name, **{"name": name, **given}) for name, given in runs.items()]
        (family,) = families(sources(folders)[0], None)
        return choices(family, margin)

    return choose


NONE = {"psnr": 60.0, "accuracy": 0.8}
SAFE = {"psnr": 9.5, "accuracy": 0.6, "defenses": ["clips"]}


def test_the_cheapest_setting_that_resists_is_chosen_however_accurate_those_that_leak_are(chosen):
    (choice,) = chosen(
        none=NONE,
        weak={"psnr": 30.0, "accuracy": 0.79, "defenses": ["rounds"]},
        dear={**SAFE, "accuracy": 0.5, "defenses": ["drops"]},
        safe=SAFE,
    )
    assert choice.chosen == "safe"
    assert (
        "within 1 dB of its control: safe, at an accuracy of 0.600, 0.200 below none, of 2 that do." in choice.statement
    )
    assert choice.reasons["none"] == ["inversion: images: leaks"]
    assert choice.reasons["safe"] == choice.reasons["dear"] == []


def attempts(**given):
    """Return records of a run of two clients and two rounds, the last one with other fields."""
    made = [record(client, round, ["clips"], psnr=9.5) for round in (1, 2) for client in (0, 1)]
    return [*made[:-1], {**made[-1], **given}]


WITHOUT = {"scores": {}, "controls": {}}


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (attempts(status="failed", message="out of luck", **WITHOUT), "inconclusive, it failed: out of luck"),
        (attempts(status="refused", message="not one image", **WITHOUT), "inconclusive, it was refused: not one image"),
        (attempts(inapplicable=["made for one step"]), "inconclusive, made for one step"),
        (attempts()[:-1], "1 attempts that the scenario asks for have no record"),
        (attempts()[::2], "audited are 1 of 2 clients"),
        ([], "it was not run, or left no record"),
        (attempts(workload={"pictures": 2, "batch_size": 2, "steps": 1}), "nothing shows that this attack works here"),
        (
            attempts(defenses=[{"name": "clips", "params": {}, "adds_noise": True}]),
            "this attack is blind to what clips",
        ),
    ],
)
def test_what_is_missing_failed_refused_or_not_made_for_the_update_is_no_protection(records, says, chosen):
    (choice,) = chosen(none=NONE, safe={**SAFE, "records": records})
    assert choice.chosen is None
    assert choice.statement.startswith("No setting is known to keep every attacker within 1 dB of its control.")
    assert any(says in reason for reason in choice.reasons["safe"]), choice.reasons


def test_an_attack_that_another_setting_was_not_tried_with_is_no_protection_there(chosen):
    other = {"name": "labels", "params": {}, "recovers": ["labels"]}
    labels = [record(client, round, psnr=60.0) for round in (1, 2) for client in (0, 1)]
    labels += [record(client, round, label_recall=1.0, attack=other) for round in (1, 2) for client in (0, 1)]
    every, images, of_labels = chosen(
        none={"records": labels, "attacks": [{"name": "inversion"}, {"name": "labels"}]}, safe=SAFE
    )
    assert every.chosen is of_labels.chosen is None
    assert every.reasons["safe"] == ["labels: labels: it was not run, or left no record"]
    assert images.chosen == "safe" and "every attacker that is after images within 1 dB" in images.statement


def test_a_partial_leak_counts_where_it_is_measured_to_be_within_the_margin_and_a_leak_never(chosen):
    partial = {"psnr": 13.5, "accuracy": 0.7, "defenses": ["blurs"]}
    runs = {"none": NONE, "partial": partial, "leaks": {"psnr": 20.0, "accuracy": 0.75, "defenses": ["rounds"]}}
    (near,) = chosen(1.0, **runs)
    assert near.chosen is None and near.reasons["partial"] == ["inversion: images: 3.5 dB beyond its control"]
    (wide,) = chosen(50.0, **{f"{name}2": given for name, given in runs.items()})
    assert wide.chosen == "partial2" and wide.reasons["leaks2"] == ["inversion: images: leaks"]


def test_one_group_that_leaks_speaks_for_the_setting(chosen):
    (choice,) = chosen(none=NONE, half={**SAFE, "psnr": {0: 9.5, 1: 60.0}, "carriers": [0]})
    assert choice.chosen is None and choice.reasons["half"] == ["inversion: images: leaks"]


def test_a_setting_without_a_recorded_accuracy_is_not_called_cheap(chosen):
    (choice,) = chosen(none=NONE, safe={**SAFE, "accuracy": None})
    assert choice.chosen is None and choice.reasons["safe"] == ["its accuracy was not recorded"]
