"""The scenarios that ship with fedsim: found by name from anywhere, and what is said where nothing is found."""

import tomllib
from pathlib import Path

import pytest
import yaml

from fedsim import scenario, shipped
from fedsim.errors import ScenarioError
from fedsim.phases import stating
from fedsim.sweeping import grid

ROOT = Path(__file__).parents[1]


def refusal(named):
    with pytest.raises(ScenarioError) as caught:
        shipped.find(named)
    return str(caught.value)


def test_every_scenario_of_the_gallery_has_a_name_and_a_line_and_goes_into_the_wheel():
    assert shipped.names() == sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))
    for name in shipped.names():
        # The line is a whole sentence: it does not go on in the next one.
        assert shipped.summary(name)[-1] in ".?", name
        if not stating.read(shipped.path(name))[0]:
            scenario.load(shipped.path(name))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"scenarios": "fedsim/scenarios"}


def test_the_installed_ones_go_before_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "site" / "fedsim" / "shipped.py"))
    assert shipped.names() == []
    for folder, name in (
        (tmp_path / "site" / "scenarios", "beside"),
        (tmp_path / "site" / "fedsim" / "scenarios", "in"),
    ):
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text("# One.\nname: one\n")
    assert shipped.names() == ["in"]
    assert shipped.summary("in") == "One."


def test_a_name_works_from_anywhere_and_a_file_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()
    assert shipped.find("quickstart") == shipped.path("quickstart")
    assert shipped.find("smoke") == shipped.path("smoke"), "a folder is no scenario"
    (tmp_path / "quickstart").write_text("name: mine\n")
    assert shipped.find("quickstart") == Path("quickstart")
    assert shipped.find(str(tmp_path / "quickstart")) == tmp_path / "quickstart"


def test_what_is_neither_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_audit.yaml").write_text("")
    assert refusal("quikstart").startswith(
        "quikstart: no such file, and no scenario that ships with fedsim. Did you mean 'quickstart'? Known: "
        "adversarial_training, "
    )
    assert refusal("my_audti.yaml") == "my_audti.yaml: no such file. Did you mean 'my_audit.yaml'?"
    assert refusal("scenarios/quickstart.yaml") == (
        "scenarios/quickstart.yaml: no such file. The scenario that ships with fedsim goes by its name alone: quickstart."
    )
    assert refusal("none/other.yaml") == "none/other.yaml: no such file."


def test_a_shipped_scenario_is_checked_by_its_name_and_runs_under_it(fedsim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = fedsim("run", "smoke", "--set", "attacks=[]", "--set", "federation.rounds=1", "--out", "run")
    assert outcome.code == 0, outcome.output
    assert yaml.safe_load((tmp_path / "run" / "scenario.yaml").read_text())["name"] == "smoke"
    assert "Did you mean 'smoke'?" in fedsim("check", "smok").message


def test_sweep_files_go_by_name_and_every_cell_of_them_is_a_scenario(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.sweeps() == [
        "defenses",
        "defenses_cifar10",
        "dp_sgd_cifar10",
        "jigsaw",
        "robustness_cifar10",
        "robustness_gain_cifar10",
        "robustness_vit_cifar10",
    ] and not {*shipped.sweeps()} & {*shipped.names()}
    for name in shipped.sweeps():
        stated = grid.sweep_file(shipped.find_for_sweep(name))
        cells, _ = grid.cells(stated.scenario, (), stated.common, stated.axes, stated.seeds)
        assert len(cells) == 3 * len(stated.axes[0]) and len({cell.digest for cell in cells}) == len(cells)
        sizes = {"samples", "test_samples"}
        assert all(sizes <= {*cell.scenario.data.params} for cell in cells), (
            f"{name}: figures hang on how many images there are"
        )
    assert shipped.find_for_sweep("smoke") == shipped.path("smoke")
    (tmp_path / "defenses").write_text("mine")
    assert shipped.find_for_sweep("defenses") == Path("defenses")
