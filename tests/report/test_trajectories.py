"""Trajectories in the report: the images, the curves and the table, and nothing of it where no attack saved one."""

import base64
import csv
import inspect
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fedsim.recording.records import Record
from fedsim.report import plots, render
from fedsim.report.naming import Naming
from fedsim.report.reading import read

pytestmark = pytest.mark.usefixtures("drawn_once")

GOLDEN = Path(__file__).parents[1] / "golden"
SHOWN = (0, 10, 40)
TRAJECTORY = {
    "steps": [0, 10, 20, 40],
    "losses": [1.0, 0.1, None, 0.001],
    "psnr": [8.0, 12.0, 14.0, 21.5],
    "control": {"name": "own_mean", "value": 18.25},
    "shown": list(SHOWN),
}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def write(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_trajectory(line: dict[str, Any], run: Path, size: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    path = f"artifacts/round-{line['round']:04d}/client-{line['client']:03d}/trajectory.png"
    columns = len(SHOWN) + 1
    Image.new("RGB", (columns * size[0] + size[0] // 8, 2 * size[1]), "navy").save(run / path)
    return {**line, "film": TRAJECTORY, "artifacts": {**line["artifacts"], "film": path}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the stored run, in which every finding with images has a trajectory."""
    folder = Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))
    write(
        folder,
        [
            with_trajectory(line, folder) if "reconstructions" in line["artifacts"] else line
            for line in lines_of(folder)
        ],
    )
    return folder


def images(run: Path) -> list[dict[str, str]]:
    found = re.findall(r"<img ([^>]*)>", render(run).read_text(encoding="utf-8"))
    return [dict(re.findall(r'(\w+)="([^"]*)"', attributes)) for attributes in found]


def trajectories(run: Path) -> list[dict[str, str]]:
    return [image for image in images(run) if image["alt"].startswith("Trajectory of ")]


def test_the_trajectory_stands_under_the_images_of_its_client_and_round_with_its_steps(run: Path) -> None:
    alternatives = [image["alt"] for image in images(run)]
    for round in (1, 2):
        trajectory = alternatives.index(
            f"Trajectory of golden_inversion, client 0, round {round}: iterations 0, 10, 40, and the originals"
        )
        assert alternatives[trajectory - 1].startswith(f"golden_inversion, client 0, round {round}: PSNR")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<span>0</span><span>10</span><span>40</span><span></span><span>original</span>" in page
    assert page.count('class="trajectory"') == len(trajectories(run)) == 3


def test_small_trajectories_are_enlarged_sharply_and_large_ones_embedded_at_the_size_they_are_shown(run: Path) -> None:
    small = trajectories(run)[0]
    assert (small["width"], small["height"], small["class"]) == ("264", "128", "crisp")
    write(run, [with_trajectory(line, run, (224, 224)) if "film" in line else line for line in lines_of(run)])
    large = trajectories(run)[0]
    assert (large["width"], large["height"]) == ("264", "128") and "class" not in large
    content = base64.b64decode(large["src"].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (264, 128)


def test_a_trajectory_in_a_narrow_card_makes_it_wide(run: Path) -> None:
    assert render(run).read_text().count("card wide") == len(
        {line["client"] for line in lines_of(run) if "film" in line}
    )


def test_the_curves_of_the_first_and_the_last_round_say_who_drew_the_psnr(run: Path) -> None:
    page = render(run).read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(golden_inversion, round \d+: [^<]*)</figcaption>", page)
    assert [caption[: len("golden_inversion, round 1")] for caption in captions] == [
        "golden_inversion, round 1",
        "golden_inversion, round 2",
    ]
    assert all("PSNR was drawn afterwards by the auditor; no attack ever saw it." in caption for caption in captions)
    assert "PSNR from first to last: client 0" in page and "8.0 dB to 21.5 dB" in page


def test_the_markdown_links_the_trajectories_and_sums_up_the_curves(run: Path) -> None:
    render(run)
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "[trajectory of golden_inversion](artifacts/round-0001/client-000/trajectory.png)" in markdown
    assert "| golden_inversion | 1 | 0 | 0 to 40 | 1 to 0.001 | 8.0 dB to 21.5 dB | 18.2 dB (own_mean) |" in markdown


def test_the_table_has_a_row_per_frame(run: Path) -> None:
    render(run)
    with (run / "tables" / "films.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["attack", "round", "client", "step", "loss", "psnr"]
    assert len(rows) == 4 * sum("film" in line for line in lines_of(run))
    assert list(rows[1].values()) == ["golden_inversion", "1", "0", "10", "0.1", "12"]
    assert rows[2]["loss"] == ""


def test_a_run_without_trajectories_has_no_section_and_no_table(run: Path) -> None:
    write(run, lines_of(GOLDEN / "run"))
    page = render(run).read_text(encoding="utf-8")
    assert "against iteration" not in page and 'class="trajectory"' not in page
    assert "against iteration" not in (run / "report.md").read_text(encoding="utf-8")
    assert not (run / "tables" / "films.csv").exists()


def test_a_trajectory_whose_image_is_missing_or_elsewhere_is_noted_and_its_curve_shown(run: Path) -> None:
    lines = lines_of(run)
    (run / lines[0]["artifacts"]["film"]).unlink()
    where = next(index for index, line in enumerate(lines[1:], 1) if "film" in line)
    lines[where]["artifacts"]["film"] = "../secret.png"
    write(run, lines)
    page = render(run).read_text(encoding="utf-8")
    assert f"{lines[0]['artifacts']['film']}: no such file." in page
    assert "../secret.png: outside the run folder, not shown." in page
    assert "golden_inversion, round 1: its loss" in page


@pytest.mark.parametrize(
    "damage", [{"losses": [1.0]}, {"psnr": "high"}, {"steps": [], "losses": [], "psnr": []}, {"shown": []}]
)
def test_a_damaged_trajectory_leaves_its_line_out_with_a_note(run: Path, damage: dict[str, Any]) -> None:
    lines = lines_of(run)
    lines[0]["film"] = {**TRAJECTORY, **damage}
    write(run, lines)
    render(run)
    (note,) = (note for note in read(run).notes if note.startswith("records.jsonl"))
    assert note.startswith("records.jsonl, line 1: film")


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([1.0, 0.1, None, 1e-4], "log"),
        ([1.0, 0.0, 0.5, 0.25], "log"),
        ([0.0] * 4, "linear"),
        ([None] * 4, "linear"),
        ([-1.0, 2.0, 1.0, 1.0], "linear"),
    ],
)
def test_losses_are_drawn_on_a_logarithm_where_they_have_one(
    run: Path, losses: list[float | None], scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line, *_) = lines_of(run)
    records = [Record.model_validate({**line, "film": {**TRAJECTORY, "losses": losses}})]
    drawn = Figure()
    with monkeypatch.context() as patched:
        patched.setattr(plots, "svg", lambda draw, width, height: draw(drawn) or b"")
        plots.trajectory(records, Naming(records))
    left, right = drawn.axes
    assert (left.get_yscale(), right.get_yscale()) == (scale, "linear")
    assert list(right.lines[0].get_ydata()) == TRAJECTORY["psnr"]
    assert list(right.lines[1].get_ydata()) == [18.25, 18.25] and right.lines[1].get_linestyle() == "--"
    draw = inspect.unwrap(plots.trajectory)  # anew, whatever has been drawn before
    assert draw(records, Naming(records)) == draw(records, Naming(records)) != b""


def test_a_trajectory_of_one_frame_is_drawn_as_a_point(run: Path) -> None:
    (line, *_) = lines_of(run)
    one = {"steps": [0], "losses": [0.5], "psnr": [9.0], "control": None, "shown": [0]}
    records = [Record.model_validate({**line, "film": one})]
    drawn = plots.trajectory(records, Naming(records)).decode()
    assert "best blind control" not in drawn and "PSNR, no defense" in drawn
