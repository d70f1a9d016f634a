"""The plug-ins of the documents are what the documents say: their code is run, and their tables name every field."""

import dataclasses
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.exchange import Finding, Observation

ROOT = Path(__file__).parents[2]


def section(file: str, title: str) -> str:
    """Return what a document says under a heading."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def code(text: str) -> list[str]:
    return [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


def check_example(blocks: list[str], module: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the plug-in of a document under the name that its test imports, and run the test."""
    plugin, test = blocks
    path = folder / f"{module.replace('.', '/')}.py"
    path.parent.mkdir()
    path.write_text(plugin, encoding="utf-8")
    patch.syspath_prepend(str(folder))
    names: dict[str, Any] = {"__name__": "test_of_a_document"}
    exec(test, names)
    tests: list[Callable[[], None]] = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for run in tests:
        run()


def test_the_attack_of_the_readme_works_as_it_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = code(section("README.md", "Add an attack in three edits"))
    check_example(blocks, "my_attacks.sign_of_bias", tmp_path, monkeypatch)


def test_the_defense_of_its_catalogue_works_as_it_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = code(section("defenses/README.md", "Add a defense in three edits"))
    check_example(blocks, "my_package.top_share", tmp_path, monkeypatch)


@pytest.mark.parametrize("cls", [Observation, Finding])
def test_the_readme_documents_every_field_that_a_plugin_meets(cls: type) -> None:
    table = section("README.md", "Add an attack in three edits").partition(f"| field of `{cls.__name__}` |")[2]
    documented = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(cls)]
