import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from pages import Page
from PIL import Image

from fedsim.errors import RunFolderError
from fedsim.metrics.ratings import scale
from fedsim.recording.records import Record
from fedsim.report import gallery, plots, render, view
from fedsim.report.naming import Naming
from fedsim.report.reading import read
from fedsim.scenario import yaml_loader

pytestmark = pytest.mark.usefixtures("drawn_once")

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))


def page(run: Path) -> Page:
    return Page(render(run).read_text(encoding="utf-8"))


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_markdown_and_tables_of_the_stored_run_are_as_stored_byte_for_byte(run: Path) -> None:
    render(run)
    expected = {path.relative_to(GOLDEN / "expected"): path for path in (GOLDEN / "expected").rglob("*.*")}
    written = {path.relative_to(run) for path in [run / "report.md", *(run / "tables").iterdir()]}
    assert written == set(expected)
    for name, path in expected.items():
        assert (run / name).read_bytes() == path.read_bytes(), name


def test_the_same_folder_gives_the_same_bytes(run: Path, tmp_path: Path, drawings: dict[object, bytes]) -> None:
    other, pages = Path(shutil.copytree(run, tmp_path / "another name")), []
    for folder in (run, other, other):
        drawings.clear()
        pages.append(render(folder).read_bytes())
    assert pages[0] == pages[1] == pages[2] and drawings


