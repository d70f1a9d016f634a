"""Phases as a file states them: scenarios of their own, all checked before the first one trains."""

import pytest
import yaml

from fedsim import scenario
from fedsim.errors import ScenarioError
from fedsim.phases import stating

pytestmark = pytest.mark.usefixtures("stubs")

BASE = {
    "name": "two",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": ["stubs:Guess"],
    "audit": {"processes": 0, "calibrate": "none"},
}


@pytest.fixture
def stated(tmp_path):
    """Return a function: phases, settings -> what the file states."""

    def read(phases, *settings, **parts):
        path = tmp_path / "two.yaml"
        path.write_text(yaml.safe_dump({**BASE, **parts, "phases": phases}))
        return stating.read(path, settings)

    return read


@pytest.fixture
def refusal(stated):
    def of(phases, *settings, **parts):
        with pytest.raises(ScenarioError) as caught:
            found, _ = stated(phases, *settings, **parts)
            stating.check(found)
        return str(caught.value)

    return of


def test_a_phase_is_the_file_with_what_it_sets(stated):
    phases, notes = stated(
        [
            {"name": "first", "set": {"federation.rounds": 3, "defenses": [{"name": "stubs:Halves"}]}},
            {"name": "second"},
        ],
        "training.batch_size=4",
    )
    assert notes == []
    first, second = phases
    assert (first.folder, second.folder) == ("1-first", "2-second")
    assert (first.continues, second.continues) == (False, True)
    assert (first.scenario.name, second.scenario.name) == ("two-first", "two-second")
    assert (first.scenario.federation.rounds, second.scenario.federation.rounds) == (3, 1)
    assert len(first.scenario.defenses) == 1 and not second.scenario.defenses
    # A setting belongs to the base: it comes before what a phase sets.
    assert first.scenario.training.batch_size == second.scenario.training.batch_size == 4
    phases, _ = stated([{"name": "first", "set": {"training.batch_size": 2}}], "training.batch_size=4")
    assert phases[0].scenario.training.batch_size == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model.pretrained": False},
        {"model.pretrained": {"central": {"epochs": 1}}},
        {"model": {"name": "vit_nano", "pretrained": False}},
    ],
)
def test_a_phase_that_says_what_it_starts_from_does_not_continue(changes, stated):
    phases, _ = stated([{"name": "first"}, {"name": "second", "set": changes}])
    assert not phases[1].continues


def test_the_start_of_the_file_is_that_of_the_first_phase_alone(stated):
    start = {"central": {"epochs": 2}}
    phases, _ = stated([{"name": "first"}, {"name": "second"}], model={**BASE["model"], "pretrained": start})
    assert phases[0].scenario.model.start.central.epochs == 2
    assert phases[1].continues and phases[1].scenario.model.start is None


def test_a_file_without_phases_has_none(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert stating.read(path) == ([], [])


def test_where_one_run_is_wanted_phases_are_refused(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**BASE, "phases": [{"name": "first"}]}))
    with pytest.raises(ScenarioError, match=r"phases: .*two\.yaml runs in phases, each a run of its own"):
        scenario.load(path)
    with pytest.raises(ScenarioError, match=r"phases: mapping runs in phases"):
        scenario.parse({**BASE, "phases": [{"name": "first"}]}, "mapping")


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        (None, "phases: expected a list of 1 to 20 phases such as {name: first, set: {...}}, got nothing"),
        ([], "phases: expected a list of 1 to 20 phases"),
        ({"first": {}}, "phases: expected a list of 1 to 20 phases"),
        ([{"name": f"p{n}"} for n in range(21)], "phases: expected a list of 1 to 20 phases"),
        (["first"], "phases.0: expected a mapping such as {name: first, set: {...}}, got 'first'"),
        ([{"set": {}}], "phases.0.name: expected 1 to 40 letters"),
        ([{"name": "../x"}], "phases.0.name: expected 1 to 40 letters"),
        ([{"name": "a" * 41}], "phases.0.name: expected 1 to 40 letters"),
        ([{"name": "a", "sets": {}}], "phases.0.sets: unknown key. Did you mean 'set'? Allowed: name, set."),
        ([{"name": "a", "set": [1]}], "phases.0.set: expected keys of the scenario with values, got [1]"),
        ([{"name": "a"}, {"name": "a"}], "phases.1.name: a is the name of a phase before. Choose another."),
        ([{"name": "a", "set": {"name": "b"}}], "phases.0.set: name: it is made of the scenario's and the phase's."),
        ([{"name": "a", "set": {"phases": []}}], "phases.0.set: phases: a phase has none of its own."),
        ([{"name": "a"}, {"name": "b", "set": {"trainings.x": 1}}], "trainings: unknown key."),
    ],
)
def test_what_is_no_phase_is_refused_by_its_key(phases, says, refusal):
    assert refusal(phases).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"defenses": [{"name": "mjp", "params": {"gama": 1}}]}, "defenses.0.params.gama: unknown parameter"),
        ({"federation.rounds": 0}, "federation.rounds: expected at least 1, got 0"),
        (
            {"model.kwargs.depth": 2},
            "model.pretrained: the run two-first does not hold the weights of this model: it lacks",
        ),
        ({"model.kwargs.embed_dim": 32}, "model.pretrained: the run two-first does not hold the weights of this model"),
        (
            {"model.name": "convnet", "model.kwargs": {}},
            "model.pretrained: the run two-first does not hold the weights",
        ),
    ],
)
def test_a_fault_of_a_later_phase_is_found_before_the_first_trains(changes, says, refusal):
    message = refusal([{"name": "first"}, {"name": "second", "set": changes}])
    assert message.startswith(says) and "(in the phase second)" in message


def test_a_head_for_other_classes_and_parts_of_defenses_may_follow(stated):
    phases, _ = stated(
        [
            {"name": "first", "set": {"defenses": ["mjp"], "model.lora": {"rank": 2}}},
            {"name": "second", "set": {"data.classes": 3}},
        ]
    )
    (_, _), (plan, seen) = stating.check(phases)
    assert plan.num_classes == 3
    assert any("the head is fresh" in note for note in seen.notes)
