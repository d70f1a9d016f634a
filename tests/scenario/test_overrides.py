"""`--set`, and what the file paths of a scenario are relative to."""

import pytest

from fedsim.errors import ScenarioError
from fedsim.scenario import load

SOURCE = "name: base\ndata: {name: shapes, samples: 8, classes: 4}\nattacks: [{name: a, params: {x: 1}}, {name: b}]\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scenarios" / "base.yaml"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def loaded(file, *settings):
    return load(file, settings)[0]


def test_a_setting_changes_one_key_and_nothing_else(file):
    changed = loaded(file, "training.batch_size=4")
    assert changed.training.batch_size == 4
    assert changed.model_copy(update={"training": loaded(file).training}) == loaded(file)


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("seed=5", lambda s: s.seed == 5),
        ("training.learning_rate=1e-4", lambda s: s.training.learning_rate == 1e-4),
        ("model.pretrained=true", lambda s: s.model.pretrained is True),
        ("model.kwargs.depth=2", lambda s: s.model.kwargs == {"depth": 2}),
        ("model.kwargs={depth: 2, num_heads: 1}", lambda s: s.model.kwargs == {"depth": 2, "num_heads": 1}),
        ("threat.grants=[labels, training]", lambda s: s.threat.grants == ["labels", "training"]),
        ("threat.grants=[]", lambda s: s.threat.grants == []),
        ("threat.grants.1=labels", lambda s: s.threat.grants == ["batch_size", "labels"]),
        ("audit.clients={fraction: 0.5}", lambda s: s.audit.clients.fraction == 0.5),
        ("audit.clients=0-3", lambda s: s.audit.clients == "0-3"),
        ("data.partition.name=dirichlet", lambda s: s.data.partition.name == "dirichlet"),
        ("data.samples=", lambda s: s.data.params["samples"] is None),
        ("attacks.0.params.x=two = three", lambda s: s.attacks[0].params == {"x": "two = three"}),
        ("attacks.1.params.y.z=[1, 2]", lambda s: s.attacks[1].params == {"y": {"z": [1, 2]}}),
        ("attacks.1.name=c", lambda s: s.attacks[1].name == "c"),
        ("attacks.1={name: c, params: {z: 1}}", lambda s: s.attacks[1].params == {"z": 1}),
        ("name=2026-01-31", lambda s: s.name == "2026-01-31"),
    ],
)
def test_values_are_yaml_at_any_depth(setting, read, file):
    assert read(loaded(file, setting))


def test_later_settings_win_and_build_on_earlier_ones(file):
    changed = loaded(
        file, "seed=1", "training={batch_size: 2}", "training.local_epochs=1", "training.shares=delta", "seed=2"
    )
    assert (changed.seed, changed.training.batch_size, changed.training.local_epochs) == (2, 2, 1)


def test_lists_that_are_left_to_their_default_are_changed_from_there(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n")
    changed = loaded(path, "attacks.0.params.steps=3", "audit.metrics.0=fft2d")
    assert changed.attacks[0].model_dump(exclude_none=True) == {"name": "patch_embedding", "params": {"steps": 3}}
    assert changed.audit.metrics == ["fft2d", "ssim", "label_recall"]
    assert loaded(path).attacks[0].params == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "--set seed: expected a.b=value"),
        ("=1", "--set =1: expected a.b=value"),
        (".seed=1", "--set .seed=1: expected a.b=value"),
        ("seed.x=1", "--set seed.x: "),
        ("name.x=1", "--set name.x: name is a value, not a mapping."),
        ("data.samples.x.y=1", "--set data.samples.x.y: data.samples is a value, not a mapping."),
        ("attacks.2.name=x", "--set attacks.2.name: '2' is not an index of a list of 2."),
        ("attacks.-1.name=x", "--set attacks.-1.name: '-1' is not an index"),
        ("attacks.name=x", "--set attacks.name: 'name' is not an index"),
        ("attacks.²=x", "--set attacks.²: '²' is not an index"),
        ("seed=[", "--set seed: not valid YAML"),
        ("data=3", "data: expected a mapping, got 3."),
    ],
)
def test_settings_that_lead_nowhere_are_refused(setting, message, file):
    if setting == "seed.x=1":
        file.write_text(SOURCE + "seed: 3\n")
    with pytest.raises(ScenarioError) as caught:
        load(file, [setting])
    assert str(caught.value).startswith(message)


# Another data source


def test_exchanging_the_source_drops_what_the_new_one_does_not_have_and_says_so(file):
    changed, notes = load(file, ["data.name=photos"])
    assert changed.data.params == {"samples": 8}
    assert notes == ["data.name is now 'photos': dropped classes, which it does not have"]


def test_exchanging_the_source_keeps_the_partition_and_what_both_have(file):
    file.write_text("data: {name: shapes, samples: 8, partition: {name: shards}}\n")
    changed, notes = load(file, ["data.name=folder", "data.path=/pictures"])
    assert (changed.data.name, changed.data.partition.name) == ("folder", "shards")
    assert changed.data.params == {"samples": 8, "path": "/pictures"}
    assert notes == []


def test_naming_the_source_that_it_is_drops_nothing(file):
    assert load(file, ["data.name=shapes"])[0] == loaded(file)
    file.write_text("data: {extra: 1}\n")
    assert load(file, ["data.name=photos"])[0].data.params == {"extra": 1}


# File paths


@pytest.mark.parametrize("key", ["data.path", "data.test_path", "data.root", "model.pretrained"])
def test_paths_in_the_file_are_relative_to_the_file(key, file, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    part, name = key.split(".")
    file.write_text(f"{part}: {{{name}: x}}\n")
    assert loaded(file).resolved()[part][name] == str(file.parent / "x")
    file.write_text(f"{part}: {{{name}: ../x}}\n")
    assert loaded(file).resolved()[part][name] == str(tmp_path / "x")
    file.write_text(f"{part}: {{{name}: /x}}\n")
    assert loaded(file).resolved()[part][name] == "/x"


@pytest.mark.parametrize(
    "setting", ["data.path=x", "data={name: folder, path: x}", "model.pretrained=x", "model={pretrained: x}"]
)
def test_paths_in_a_setting_are_relative_to_the_working_directory_then_to_the_file(
    setting, file, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def resolved():
        content = loaded(file, setting).resolved()
        return content["data"].get("path") or content["model"]["pretrained"]

    assert resolved() == str(work / "x")
    (file.parent / "x").write_text("")
    assert resolved() == str(file.parent / "x")
    (work / "x").write_text("")
    assert resolved() == str(work / "x")


def test_a_home_directory_is_expanded(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loaded(file, "data.path=~/x").data.params["path"] == str(tmp_path / "x")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", '"a\\0b"'])
def test_a_path_that_no_file_system_has_is_refused(path, file):
    with pytest.raises(ScenarioError, match=r"^data.path: .* cannot be a path"):
        load(file, [f"data.path={path}"])


def test_switches_and_parameters_of_other_names_are_left_alone(file):
    changed = loaded(file, "model.pretrained=true", "data.image_column=x", "attacks.0.params.path=x")
    assert changed.model.pretrained is True
    assert changed.data.params["image_column"] == "x"
    assert changed.attacks[0].params["path"] == "x"
