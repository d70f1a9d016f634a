"""The scenario that `fedsim init` writes: valid, complete, true in its comments, and never over another file."""

import re

import pytest
import yaml

from fedsim import scenario
from fedsim.cli import starter
from fedsim.scenario import Scenario

# What a commented line of the template shows where the default is none, or depends on others.
NO_DEFAULT = {
    "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "local_steps": 5,
    "local_epochs": 1,
    "clip_norm": 1.0,
    "mixup": 1.0,
    "trainable": ["head.*"],
    "lora": {"rank": 4},
    "precode": {"size": 256, "beta": 0.001},
    "attack_memory": 4096,
    "loss": "my_app.task:loss",
    "truth": "my_app.truth:batches",
}
DATA = {"name": "folder", "path": "images"}


def commented(text):
    """Return what the commented keys of a scenario say, by section."""
    found, section = {}, ""
    for line in text.splitlines():
        if opened := re.match(r"(\w+):", line):
            section = opened[1]
        elif line.startswith("  # "):
            found.setdefault(section, {}).update(yaml.safe_load(line.strip()[2:]))
    return found


def test_it_is_a_scenario_of_that_name_which_names_every_key():
    text = starter.text("my-audit")
    parsed = scenario.parse(yaml.safe_load(text), "starter")
    assert parsed.name == "my-audit"
    defaults, shown = Scenario().resolved(), commented(text)
    for section, values in Scenario.model_fields.items():
        part = values.annotation
        if hasattr(part, "model_fields") and section != "data":
            assert {*yaml.safe_load(text)[section], *shown.get(section, {})} == set(part.model_fields), section
    assert shown.pop("data") == DATA
    for section, values in shown.items():
        expected = {key: defaults[section][key] for key in values if key not in NO_DEFAULT}
        assert {key: value for key, value in values.items() if key not in NO_DEFAULT} == expected
        assert {key: value for key, value in values.items() if key in NO_DEFAULT}.items() <= NO_DEFAULT.items()


def test_it_passes_its_own_check_and_is_never_written_over_a_file(fedsim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = fedsim("init", "mine")
    assert (outcome.code, outcome.output.partition(".yaml")[0]) == (0, "Wrote mine")
    assert fedsim("check", "mine.yaml").code == 0
    before = (tmp_path / "mine.yaml").read_text()
    again = fedsim("init", "mine.yaml")
    assert (again.code, again.message) == (
        2,
        "fedsim: mine.yaml: exists, and is left as it is. Give another name: fedsim init NAME.\n",
    )
    assert (tmp_path / "mine.yaml").read_text() == before
    assert fedsim("init").code == 0 and (tmp_path / "scenario.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [("-x", "No such option"), ("a b", "expected a name of letters, digits"), ("none/x", "none/x.yaml: No such file")],
)
def test_a_name_that_cannot_be_one_is_refused(name, says, fedsim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = fedsim("init", name)
    assert outcome.code == 2 and says in outcome.message
    assert list(tmp_path.iterdir()) == []
