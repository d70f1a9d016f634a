"""Which distribution this is, and what is said where another project's of the same package is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import fedsim
from fedsim import installation
from fedsim.errors import FedsimError
from fedsim.recording import environment

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("console_scripts", "fedsim.attacks")


class Installed(metadata.Distribution):
    """A distribution of a version and groups of entry points, without files."""

    def __init__(self, version, groups):
        self._version, self._groups = version, groups

    @property
    def version(self):
        return self._version

    @property
    def entry_points(self):
        return [SimpleNamespace(group=group) for group in self._groups]

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def beside(monkeypatch):
    """Return a function that makes these distributions, each with its groups of entry points, all that is installed."""

    def install(version, **groups):
        def distribution(name):
            if name not in groups:
                raise metadata.PackageNotFoundError(name)
            return Installed(version, groups[name])

        monkeypatch.setattr(installation, "distribution", distribution)

    return install


def test_the_other_project_of_that_name_is_refused_by_every_command_and_by_observe(beside, fedsim):
    beside("0.9.0", fedsim=["console_scripts"], **{"fedsim-audit": OURS})
    outcome = fedsim("list", "metrics")
    assert outcome.code == 2
    assert "the distribution fedsim 0.9.0, an unrelated project, is installed too" in outcome.message
    assert "pip uninstall fedsim fedsim-audit" in outcome.message
    with pytest.raises(FedsimError, match=r"fedsim 0\.9\.0"):
        __import__("fedsim").observe  # noqa: B018  (looked up when asked for)


def test_this_project_twice_is_refused(beside, fedsim):
    beside("0.1.0", fedsim=OURS, **{"fedsim-audit": OURS})
    outcome = fedsim("--version")
    assert (outcome.code, outcome.message.partition(", as")[0]) == (2, "fedsim: this project is installed twice")
    assert "pip uninstall fedsim)" in outcome.message


@pytest.mark.parametrize("groups", [{}, {"fedsim-audit": OURS}, {"fedsim": OURS}])
def test_alone_under_either_name_or_from_a_folder_it_works(groups, beside, fedsim):
    beside("0.1.0", **groups)
    assert fedsim("--version").output == "fedsim 0.1.0\n"


def test_records_keep_the_name_that_users_know():
    assert installation.recorded("fedsim-audit") == "fedsim"
    assert installation.recorded("somebody-elses") == "somebody-elses"
    assert installation.recorded(None) is None
    assert environment.describe("simulated")["packages"]["fedsim"] == fedsim.__version__


def test_one_name_and_one_version_everywhere():
    assert PROJECT["name"] == installation.NAME
    assert PROJECT["version"] == fedsim.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fedsim.__version__
    extras = {extra for text in PROJECT["optional-dependencies"]["dev"] for extra in re.findall(r"^([\w-]+)\[", text)}
    assert extras == {installation.NAME}
