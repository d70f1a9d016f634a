"""The index of phases, made from run folders written by hand."""

import pytest
from runs import write_run

from fedsim.errors import RunFolderError
from fedsim.phases import rendering
from fedsim.phases.folder import PhasesFolder
from fedsim.phases.stating import Phase
from fedsim.scenario import Scenario


@pytest.fixture
def folder(tmp_path):
    phases = [
        Phase(name, f"{number}-{name}", Scenario(name=f"two-{name}"), number > 1)
        for number, name in enumerate(("first", "second"), 1)
    ]
    return PhasesFolder.create(tmp_path / "whole", "two", "two.yaml", phases)


def table(page):
    return page.read_text().partition("<tbody>")[2].partition("</tbody>")[0]


def test_phases_that_have_not_begun_have_no_result(folder):
    assert table(rendering.render(folder)).count("not begun") == 2
    assert "<a " not in table(rendering.render(folder))


def test_the_index_tells_of_each_phase_and_links_its_report(folder):
    first = write_run(folder.path / "1-first", psnr={0: 18.0, 1: 60.0}, accuracy=0.625)
    (first / "report.html").write_text("")
    page = rendering.render(folder)
    shown = table(page)
    assert '<a href="1-first/report.html">first</a>' in shown and shown.count("not begun") == 1
    assert "<td>2 of 2</td><td>0.625</td>" in shown
    assert "images of client 1 by inversion: PSNR 60.0 dB" in shown
    assert "<strong>first</strong>: " in page.read_text() and "<strong>second</strong>" not in page.read_text()
    content = page.read_bytes()
    assert rendering.render(folder).read_bytes() == content, "it is a function of the folder"


def test_what_finds_nothing_says_so(folder):
    write_run(folder.path / "1-first", psnr=10.0, accuracy=None)
    assert "none found" in table(rendering.render(folder))


def test_a_phase_without_an_attack_does_not_pass_for_one_that_nothing_was_found_in(folder):
    write_run(folder.path / "1-first", records=[], attacks=[])
    shown = table(rendering.render(folder))
    assert "no attack has looked" in shown and "none found" not in shown


def test_text_of_a_run_is_no_html(folder):
    manifest = folder.read()
    folder.write(manifest.model_copy(update={"name": "<script>x</script>"}))
    assert "<script>x" not in rendering.render(folder).read_text()


def test_an_index_is_not_written_through_a_link(folder, tmp_path):
    (folder.path / "index.html").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="a symbolic link"):
        rendering.render(folder)
