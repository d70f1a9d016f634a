"""A report of a run in which every string is hostile: nothing of it is obeyed, by a browser, a terminal or a spreadsheet."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import hostile
import pytest
from pages import Page
from rich.console import Console

from fedsim.report import pdf, render

pytestmark = pytest.mark.usefixtures("drawn_once")

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("hostile") / "run"))
    assert hostile.spoil(run) > 100
    return run


@pytest.fixture
def run(spoiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(spoiled, tmp_path / "run"))


def pages(run: Path, tmp_path: Path) -> tuple[Page, Page]:
    """Return the page of a run, and that of the same run with harmless strings in the same places."""
    usual = Path(shutil.copytree(GOLDEN, tmp_path / "usual"))
    hostile.spoil(usual, hostile.HARMLESS)
    return Page(render(run).read_text(encoding="utf-8")), Page(render(usual).read_text(encoding="utf-8"))


def test_hostile_strings_add_no_element_no_attribute_and_no_address_to_the_page(run: Path, tmp_path: Path) -> None:
    page, usual = pages(run, tmp_path)
    assert page.open == [] and page.script == usual.script
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in usual.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert names == {name for _, attributes in usual.tags for name in attributes}
    assert all(image["src"].startswith("data:image/") for image in page.attributes("img"))
    links = [link["href"] for link in page.attributes("a")]
    assert all(re.match(r"#|artifacts/|tables/|https?://", link) for link in links), links
    assert hostile.MARK in page.text, "they are shown"


def test_hostile_strings_are_no_formula_in_a_table(run: Path) -> None:
    render(run)
    tables = list((run / "tables").iterdir())
    cells = [c for file in tables for row in csv.reader(io.StringIO(file.read_text(), newline="")) for c in row]
    assert tables and sum(hostile.MARK in cell for cell in cells) > 10
    assert not [cell for cell in cells if cell.lstrip(" ").startswith(("=", "+", "@", "\t", "\r"))]


def test_hostile_strings_reach_no_terminal(run: Path, fedsim, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    # A narrow terminal folds words.
    monkeypatch.setattr("fedsim.cli.terminal.out", Console(markup=False, emoji=False, width=1000))
    done = fedsim("records", run)
    assert "owned" in done.output
    assert not re.search(r"[^\x0a\x20-\x7e\u00a1-\u2027\u2030-\ufffd]", done.output)


# In a browser


def opened(browser: Path, page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document as it is once the page has loaded, and what it wrote to the console."""
    flags = [*pdf._FLAGS, "--no-sandbox", f"--user-data-dir={profile}", "--virtual-time-budget=1000"]
    command = [browser, *flags, "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_no_hostile_script_runs_in_a_browser_with_or_without_the_policy_of_the_page(
    run: Path, browser: Path, tmp_path: Path
) -> None:
    text = render(run).read_text(encoding="utf-8")
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bare != text, "escaping is looked at alone as well"
    for name, content in (("guarded", text), ("bare", bare)):
        (tmp_path / f"{name}.html").write_text(content, encoding="utf-8")
        document, console = opened(browser, tmp_path / f"{name}.html", tmp_path / "profile")
        assert "data-intruder" not in document and not console, name
        assert "data-theme" in document or "<h1" in document


def test_the_same_strings_do_run_where_a_page_does_not_escape_them(browser: Path, tmp_path: Path) -> None:
    careless = tmp_path / "careless.html"
    careless.write_text(f"<h1>{hostile.TEXT}</h1><script>console.error('heard')</script>", encoding="utf-8")
    document, console = opened(browser, careless, tmp_path / "profile")
    assert "data-intruder" in document and any("heard" in line for line in console)
