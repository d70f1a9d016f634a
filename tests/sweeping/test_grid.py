import hashlib
import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ScenarioError
from fedsim.scenario import Assignment, identity, parse
from fedsim.sweeping import grid
from fedsim.sweeping.grid import Setting

SCALARS = st.one_of(
    st.integers(-9, 9), st.booleans(), st.none(), st.text("abcz ,'\"[]{}:#-", max_size=6), st.floats(0, 9, width=16)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
SMALL = {
    "name": "small",
    "seed": 4,
    "engine": "ray",
    "data": {"name": "shapes", "samples": 12},
    "attacks": ["label_count"],
    "defenses": [{"name": "dp_noise", "params": {"noise_multiplier": 0.5}}],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def refusal(do, *arguments):
    with pytest.raises(ScenarioError) as caught:
        do(*arguments)
    return str(caught.value)


def made(file, *over, seeds=1, overrides=(), common=()):
    return grid.cells(str(file), overrides, common, [grid.axis(text) for text in over], seeds)[0]


@settings(max_examples=40)
@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=lambda value: json.dumps(value, sort_keys=True)))
def test_an_axis_has_the_values_of_a_yaml_list_in_their_order(values):
    # JSON is YAML, numbers such as 1e-05 aside.
    text = ",".join(json.dumps(value) for value in values)
    found = grid.axis(f"training.mixup={text}")
    assert [setting.changes for setting in found] == [
        {"training.mixup": value} for value in yaml.safe_load(f"[{text}]")
    ]
    assert len({setting.name for setting in found}) == len(values)


@given(st.lists(st.integers(1, 4), max_size=4))
def test_a_grid_is_the_product_of_its_axes_and_no_two_settings_are_equal(sizes):
    axes = [
        tuple(Setting(f"{letter}={n}", (Assignment(letter, n, letter),)) for n in range(size))
        for letter, size in zip("abcd", sizes, strict=False)
    ]
    found = grid.settings(axes, "alone")
    expected = [
        dict(zip("abcd", chosen, strict=False)) for chosen in itertools.product(*(range(size) for size in sizes))
    ]
    assert [setting.changes for setting in found] == expected
    assert len({setting.name for setting in found}) == len(found)
    assert sizes or found[0].name == "alone"


def test_each_cell_is_the_scenario_that_set_makes_with_a_seed_of_its_own(file):
    cells = made(file, "training.batch_size=1,4", "defenses=[],[{name: mjp, clients: [0]}]", seeds=2)
    assert [(cell.setting.name, cell.seed) for cell in cells] == [
        (f"batch_size={size}, defenses={defense}", seed)
        for size in (1, 4)
        for defense in ("[]", "mjp")
        for seed in (4, 5)
    ]
    for cell in cells:
        assert cell.scenario.seed == cell.seed
        assert cell.scenario.training.batch_size == cell.setting.changes["training.batch_size"]
        assert [part.name for part in cell.scenario.defenses] == (["mjp"] if "mjp" in cell.setting.name else [])
        assert (cell.scenario.engine, cell.scenario.audit.processes) == ("inline", 0)


def test_an_item_of_a_list_and_a_setting_of_all_cells_are_set_too(file):
    common = (Assignment("federation.rounds", 7, "sweep.set"),)
    cells = made(file, "defenses.0.params.noise_multiplier=1e-3,2", overrides=["seed=9"], common=common)
    assert [cell.scenario.defenses[0].params["noise_multiplier"] for cell in cells] == ["1e-3", 2]
    assert {(cell.seed, cell.scenario.federation.rounds) for cell in cells} == {(9, 7)}


@settings(max_examples=20)
@given(order=st.permutations(["1", "2", "3"]), extra=st.booleans())
def test_a_cell_keeps_its_folder_whatever_else_is_in_the_grid(order, extra, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "stable.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    values = ",".join([*order, *(["5"] if extra else [])])
    found = {
        cell.setting.name: cell.folder
        for cell in made(path, f"training.batch_size={values}", seeds=1 + extra)[:: 1 + extra]
    }
    (alone,) = made(path, "training.batch_size=2")
    assert found["batch_size=2"] == alone.folder
    assert len(set(found.values())) == len(found)


def test_a_setting_of_the_command_line_goes_before_one_of_the_sweep_file(file):
    common = (Assignment("training", {"batch_size": 3}, "sweep.set"),)
    (cell,) = made(file, overrides=["training.batch_size=5"], common=common)
    assert cell.scenario.training.batch_size == 5


def test_what_does_not_change_the_records_does_not_change_the_digest(file):
    (plain,) = made(file)
    (inline,) = made(file, overrides=["engine=inline", "audit.processes=3"])
    (other,) = made(file, overrides=["attacks=[blind_guess]"])
    assert plain.digest == inline.digest != other.digest
    assert plain.folder == f"small-s4-{plain.digest}"


def test_names_become_folders_that_every_system_takes(file, tmp_path):
    (tmp_path / "named.yaml").write_text(yaml.safe_dump({"../a b/ä": {"training.batch_size": 2}, "!": {}}))
    starts = {cell.folder.removesuffix(cell.digest) for cell in made(file, f"@{tmp_path / 'named.yaml'}")}
    assert starts == {"a-b-s4-", "run-s4-"}


def test_named_settings_come_from_a_file_beside_values(file, tmp_path):
    named = {"none": {"defenses": []}, "strong": {"defenses": [{"name": "mjp"}], "training.batch_size": 2}}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(named))
    cells = made(file, f"@{tmp_path / 'named.yaml'}", "federation.rounds=1,2")
    assert [cell.setting.name for cell in cells] == [
        "none, rounds=1",
        "none, rounds=2",
        "strong, rounds=1",
        "strong, rounds=2",
    ]
    assert [cell.scenario.training.batch_size for cell in cells] == [1, 1, 2, 2]


