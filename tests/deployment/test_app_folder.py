import io
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedsim import wire
from fedsim.deployment import app_folder

ROOT = Path(__file__).parent.parent.parent


def bundled(folder):
    from flwr.cli.build import build_fab_from_disk

    content = io.BytesIO(build_fab_from_disk(folder))
    with zipfile.ZipFile(content) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist() if not name.startswith(".info/")}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of pathspec, which Flower uses
def test_the_repository_and_the_written_folder_are_the_same_app(tmp_path):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert ours == app_folder.table()
    own, written = bundled(ROOT), bundled(app_folder.write(tmp_path / "app"))
    assert own.keys() == written.keys() == {"pyproject.toml", *ours["fab-include"]}
    assert all(own[name] == written[name] for name in ours["fab-include"])


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_flower_finds_the_components(tmp_path, component):
    from flwr.supercore.object_ref import validate

    reference = app_folder.table()["components"][component]
    for folder in (ROOT, app_folder.write(tmp_path / "app")):
        assert validate(reference, project_dir=folder) == (True, None)


def test_a_node_says_who_it_is_in_the_words_of_the_wire():
    from fedsim.flower_app import client

    assert (client.NODE, client.PARTITION) == (wire.NODE, wire.PARTITION)
