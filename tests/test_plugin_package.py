"""The plug-in door, proven by a real distribution that is built, installed and used through its entry points."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import module

PACKAGE = Path(__file__).parent / "plugin_package"
SCENARIO = """
name: third-party
engine: inline
data: {name: shapes, samples: 24, test_samples: 8, auxiliary_samples: 8}
model: {name: vit_nano}
federation: {clients: 2, rounds: 1}
defenses:
  - {name: top_k, clients: [1], params: {keep: 1e-3}}
attacks:
  - {name: sign_of_bias}
  - {name: round_labels}
  - {name: gradient_matching, params: {steps: 2, distance: l1, priors: {near_grey: {weight: 1.0, level: 0.4}}}}
audit: {metrics: [label_recall], processes: 1}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the distribution installed in it, from its own wheel, without a network."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(PACKAGE)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_its_wheel_holds_the_package_alone(site: Path) -> None:
    installed = {path.name for path in site.iterdir()} - {"__pycache__"}
    assert installed == {"fedsim_example_plugins", "fedsim_example_plugins-1.2.3.dist-info"}


def test_it_is_listed_with_its_first_line_its_grant_and_its_parameters(site: Path) -> None:
    listed = json.loads(module("fedsim", "list", "attacks", "--json", path=site, cwd=site))
    (own,) = (one for one in listed if one["name"] == "sign_of_bias")
    assert own["summary"] == "Sign of the bias gradient: the label of a single image."
    assert own["needs"] == ["batch_size"]
    assert [(one["name"], one["default"]) for one in own["parameters"]] == [("parameter", "head.bias")]


@pytest.mark.slow
def test_a_scenario_names_it_and_its_records_say_where_it_came_from(site: Path, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    module("fedsim", "run", "scenario.yaml", "--out", "out", path=site, cwd=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    first, second = (record for record in records if record["attack"]["name"] == "sign_of_bias")
    (of_round,) = (record for record in records if record["attack"]["name"] == "round_labels")
    assert of_round["client"] is None
    assert of_round["view"] == {"scope": "round", "rounds": [1], "clients": [0, 1], "is_sum": False}
    assert of_round["scores"]["label_recall"]["value"] == 1.0
    matched = [record for record in records if record["attack"]["name"] == "gradient_matching"]
    assert [record["status"] for record in matched] == ["found", "found"]
    assert matched[0]["attack"]["params"]["priors"] == {"near_grey": {"weight": 1.0, "level": 0.4}}
    assert matched[0]["attack"]["params"]["distance"] == "l1"
    identity = {"name": "sign_of_bias", "version": "1.2.3", "distribution": "fedsim-example-plugins"}
    for record in (first, second):
        assert identity.items() <= record["attack"].items()
        assert record["attack"]["params"] == {"parameter": "head.bias"}
        assert record["status"] == "found"
    assert (first["client"], first["defenses"]) == (0, [])
    assert first["scores"]["label_recall"]["value"] == 1.0
    assert second["client"] == 1
    assert [(d["name"], d["params"]) for d in second["defenses"]] == [("top_k", {"keep": 1e-3})]
    assert 0 <= second["scores"]["label_recall"]["value"] <= 1
    assert any("Pruning is a heuristic" in caution for caution in second["cautions"])
    assert "https://arxiv.org/abs/2001.02610" in (tmp_path / "out" / "report.html").read_text()
    assert "https://arxiv.org/abs/1704.05021" in (tmp_path / "out" / "report.html").read_text()


def test_its_readme_prints_the_files_as_they_are() -> None:
    blocks = readme_blocks()
    assert all(block in (PACKAGE / "pyproject.toml").read_text() for block in blocks["toml"])
    for block, name in ((0, "sign_of_bias"), (2, "near_grey"), (3, "l1")):
        assert blocks["python"][block] == (PACKAGE / "fedsim_example_plugins" / f"{name}.py").read_text()


@pytest.mark.slow
def test_its_own_tests_and_the_one_in_its_readme_pass_where_it_is_installed(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_readme.py").write_text(readme_blocks()["python"][1])
    options = ["-q", "-p", "no:cacheprovider", "-c", str(PACKAGE / "pyproject.toml")]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported already
    printed = module("pytest", *options, PACKAGE / "tests", tmp_path, path=site, cwd=site)
    assert re.search(r"^\d+ passed in", printed, re.MULTILINE)


def readme_blocks() -> dict[str, list[str]]:
    """Return the code blocks of the distribution's README by language."""
    found: dict[str, list[str]] = {}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL):
        found.setdefault(language, []).append(code)
    return found