def test_a_sweep_file_names_its_scenario_and_its_grid(file, tmp_path):
    content = {
        "scenario": "small.yaml",
        "set": {"federation.rounds": 1},
        "settings": {"none": {"defenses": []}},
        "over": {"training.batch_size": [1, 2]},
        "seeds": 3,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"sweep": content}))
    found = grid.sweep_file(tmp_path / "sweep.yaml")
    assert (found.scenario, found.seeds) == (str(tmp_path / "small.yaml"), 3)
    cells, _ = grid.cells(found.scenario, (), found.common, found.axes, found.seeds)
    assert [cell.setting.name for cell in cells[::3]] == ["none, batch_size=1", "none, batch_size=2"]
    assert grid.sweep_file(file) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training.batch_size", "--over training.batch_size: expected key=a,b,c"),
        ("=1,2", "--over =1,2: expected key=a,b,c"),
        ("a..b=1", "--over a..b=1: expected key=a,b,c"),
        ("training.batch_size=", "--over training.batch_size: expected values with commas between them, got none."),
        ("training.batch_size=1,1", "--over training.batch_size: 1 is given twice."),
        ("training.batch_size=[1", "--over training.batch_size: not valid YAML: "),
        ("@no.yaml", "no.yaml: no such file."),
    ],
)
def test_an_axis_that_means_nothing_is_refused(text, says):
    assert refusal(grid.axis, text).startswith(says)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (["seed=1,2"], "--over seed: a sweep repeats each setting with seeds of its own. Use --seeds."),
        (["name=a,b"], "--over name: it names the sweep as a whole"),
        (
            ["training={batch_size: 2}", "training.batch_size=1,2"],
            "--over training.batch_size: sets training.batch_size, and",
        ),
        (["engine=ray,inline"], "--over: the settings engine=ray and engine=inline come to the same run."),
        (["training.batch_size=1,0"], "training.batch_size: expected at least 1, got 0. (in the setting batch_size=0)"),
        (["trainng.batch_size=1"], "trainng: unknown key. Did you mean 'training'?"),
        (["defenses.3.name=mjp"], "--over defenses.3.name: '3' is not an index of a list of 1."),
    ],
)
def test_a_grid_with_a_cell_that_is_no_scenario_is_refused(over, says, file):
    assert refusal(made, file, *over).startswith(says)


def test_a_grid_that_is_too_large_is_refused_before_it_is_made(file):
    axes = [",".join(map(str, range(1, 101)))] * 3
    over = [f"{key}={values}" for key, values in zip(("a", "b", "c"), axes, strict=True)]
    assert (
        refusal(made, file, *over) == "--over: 1000000 cells, and a sweep may have 10000. Give fewer values or seeds."
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"sweep": {"scenario": "smoke"}, "seed": 3}, "a sweep file holds sweep alone; put seed into the scenario"),
        ({"sweep": []}, "sweep: expected a mapping with scenario, set, settings, over, seeds, got []."),
        ({"sweep": {"scenaro": "smoke"}}, "sweep.scenaro: unknown key. Did you mean 'scenario'?"),
        ({"sweep": {}}, "sweep.scenario: expected the name or the path of a scenario, got nothing."),
        ({"sweep": {"scenario": "smoke", "seeds": True}}, "sweep.seeds: expected how many, at least 1, got true."),
        ({"sweep": {"scenario": "smoke", "over": {"seed": 3}}}, "sweep.over.seed: expected a list of values, got 3."),
        ({"sweep": {"scenario": "smoke", "over": [3]}}, "sweep.over: expected keys with lists of values, got [3]."),
        ({"sweep": {"scenario": "smoke", "settings": ["a"]}}, "sweep.settings: expected names with what each sets"),
        ({"sweep": {"scenario": "smoke", "settings": {"a": 3}}}, "sweep.settings: a: expected keys of the scenario"),
        (
            {"sweep": {"scenario": "smoke", "settings": {"": {}}}},
            "sweep.settings: expected a name of 1 to 60 characters",
        ),
        (
            {"sweep": {"scenario": "smoke", "settings": {"1": {}, 1: {}}}},
            "sweep.settings: two settings have the same name",
        ),
    ],
)
def test_a_sweep_file_that_means_nothing_is_refused(content, says, tmp_path):
    path = Path(tmp_path / "sweep.yaml")
    path.write_text(yaml.safe_dump(content))
    assert says in refusal(grid.sweep_file, path)


def test_cells_keep_their_digest_when_settings_join_that_are_not_used():
    """A sweep that an earlier version began goes on in its folder."""
    content = parse({"name": "old"}, "old").resolved()
    for part, setting, _ in identity._YOUNGER:
        content[part].pop(setting, None)
    del content["engine"], content["audit"]["processes"]
    text = json.dumps(content, sort_keys=True).encode()
    assert grid.digest_of(parse({"name": "old"}, "old")) == hashlib.sha256(text).hexdigest()[:10]
    assert grid.digest_of(parse({"training": {"augment": ["flip"]}}, "x")) != grid.digest_of(parse({}, "x"))