def test_nothing_but_the_report_changes_in_the_folder(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    render(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    new = {path.relative_to(run).parts[0] for path in after.keys() - before.keys()}
    assert new == {"report.html", "report.md", "summary.json", "tables", "figures"}
    assert all(after[path] == content for path, content in before.items())


def test_the_page_is_well_formed_and_loads_nothing(run: Path) -> None:
    shown = page(run)
    assert shown.open == []
    assert [script.keys() for script in shown.attributes("script")] == [{}.keys()]
    loads = [a.get("src", "") for a in shown.attributes("img")] + [a.get("href", "") for a in shown.attributes("link")]
    assert loads
    assert all(address.startswith("data:") for address in loads)
    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_every_image_has_an_alternative_text_and_every_jump_a_target(run: Path) -> None:
    shown = page(run)
    assert all(len(image["alt"]) > 10 for image in shown.attributes("img"))
    identifiers = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    jumps = [a["href"][1:] for a in shown.attributes("a") if a["href"].startswith("#")]
    assert jumps
    assert set(jumps) <= set(identifiers)
    assert len(shown.attributes("h1")) == 1


def test_the_page_holds_every_score_control_and_caution(run: Path) -> None:
    text = page(run).text
    for record in read(run).records:
        for metric, score in record.scores.items():
            assert (scale(metric).write(score.value) if score.value is not None else "unavailable") in text
        for caution in record.cautions:
            assert re.sub(r"\d+", "", caution) in re.sub(r"\d+", "", text)
        for control in record.controls:
            assert control in text
        assert record.message is None or record.message in text


def test_originals_stand_beside_reconstructions_for_the_first_and_the_last_round(run: Path) -> None:
    alternatives = [image["alt"] for image in page(run).attributes("img")]
    for round in (1, 2):
        assert f"Original, client 0, round {round}" in alternatives
        assert any(a.startswith(f"golden_inversion, client 0, round {round}: PSNR") for a in alternatives)
    small = next(image for image in page(run).attributes("img") if image["alt"].startswith("Original"))
    assert (small["width"], small["height"], small["class"]) == ("192", "96", "crisp")


HOSTILE = "</title><script>alert(1)</script>\n| # `x` [a](javascript:b) $c$ {{ 1 }} *d* <img src=http://e.invalid>"


def test_strings_from_a_run_are_shown_and_never_interpreted(run: Path) -> None:
    records = lines_of(run / "records.jsonl")
    for record in records:
        record["attack"] = {"name": HOSTILE, "params": {HOSTILE: HOSTILE}, "version": HOSTILE}
        record["defenses"] = [{"name": HOSTILE, "params": {}}]
        record["cautions"] = [HOSTILE]
        record["message"] = HOSTILE
        record["controls"] = {HOSTILE: {metric: 0.5 for metric in record["scores"]}}
    write_lines(run / "records.jsonl", records)
    (run / "scenario.yaml").write_text(json.dumps({"name": HOSTILE, "threat": {"grants": [HOSTILE]}, "x": "```\n# h"}))
    (run / "environment.json").write_text(json.dumps({HOSTILE: {HOSTILE: HOSTILE}}))
    shown = page(run)
    assert shown.open == []
    assert len(shown.attributes("script")) == 1
    assert all(image["src"].startswith("data:") for image in shown.attributes("img"))
    assert HOSTILE.replace("\n", " ") in shown.text.replace("\n", " ")
    markdown = (run / "report.md").read_text()
    outside_code = re.sub(r"(`{3,})yaml\n.*?\n\1\n", "", markdown, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", outside_code)
    assert not re.search(r"(?<!\\)\]\(javascript", outside_code)
    rows = [line for line in outside_code.splitlines() if line.startswith("| 1 | 0 |")]
    assert rows
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_plugin_that_is_not_installed_is_not_imported_for_its_citation(run: Path) -> None:
    records = lines_of(run / "records.jsonl")
    for record in records:
        record["attack"] = {"name": "antigravity:Flight", "params": {}}
    write_lines(run / "records.jsonl", records)
    assert "states no citation" in page(run).text
    assert "antigravity" not in sys.modules


def test_each_plugin_is_cited_once_with_a_link(run: Path) -> None:
    citation = "Eve. 'Noise'. 2023. https://example.org/noise"
    records = lines_of(run / "records.jsonl")
    for record in records:
        record["defenses"] = [{"name": "dp_noise", "params": {}, "citation": citation}]
    write_lines(run / "records.jsonl", records)
    shown = page(run)
    assert shown.text.count(citation) == 1
    assert "https://example.org/noise" in [a["href"] for a in shown.attributes("a")]


def test_a_half_written_last_line_is_left_out_with_a_note(run: Path) -> None:
    with (run / "records.jsonl").open("a") as file:
        file.write('{"schema": 1, "round": 3, "cli')
    text = page(run).text
    assert "records.jsonl: the last line is half-written and left out" in text
    assert "Every attempt (8)" in text


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (b"\xff\xfe not json", "line 1: not JSON; left out."),
        (b'{"schema": 1, "round": 1}', "line 1: client: Field required; left out."),
        (b"[1, 2]", "line 1: line: Input should be"),
    ],
)
def test_a_damaged_line_is_left_out_with_a_note(run: Path, line: bytes, note: str) -> None:
    path = run / "records.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    text = page(run).text
    assert note in text
    assert "Every attempt (8)" in text


@pytest.mark.parametrize("missing", ["scenario.yaml", "environment.json", "rounds.jsonl", "records.jsonl", "artifacts"])
def test_a_missing_part_is_noted_and_the_rest_is_shown(run: Path, missing: str) -> None:
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page(run).text
    assert re.search(rf"{re.escape(missing)}\S*: no such file", text)
    assert "Threat model" in text


@pytest.mark.parametrize("content", ["", "[1, 2]", "data: [1", "name: x\nfederation: 3\nthreat: []\ndata: text\n"])
def test_any_scenario_and_environment_text_still_gives_a_report(run: Path, content: str) -> None:
    (run / "scenario.yaml").write_text(content)
    (run / "environment.json").write_text(content)
    assert "environment.json: not readable as JSON." in page(run).text or content == "[1, 2]"


def test_a_run_that_was_killed_early_says_so(run: Path) -> None:
    for name in ("records.jsonl", "rounds.jsonl"):
        (run / name).unlink()
    text = page(run).text
    assert "No attack has been recorded yet." in text
    assert "The run is not complete: 0 of 2 rounds are recorded." in text


def test_a_run_without_attacks_is_shown_as_one_that_was_not_audited(run: Path) -> None:
    (run / "records.jsonl").unlink()
    scenario = yaml_loader.read(run / "scenario.yaml") | {"attacks": []}
    (run / "scenario.yaml").write_text(yaml_loader.dump(scenario))
    text = page(run).text
    assert "The scenario names no attack to audit with." in text and "yet" not in text
    assert "No update of this run was attacked" in text
    assert "no such file" not in text and "not recorded" not in text
    markdown = (run / "report.md").read_text()
    assert "| 0 | no defense | 2 |" in markdown and "| 1 | golden_noise | 2 |" in markdown


def test_the_blind_control_is_drawn_where_there_is_one_round() -> None:
    worse = {"value": 1.0, "per_example": [1.0], "worse": "higher"}
    line = {"round": 1, "client": 0, "attack": {"name": "a"}, "status": "found", "scores": {"label_recall": worse}}
    line["controls"] = {"chance": {"label_recall": 0.25}}
    records = [Record.model_validate(line)]
    drawn = plots.leakage(records, "label_recall", Naming(records)).decode()
    # A marker is defined once and placed in the axes and in the legend.
    (marker,) = re.findall(r'<path id="(\w+)"[^>]*stroke: #777777', drawn)
    assert drawn.count(f'"#{marker}"') == 2


def test_a_image_that_cannot_be_read_is_noted(run: Path) -> None:
    (run / "artifacts/round-0001/client-000/originals.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert "artifacts/round-0001/client-000/originals.png: not readable as a PNG." in page(run).text


def test_a_image_outside_the_run_folder_is_not_read(run: Path) -> None:
    shutil.copy(run / "artifacts/round-0001/client-000/originals.png", run.parent / "secret.png")
    records = lines_of(run / "records.jsonl")
    records[0]["artifacts"]["reconstructions"] = "../secret.png"
    write_lines(run / "records.jsonl", records)
    assert "../secret.png: outside the run folder, not shown." in page(run).text


def test_values_that_are_not_numbers_are_shown_as_missing(run: Path) -> None:
    path = run / "rounds.jsonl"
    path.write_text(path.read_text().replace('"loss": 1.125', '"loss": NaN'))
    assert not re.search(r"\bnan\b", page(run).text.lower())


@pytest.mark.parametrize("name", ["records.jsonl", "rounds.jsonl"])
def test_lines_of_another_schema_are_refused(run: Path, name: str) -> None:
    write_lines(run / name, [{**line, "schema": 2} for line in lines_of(run / name)])
    with pytest.raises(RunFolderError, match=rf"{name}, line 1: schema 2, this version of fedsim reads 1"):
        render(run)


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such folder"):
        render(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="not a run folder"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_findings_of_an_observed_run_are_listed_without_scores(run: Path) -> None:
    records = [{**r, "scores": {}, "controls": {}} for r in lines_of(run / "records.jsonl") if r["status"] == "found"]
    write_lines(run / "records.jsonl", records)
    text = page(run).text
    assert "Inconclusive: attacks returned 6 findings, none of which could be rated." in text
    assert "nothing was scored" in text or "its finding could not be scored" in text
    assert "not scored" in text


def test_a_single_audited_round_without_controls_is_shown(run: Path) -> None:
    records = [{**r, "controls": {}} for r in lines_of(run / "records.jsonl") if r["round"] == 1]
    write_lines(run / "records.jsonl", records)
    text = page(run).text
    assert "59.9 dB" in text
    assert "it was scored beside no control" in text
    assert "Inconclusive for the images" in text


def test_large_images_are_embedded_at_the_size_they_are_shown(run: Path) -> None:
    from PIL import Image

    path = run / "artifacts/round-0001/client-000/originals.png"
    Image.new("RGB", (448, 224), "navy").save(path)
    shown = next(image for image in page(run).attributes("img") if image["alt"] == "Original, client 0, round 1")
    assert (shown["width"], shown["height"]) == ("256", "128")
    assert "class" not in shown


def test_the_overview_figure_has_a_column_per_client_and_stable_bytes(run: Path) -> None:
    render(run)
    first = (run / "figures" / "overview.png").read_bytes()
    with Image.open(run / "figures" / "overview.png") as picture:
        assert picture.width > 300
    render(run)
    assert (run / "figures" / "overview.png").read_bytes() == first


def test_a_run_without_images_has_no_figure(run: Path) -> None:
    (run / "records.jsonl").write_text("")
    render(run)
    assert not (run / "figures").exists()


def test_lines_that_state_the_same_plugin_share_it_in_memory(run: Path) -> None:
    records = read(run).records
    assert len({id(record.attack) for record in records}) == len({record.attack.key for record in records}) > 1
    assert len({id(use) for record in records for use in record.defenses}) == 1


def test_images_beyond_the_size_of_a_page_are_left_out_and_those_of_leaks_come_first(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for line in lines:  # the client that leaks comes last
        line["client"] = {0: 1, 1: 0}[line["client"]]
    write_lines(run / "records.jsonl", lines)
    assert re.findall(r"<h3>Client (\d)", render(run).read_text()) == ["0", "1"]
    assert "left out" not in (run / "report.md").read_text()
    monkeypatch.setattr(gallery, "_MOST_EMBEDDED", 1)
    text = render(run).read_text()
    assert re.findall(r"<h3>Client (\d)", text) == ["1"] and text.count('id="client-1-round-') == 1
    assert "Images of clients 0 and 1 are left out in part" in Page(text).text
    assert "Images of clients 0 and 1 are left out in part" in (run / "report.md").read_text()


def test_attempts_beyond_the_size_of_a_page_are_in_the_tables_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(read(run).records)
    assert f"Every attempt ({count})" in page(run).text
    monkeypatch.setattr(view, "_SHOWN_ATTEMPTS", 2)
    assert f"The first 2 attempts of {count}; all are in tables/records.csv" in page(run).text
    assert f"The first 2 attempts of {count}; all are in tables/records.csv" in (run / "report.md").read_text()
    rows = (run / "tables" / "records.csv").read_text().splitlines()[1:]
    assert len({tuple(row.split(",")[1:5]) for row in rows}) == count


def test_many_clients_are_drawn_as_their_median_and_range(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(text: str) -> int:
        return len(re.findall(r'id="told-', text))

    score = {"value": 20.0, "worse": "higher"}
    records = [
        Record.model_validate(
            {
                "round": round,
                "client": client,
                "attack": {"name": "a"},
                "status": "found",
                "scores": {"psnr": {**score, "value": 20.0 + client}},
                "controls": {"grey": {"psnr": 10.0}},
            }
        )
        for round in (1, 2)
        for client in range(9)
    ]
    each = plots.leakage(records, "psnr", Naming(records)).decode()
    monkeypatch.setattr(plots, "MOST_LINES", 8)
    together = plots.leakage(records, "psnr", Naming(records)).decode()
    assert lines(each) - lines(together) == 8
    assert "FillBetweenPolyCollection" in together and "FillBetweenPolyCollection" not in each
    assert "one line per client" in page(run).text
    monkeypatch.setattr(plots, "MOST_LINES", 1)
    assert "the median and the range of the clients" in page(run).text
