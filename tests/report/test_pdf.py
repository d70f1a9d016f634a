"""Printing a report: which browser, and what comes of one that fails, hangs or is missing. Browsers here are shell scripts."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fedsim.errors import FedsimError, RunFolderError
from fedsim.report import pdf

PRINTS = 'for a in "$@"; do case $a in --print-to-pdf=*) printf "%%PDF-1.4 $#" > "${a#*=}";; esac; done'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "report.html").write_text("<p>a report")
    return path


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_named_browser_comes_before_that_of_the_environment_and_that_before_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("google-chrome", "chromium", "named", "stated"):
        program(tmp_path / name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pdf.browser() == tmp_path / "chromium"
    monkeypatch.setenv(pdf.VARIABLE, "stated")
    assert pdf.browser() == tmp_path / "stated"
    assert pdf.browser(str(tmp_path / "named")) == tmp_path / "named"


def test_without_a_browser_the_message_says_what_was_looked_for_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(pdf.VARIABLE, raising=False)
    with pytest.raises(FedsimError, match=r"looked for chromium, .*Install Chromium or Chrome.* FEDSIM_BROWSER"):
        pdf.browser()
    with pytest.raises(FedsimError, match=r"^--browser: nothing-there is no program"):
        pdf.browser("nothing-there")
    monkeypatch.setenv(pdf.VARIABLE, "gone")
    with pytest.raises(FedsimError, match=rf"^{pdf.VARIABLE}: gone is no program"):
        pdf.browser()


def test_what_the_browser_prints_is_written_and_nothing_is_left_behind(folder: Path, tmp_path: Path) -> None:
    target = pdf.write(folder, program(tmp_path / "browser", PRINTS))
    assert target == folder / "report.pdf" and target.read_bytes().startswith(b"%PDF-1.4")
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.pdf"}


def test_the_browser_is_given_the_page_a_profile_of_its_own_and_no_network(folder: Path, tmp_path: Path) -> None:
    pdf.write(folder, program(tmp_path / "browser", f'printf "%s\\n" "$@" > {tmp_path}/given; {PRINTS}'))
    given = (tmp_path / "given").read_text().splitlines()
    assert given[-1] == (folder / "report.html").as_uri()
    assert "--headless" in given and "--host-resolver-rules=MAP * ~NOTFOUND" in given
    (profile,) = (argument.partition("=")[2] for argument in given if argument.startswith("--user-data-dir="))
    assert not Path(profile).parent.exists()


def is_running(process: Path) -> bool:
    with contextlib.suppress(OSError):
        return " Z " not in (process / "stat").read_text()
    return False


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no display >&2; exit 3", r"printed no PDF of .*report\.html \(exit code 3, no display\)"),
        ('for a in "$@"; do case $a in --print-to-pdf=*) echo text > "${a#*=}";; esac; done', "printed no PDF"),
    ],
)
def test_a_browser_that_prints_nothing_leaves_the_former_pdf_alone(
    folder: Path, tmp_path: Path, script: str, message: str
) -> None:
    (folder / "report.pdf").write_bytes(b"former")
    with pytest.raises(FedsimError, match=message):
        pdf.write(folder, program(tmp_path / "browser", script))
    assert (folder / "report.pdf").read_bytes() == b"former"


def test_a_browser_that_hangs_is_ended_with_what_it_started(folder: Path, tmp_path: Path) -> None:
    hanging = program(tmp_path / "browser", f"sleep 60 & echo $! > {tmp_path}/child; wait")
    start = time.monotonic()
    with pytest.raises(FedsimError, match=r"has not printed .* after 0\.3 s, and was ended"):
        pdf.write(folder, hanging, 0.3)
    assert time.monotonic() - start < 20
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    # What was killed ends a little later, and may wait for its new parent to notice.
    while is_running(child) and time.monotonic() - start < 20:
        time.sleep(0.02)
    assert not is_running(child)


def test_a_browser_ends_with_a_process_that_is_told_to_end(folder: Path, tmp_path: Path) -> None:
    hanging = program(tmp_path / "browser", f"sleep 60 & echo $! > {tmp_path}/child; kill -TERM {os.getpid()}; wait")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        pdf.write(folder, hanging, 30.0)
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    child, start = Path("/proc") / (tmp_path / "child").read_text().strip(), time.monotonic()
    while is_running(child) and time.monotonic() - start < 20:
        time.sleep(0.02)
    assert not is_running(child)


def test_a_file_that_is_no_program_is_an_error(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "browser"
    broken.write_bytes(b"\x7fELF broken")
    broken.chmod(0o755)
    with pytest.raises(FedsimError, match="cannot be started"):
        pdf.write(folder, broken)


def test_no_link_is_written_through(folder: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", folder / "report.pdf")
    with pytest.raises(RunFolderError, match="a symbolic link"):
        pdf.write(folder, program(tmp_path / "browser", PRINTS))
    assert not (tmp_path / "elsewhere").exists()


def test_the_option_is_refused_without_pdf_and_before_anything_is_rendered(fedsim, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = Path(shutil.copytree(Path(__file__).parents[1] / "golden" / "run", tmp_path / "run"))
    done = fedsim("report", run, "--browser", "x")
    assert done.code == 2 and "report --browser: belongs to --pdf" in done.message
    done = fedsim("report", run, "--pdf", "--browser", "x")
    assert done.code == 2 and "--browser: x is no program" in done.message
    assert not (run / "report.html").exists()
