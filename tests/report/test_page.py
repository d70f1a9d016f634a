"""The page as people use it: links from verdicts to what they rest on, filters, values in plots, nothing from outside."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from pages import Page

from fedsim.recording.records import Record
from fedsim.report import embedding, gallery, plots, render, view
from fedsim.report.naming import Naming
from fedsim.report.reading import read
from fedsim.report.rendering import _LONG_TABLE

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stored run, with a second pair of clients like the first, so that some tables are long."""
    folder = Path(shutil.copytree(GOLDEN / "run", tmp_path_factory.mktemp("page") / "run"))
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    lines += [{**line, "client": line["client"] + 2} for line in lines]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return render(run).read_text(encoding="utf-8")


@pytest.fixture
def small(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the page without plots, on which neither the images nor the attempts in question are."""
    monkeypatch.setattr(view, "_SHOWN_ATTEMPTS", 1)
    monkeypatch.setattr(gallery, "_MOST_EMBEDDED", 0)
    monkeypatch.setattr(view, "_leakage_plots", lambda analysis: [])
    monkeypatch.setattr(view, "_utility_plot", lambda run: None)
    return render(Path(shutil.copytree(run, tmp_path / "run"))).read_text(encoding="utf-8")


def test_the_policy_lets_the_one_script_of_the_page_run_and_nothing_load(text: str) -> None:
    shown = Page(text)
    (policy,) = (meta["content"] for meta in shown.attributes("meta") if "http-equiv" in meta)
    digest = base64.b64encode(hashlib.sha256(shown.script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # The policy stands before all that it governs.
    assert [name for name, _ in shown.tags].index("script") > shown.tags.index(("meta", shown.attributes("meta")[1]))


def test_no_element_takes_anything_from_elsewhere(text: str) -> None:
    shown = Page(text)
    for tag, attributes in shown.tags:
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert attributes.get(name, "data:").startswith("data:"), attributes
        if tag != "a":
            assert attributes.get("href", "#").startswith(("#", "data:")), attributes
    assert not re.search(r"https?://", shown.script)


@pytest.mark.parametrize("which", ["text", "small"])
def test_every_verdict_leads_to_what_it_rests_on(which: str, request: pytest.FixtureRequest) -> None:
    shown = Page(request.getfixturevalue(which))
    verdicts, names = shown.verdicts(), shown.identifiers()
    assert len(verdicts) >= 6
    assert {tag for tag, _ in verdicts} == {"a"}
    assert {attributes["href"][1:] for _, attributes in verdicts} <= {*names}
    assert len(names) == len(set(names))


def test_the_verdict_of_a_line_leads_to_the_deciding_attempt_which_leads_back(run: Path, text: str) -> None:
    records = read(run).records
    lines = re.findall(r'<tr id="(verdict-\d+)">(.*?)</tr>', text, re.DOTALL)
    rows = dict(re.findall(r'<tr id="(attempt-\d+)">(.*?)</tr>', text, re.DOTALL))
    assert len(rows) == len(records) and len(lines) >= 4
    decided = 0
    for anchor, line in lines:
        (target,) = re.findall(
            r'<a class="verdict \w+" href="#(attempt-\d+)"', line.rpartition('data-label="Verdict"')[2]
        )
        assert f'href="#{anchor}"' in rows[target]
        round, client, *_ = re.findall(r"<td>(.*?)</td>", rows[target])
        assert (records[int(target[8:]) - 1].round, records[int(target[8:]) - 1].client) == (int(round), int(client))
        if deciding := re.search(r'data-label="Deciding round".*?round (\d+)', line):
            decided += deciding[1] == round
    assert decided >= 2


def test_images_lead_back_to_the_verdicts_that_they_decide(text: str) -> None:
    for client, round in re.findall(r'data-label="Deciding round".*?href="#client-(\d+)-round-(\d+)"', text):
        panel = text.partition(f'id="client-{client}-round-{round}"')[2].partition("</p>")[0]
        assert re.search(r'decides <a href="#verdict-\d+">', panel)


def test_a_verdict_on_several_updates_leads_to_the_attempt_that_shows_most_and_back(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    found = [
        {
            "schema": 1,
            "round": round,
            "client": None,
            "view": {"scope": "round", "rounds": [round], "clients": [0, 1]},
            "attack": {"name": "together", "params": {}, "recovers": ["labels"]},
            "defenses": [],
            "grants": [],
            "status": "found",
            "scores": {"label_recall": {"value": value, "per_example": [value] * 8, "worse": "higher"}},
            "controls": {"chance": {"label_recall": 0.1}},
        }
        for round, value in ((1, 0.2), (2, 0.9))
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    text = render(folder).read_text(encoding="utf-8")
    row = text.partition('<tr id="view-1">')[2].partition("</tr>")[0]
    assert re.search(r'<a class="verdict \w+" href="#view-attempt-2"', row)
    assert 'href="#view-1"' in text.partition('<tr id="view-attempt-2">')[2].partition("</tr>")[0]


def test_tables_have_a_filter_where_they_are_long_and_only_there(text: str) -> None:
    tables = Page(text).tables()
    assert any(rows > _LONG_TABLE for rows, _ in tables) and any(rows <= _LONG_TABLE for rows, _ in tables)
    assert all(has_filter == (rows > _LONG_TABLE) for rows, has_filter in tables), tables


def test_the_contents_name_every_section_in_order(text: str) -> None:
    shown = Page(text)
    listed = re.findall(r'<a href="#(\w+)">', text.partition("<nav")[2].partition("</nav>")[0])
    assert listed == [attributes["id"] for attributes in shown.attributes("section")]
    assert len(listed) > 5


def test_the_first_screen_tells_claim_setting_worst_image_and_limits(run: Path, text: str) -> None:
    first = text.partition('<header class="first">')[2].partition("</header>")[0]
    headline = json.loads((run / "summary.json").read_text())["headline"]
    shown = Page(first)
    assert headline in shown.text and "Seed" in shown.text and "Limits" in shown.text
    assert [image["alt"].split(" of ")[0] for image in shown.attributes("img")] == ["Original", "golden_inversion"]
    # The worst is the attempt on images with the highest skill; the stored run has one that leaks.
    best = max(
        (record for record in read(run).records if "psnr" in record.scores),
        key=lambda record: record.scores["psnr"].value or 0.0,
    )
    assert f"client {best.client}, round {best.round}" in shown.attributes("img")[1]["alt"]


def test_points_of_a_plot_tell_client_round_and_value(run: Path) -> None:
    records = [record for record in read(run).records if "psnr" in record.scores]
    drawn = plots.leakage(records, "psnr", Naming(records)).decode()
    told = re.findall(r"<title>Client (\d+), (.+?), round (\d+): ([-+][\d.]+) dB beyond blind</title>", drawn)
    expected = {(record.client, record.round) for record in records if record.scores["psnr"].value is not None}
    assert {(int(client), int(round)) for client, _, round, _ in told} == expected
    for client, _, round, value in told:
        (record,) = (one for one in records if (one.client, one.round) == (int(client), int(round)))
        blind = max(v["psnr"] for name, v in record.controls.items() if "psnr" in v and name != "own_mean")
        assert float(value) == pytest.approx((record.scores["psnr"].value or 0.0) - blind, abs=0.06)


def test_a_plot_in_a_page_has_names_of_its_own_and_follows_the_theme(run: Path) -> None:
    records = [record for record in read(run).records if "psnr" in record.scores]
    drawn = plots.leakage(records, "psnr", Naming(records))
    pages = [str(embedding.plot(caption, "<alt>", drawn).drawing) for caption in ("one", "two")]
    names = [set(re.findall(r' id="([^"]+)"', text)) for text in pages]
    assert names[0] and not names[0] & names[1]
    for text, own in zip(pages, names, strict=True):
        assert {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)} == own
        assert 'aria-label="&lt;alt&gt;"' in text
        assert not re.search(r"#(000000|ffffff|555555|e4e4e4)", text)
        assert {tag for tag, _ in Page(text).tags} <= {"svg", "g", "path", "use", "defs", "clippath", "rect", "title"}


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["a\x01\x0b\ufffe", "]]> -- <script>alert(1)</script> &amp;", "$x$ \\ %"])
def test_any_name_of_a_defense_can_be_drawn_and_told(run: Path, name: str) -> None:
    line = json.loads((run / "records.jsonl").read_text().splitlines()[0])
    record = Record.model_validate({**line, "defenses": [{"name": name, "params": {}}]})
    metric = next(iter(record.scores))
    shown = Page(str(embedding.plot(name, name, plots.leakage([record], metric, Naming([record]))).drawing))
    assert "script" not in [tag for tag, _ in shown.tags] and shown.open == []
    assert [tag for tag, _ in shown.tags].count("title") == 1


def test_an_svg_element_that_is_no_part_of_a_plot_is_left_out() -> None:
    inner = '<g><script>x</script><path d="M0 0"/></g><style>*{}</style>'
    drawn = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{inner}</svg>'.encode()
    text = str(embedding.plot("a", "b", drawn).drawing)
    assert [tag for tag, _ in Page(text).tags] == ["svg", "g", "path"]


def test_the_page_is_small(text: str) -> None:
    assert len(text) < 250_000
