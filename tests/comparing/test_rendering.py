import csv
import json
import re

import pytest
from pages import Page
from runs import write_run

from fedsim.comparing import compare
from fedsim.comparing.writing import escaped

HOSTILE = r"</title><script>alert(1)</script> | #1 `x` $c$ {{ 1 }} \input{x} a_b ~^& 50% <img src=http://e.invalid>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The comparison of two models: one with two settings, one of them half protected, one with a hostile name."""
    path = tmp_path_factory.mktemp("comparison")
    folders = [write_run(path / f"none-{seed}", accuracy=0.5 + seed / 10, seed=seed, name="none") for seed in range(3)]
    folders += [
        write_run(path / f"half-{seed}", {0: 9.0, 1: 55.0}, 0.4, seed, ["clips"], [0], name="half", epsilon=4.0)
        for seed in range(3)
    ]
    other = write_run(path / "other", name="other", defenses=[HOSTILE], psnr=9.0, model={"name": HOSTILE})
    (folders[0] / "report.html").write_text("a report")
    found = compare([*folders, other], path / "out", 1.0)
    return path / "out", found


def page(written):
    return Page((written[0] / "compare.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_loads_nothing_and_runs_its_own_script_alone(written):
    shown = page(written)
    assert shown.open == [] and [*shown.attributes("script")] == [{}]
    loads = [a.get("src", "") for a in shown.attributes("img")] + [a.get("href", "") for a in shown.attributes("link")]
    assert loads and all(address.startswith("data:") for address in loads)
    style = re.search(r"<style>(.*?)</style>", (written[0] / "compare.html").read_text(), re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]


def test_every_image_has_an_alternative_text_and_every_jump_a_target(written):
    shown = page(written)
    assert all(len(image["alt"]) > 10 for image in shown.attributes("img"))
    identifiers = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers)) and len(shown.attributes("h1")) == 1
    links = [a["href"] for a in shown.attributes("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(identifiers)
    assert "../none-0/report.html" in links


def test_every_verdict_leads_to_the_runs_it_rests_on_and_each_run_back_to_its_setting(written):
    shown = page(written)
    verdicts, names = shown.verdicts(), shown.identifiers()
    assert len(verdicts) >= 6 and {tag for tag, _ in verdicts} == {"a"}
    assert {attributes["href"][1:] for _, attributes in verdicts} == {"run-1", "run-4", "run-7"}, (
        "first runs of settings"
    )
    text = (written[0] / "compare.html").read_text()
    rows = dict(re.findall(r'<tr id="(run-\d+)"><th scope="row"><a href="#(setting-\d+)">', text))
    assert [*rows.values()] == ["setting-1"] * 3 + ["setting-2"] * 3 + ["setting-3"] and {*rows.values()} <= {*names}


def test_the_page_has_a_row_per_setting_its_groups_its_differences_and_its_doubts(written):
    text = " ".join(page(written).text.split())
    for part in ("none", "half", "0.600", "control 10.0", "no defense", "4 (delta 1e-05; replace), not of all clients"):
        assert part in text, part
    assert "Models or data differ between these settings" in text
    assert "other: fewer than 3 seeds: no interval, the values instead." in text
    assert "other: no setting without defenses to compare with" in text
    assert "-0.200" in text, "half minus none"
    assert "No setting is known to keep every attacker within 1 dB of its control." in text
    assert HOSTILE in page(written).text


def test_json_and_csv_hold_the_same_settings_and_numbers(written):
    content = json.loads((written[0] / "compare.json").read_text())
    rows = [*csv.DictReader((written[0] / "compare.csv").read_text().splitlines())]
    settings = [setting for family in content["families"] for setting in family["settings"]]
    assert [row["setting"] for row in rows] == [setting["name"] for setting in settings] == ["none", "half", "other"]
    for row, setting in zip(rows, settings, strict=True):
        assert float(row["accuracy"]) == pytest.approx(setting["accuracy"]["mean"])
        (attacker,) = setting["attackers"]
        assert float(row["inversion: images"]) == pytest.approx(attacker["value"]["mean"])
        assert row["inversion: images, verdict"] == attacker["verdict"]
    assert rows[0]["accuracy, by seed"] == "0:0.5 1:0.6 2:0.7" and rows[2]["accuracy, low"] == ""
    assert not content["is_comparable"] and content["margin_db"] == 1.0
    assert [group["defenses"] for group in settings[1]["groups"]] == ["none", "clips"]
    assert settings[1]["accuracy_lost"]["by_seed"] == {
        "0": pytest.approx(0.1),
        "1": pytest.approx(0.2),
        "2": pytest.approx(0.3),
    }


def test_latex_is_whole_and_escaped(written):
    text = (written[0] / "compare.tex").read_text()
    plain = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[{}$&#%_]", "", text
    )
    assert plain.count("{") == plain.count("}")
    for place in ("table", "tabular"):
        assert plain.count(f"\\begin{{{place}}}") == plain.count(f"\\end{{{place}}}") == 2
    tables = re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", plain, re.DOTALL)
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        assert all(row.count("&") == len(columns) - 1 for row in rows)
    # No command but those of the table and of escapes.
    assert set(re.findall(r"\\[a-z]+", plain)) <= {r"\begin", r"\end", r"\centering", r"\caption", r"\hline"}
    assert not set(plain) & set("$#%^~_")


def test_each_special_character_is_escaped():
    assert escaped(r"a_b & 50% {x} \y") == r"a\_b \& 50\% \{x\} \textbackslash{}y"


def test_the_terminal_gets_the_same_rows_and_statements(written):
    found = written[1]
    assert found.titles == ("setting", "runs", "accuracy", "epsilon", "verdict", "inversion: images")
    assert [row[0] for row in found.rows] == ["none", "half", "other"]
    assert found.rows[0][-1] == "60.0 dB (control 10.0) leaks"
    assert len(found.statements) == 2


def test_the_same_folders_give_the_same_bytes(tmp_path):
    folders = [write_run(tmp_path / f"run-{seed}", seed=seed, accuracy=seed / 10) for seed in range(3)]
    contents = []
    for _ in range(2):
        compare(folders, tmp_path / "out", 1.0)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"compare.html", "compare.csv", "compare.json", "compare.tex"}
