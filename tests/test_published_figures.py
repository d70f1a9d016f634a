"""Figures in the documents are those of the files that they come from, and rows of other sources than today's are marked."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import attack_sources  # noqa: E402
import picture_results  # noqa: E402
import scenario_runs  # noqa: E402
import scenario_tables  # noqa: E402
import span_inversion  # noqa: E402
from attack_sources import is_current, older  # noqa: E402
from pictures import made_by  # noqa: E402
from scenario_claims import CATALOGUE, CLAIMS  # noqa: E402
from scenario_figures import Pick, Statistic, filled  # noqa: E402
from scenario_layouts import TABLES  # noqa: E402
from scenario_runs import RUNS, StaleRunError  # noqa: E402

from fedsim import scenario as scenarios  # noqa: E402
from fedsim.recording.environment import as_json  # noqa: E402
from fedsim.scenario import yaml_loader  # noqa: E402

RESULTS = [
    ROOT / "benchmarks" / "results" / f"pictures{name}.json"
    for name in ("", "_trained", "_newton", "_defended", "_training")
]
INTERVAL = re.compile(r"(-?\d+\.\d)(?:\*\*)? \[(-?\d+\.\d), (-?\d+\.\d)\]")
DOCUMENTS = ("README.md", "attacks/README.md")
FIGURE = re.compile(r"(?<![\w.*-])\d+\.\d+|\d+(?= dB)|\d+ to (?=\d+ dB)")
# Figures of the gallery's sentences that no run has: breaching's own, in its notebook; one over the number of classes.
QUOTED = {"april": {"23.9"}, "cifar10_fedavg": {"0.10"}}


def rows():
    return [row for file in RESULTS for row in json.loads(file.read_text())["rows"]]


def means():
    """Return every mean with its interval that the stored attempts come to, as text."""
    cells = {}
    for row in rows():
        place = (row["label"], row["state"], row["batch_size"], row["defense"], row["seed"])
        cells.setdefault((*place, picture_results.images_of(row)), []).append(row)
    found = [summary for cell in cells.values() if (summary := picture_results.summarize(cell))]
    return {
        str(mean) for summary in found for mean in (summary.psnr, summary.margin, summary.wrong) if mean is not None
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_mean_with_an_interval_is_that_of_stored_attempts(document):
    quoted = [f"{value} [{low}, {high}]" for value, low, high in INTERVAL.findall((ROOT / document).read_text())]
    assert len(quoted) >= 8
    assert [text for text in quoted if text not in means()] == []


def test_the_page_of_span_inversion_has_the_table_of_its_results():
    stored = json.loads((ROOT / "benchmarks" / "results" / "span_inversion.json").read_text())
    assert span_inversion.table(stored) in (ROOT / "docs" / "span_inversion.md").read_text()


def test_the_page_of_span_inversion_quotes_its_confidence():
    stored = json.loads((ROOT / "benchmarks" / "results" / "span_confidence.json").read_text())
    own, wrong = ([score for batch in stored["batches"] for score in batch[name]] for name in ("psnr", "wrong"))
    page = " ".join((ROOT / "docs" / "span_inversion.md").read_text().split())
    assert f"area under the ROC curve {stored['area']:.3f}" in page
    assert f"The images score {min(own)} to {max(own)} dB, and {min(wrong)} to {max(wrong)} dB as an answer" in page


def test_rows_that_other_sources_made_are_marked_as_older():
    catalogue = (ROOT / "attacks" / "README.md").read_text()
    for code in {row["code"] for row in rows()}:
        assert f"`{code}`" in catalogue
    marked = "older than this version" in catalogue
    assert marked == (not all(is_current(made_by(row)) for row in rows()))


def test_every_row_states_the_sources_that_made_it():
    assert all(re.fullmatch("[0-9a-f]{12}", row["code"]) for row in rows())


def test_the_code_of_an_attack_is_that_of_all_that_it_imports_and_of_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "toy_attacks"
    (package / "parts").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "parts/__init__.py": "",
        "parts/used.py": 'def f():\n    """Return one."""\n    return 1  # the least\n',
        "parts/by_used.py": "LEAST = 1\n",
        "parts/other.py": "LEAST = 1\n",
        "attack.py": "def run():\n    from toy_attacks.parts import used\n",
    }
    files["parts/used.py"] = f"import toy_attacks.parts.by_used as by_used\n{files['parts/used.py']}"

    def digest():
        for name, text in files.items():
            (package / name).write_text(text)
        for cached in (attack_sources._imported, attack_sources._imports):
            cached.cache_clear()
        return attack_sources.digest("toy")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attack_sources, "PACKAGE", "toy_attacks")
    monkeypatch.setattr(attack_sources, "_modules", lambda: {"toy": "toy_attacks.attack"})
    try:
        found = digest()
        files["parts/used.py"] = files["parts/used.py"].replace("Return one.", "Return 1.").replace("  # the least", "")
        files["parts/other.py"] = "LEAST = 2\n"
        assert digest() == found
        for name, text in (("parts/by_used.py", "LEAST = 2\n"), ("parts/__init__.py", "LEAST = 2\n")):
            files[name], before = text, found
            found = digest()
            assert found != before
    finally:
        for cached in (attack_sources._imported, attack_sources._imports):
            cached.cache_clear()


def test_figures_of_today_and_of_what_finds_the_same_are_current_and_others_are_not(monkeypatch):
    today = attack_sources.digest("gradvit")
    same = {"package": ["1" * 12], "gradvit": ["2" * 12, today], "dlg": ["3" * 12]}
    monkeypatch.setattr(attack_sources, "_same_results", lambda: same)
    for code, is_so in ((today, True), ("1" * 12, True), ("2" * 12, True), ("0" * 12, False)):
        assert is_current({"gradvit": code}) == is_so
    # Nobody has said that today's finds the same as those before: an attack that was edited, or one of a later day.
    assert older({"dlg": "1" * 12, "idlg": "1" * 12, "gradvit": "1" * 12}) == ["1" * 12, "1" * 12]
    assert older({"of another package": "0" * 12}) == []


def test_every_attack_of_the_package_is_told_apart_from_those_before_it():
    known = json.loads(attack_sources.SAME_RESULTS.read_text())
    assert all(re.fullmatch("[0-9a-f]{12}", code) for codes in known.values() for code in codes)
    assert set(known) - {"package"} <= set(attack_sources.digests(known))


def text_of(document):
    return (ROOT / document).read_text()


def all_blocks():
    return [(document, *block) for document in scenario_tables.DOCUMENTS for block in tables_in(document)]


def tables_in(document):
    return scenario_tables.blocks(text_of(document))


@pytest.mark.parametrize("document", scenario_tables.DOCUMENTS)
def test_tables_and_rows_of_scenarios_are_what_their_files_render(document):
    assert scenario_tables.written(document) == text_of(document)


@pytest.mark.parametrize("document", scenario_tables.DOCUMENTS)
def test_sentences_quote_the_figures_of_the_files(document):
    assert scenario_tables.missing_claims(document) == []


def test_every_table_of_the_gallery_stands_between_markers():
    gallery = text_of(scenario_tables.GALLERY)
    for _, content in scenario_tables.blocks(gallery):
        gallery = gallery.replace(content, "")
    outside = [line for line in gallery.splitlines() if line.startswith("|")]
    named = {path.stem for path in (ROOT / "scenarios").glob("*.yaml")}
    assert outside[0] == "| scenario | question | takes |"
    assert {row.split("`")[1] for row in outside[2:]} == named


def test_every_layout_is_shown_and_every_run_is_used():
    assert {name for _, name, _ in all_blocks()} == set(TABLES)
    picks = [part.pick for parts in (*CATALOGUE.values(), *(p for c in CLAIMS.values() for p in c)) for part in parts]
    assert {pick.run for pick in picks} | {run for table in TABLES.values() for run in table.runs} == set(RUNS)


@pytest.mark.parametrize("run", sorted(path.stem for path in scenario_runs.RESULTS.glob("*.json")))
def test_every_file_is_of_the_command_that_is_shown(run):
    content = json.loads(RUNS[run].file.read_text())
    assert (content["scenario"], tuple(content["overrides"])) == (RUNS[run].scenario, RUNS[run].overrides)
    settings = [part.replace("FOLDER", "folder") for part in RUNS[run].overrides]
    scenario, _ = scenarios.load(ROOT / "scenarios" / f"{RUNS[run].scenario}.yaml", settings)
    assert set(content["code"]) == {attack.name for attack in scenario.attacks}
    assert all(re.fullmatch("[0-9a-f]{12}", code) for code in content["code"].values())


def test_tables_without_a_file_are_the_named_ones_and_say_so():
    lacking = {name for name, table in TABLES.items() if not all(RUNS[run].file.exists() for run in table.runs)}
    assert lacking == set(scenario_tables.WITHOUT_FILE)
    for _, name, content in all_blocks():
        assert (scenario_tables.NO_FILE in content) == (name in lacking)


def test_tables_that_other_sources_made_are_marked_as_older():
    for _, name, content in all_blocks():
        stored = [
            json.loads(RUNS[run].file.read_text())["code"] for run in TABLES[name].runs if RUNS[run].file.exists()
        ]
        codes = {code for made in stored for code in older(made)}
        assert all(f"`{code}`" in content for code in codes)
        assert ("lder than this version" in content) == bool(codes or name in scenario_tables.WITHOUT_FILE)


def test_a_file_of_other_sources_marks_its_tables_and_its_row(monkeypatch):
    monkeypatch.setattr("attack_sources.digest", lambda attack: "0" * 12)
    (code,) = json.loads(RUNS["mjp_gamma"].file.read_text())["code"].values()
    assert f"Older than this version: made by the attacks' sources `{code}`." in scenario_tables.rendered("mjp_gamma")
    rows = scenario_tables.with_catalogue(text_of(scenario_tables.ATTACKS)).splitlines()
    (row,) = [row for row in rows if RUNS["mjp_gamma"].command + "`" in row]
    assert row.endswith(f"{scenario_tables.OLDER} |")


@pytest.mark.parametrize("name", sorted(set(TABLES) - set(scenario_tables.WITHOUT_FILE)))
def test_a_changed_figure_of_a_table_is_written_back(name):
    right = f"<!-- table: {name} -->\n{scenario_tables.rendered(name)}\n<!-- end -->"
    figures = list(re.finditer(r"\d+\.\d", right))
    assert figures
    for figure in figures:
        changed = f"{right[: figure.end() - 1]}{(int(figure.group()[-1]) + 1) % 10}{right[figure.end() :]}"
        assert changed != right
        assert scenario_tables.with_tables(changed) == right


@pytest.mark.parametrize("run", CATALOGUE)
def test_a_changed_figure_of_a_row_is_written_back(run):
    right = scenario_tables.with_catalogue(text_of(scenario_tables.ATTACKS))
    result = f"`{RUNS[run].command}` | {scenario_tables.text_of(CATALOGUE[run])}"
    assert right.count(result) == 1
    changed = re.sub(r"\d(?=[^`]*$)", lambda digit: str(9 - int(digit.group())), result)
    assert changed != result
    assert scenario_tables.with_catalogue(right.replace(result, changed)) == right


def sections():
    gallery = text_of(scenario_tables.GALLERY)
    found = [part.split("\n", 1) for part in re.split(r"^## ", gallery, flags=re.MULTILINE)[1:]]
    return [(name, text) for name, text in found if scenario_tables.NO_FILE not in text]


@pytest.mark.parametrize(("name", "section"), sections())
def test_figures_in_sentences_are_computed_or_settings_of_the_scenario(name, section):
    for _, content in scenario_tables.blocks(section):
        section = section.replace(content, "")
    prose = " ".join(section.split())
    for parts in CLAIMS[scenario_tables.GALLERY]:
        if name == RUNS[parts[0].pick.run].scenario:
            prose = prose.replace(scenario_tables.text_of(parts), "")
    prose = re.sub(r"`[^`]*`", "", prose)
    settings = set(re.findall(r"\d+\.\d+", text_of(f"scenarios/{name}.yaml")))
    assert set(FIGURE.findall(prose)) - settings - QUOTED.get(name, set()) == set()


def finished(folder, records):
    """Write the files of a finished run of soft_labels that are read for its JSON."""
    scenario, _ = scenarios.load(ROOT / "scenarios" / "soft_labels.yaml")
    summary = {"clients": {"0": {"verdict": "leaks", "kinds": {"images": "leaks"}}}}
    (folder / "scenario.yaml").write_text(yaml_loader.dump(scenario.resolved()))
    (folder / "environment.json").write_text(as_json("simulated"))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "rounds.jsonl").write_text('{"accuracy": 0.25}\n')
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def record(client, psnr, per_example):
    score = {"value": psnr, "per_example": per_example, "worse": "higher"}
    return {
        "round": 1,
        "client": client,
        "defenses": [{"name": "partial_sharing"}],
        "status": "found",
        "scores": {"psnr": score, "ssim": {"value": None, "unavailable": "too small", "worse": "higher"}},
        "controls": {"grey": {"psnr": 10.0}},
        "seconds": 0.5,
    }


def test_a_finished_folder_is_kept_with_scores_controls_and_sources(tmp_path):
    finished(tmp_path, [record(0, 20.123456789, [20.0, 20.246913578]), record(0, 21.0, [21.0])])
    content = scenario_runs.read(RUNS["soft_labels"], tmp_path, None)
    assert content["code"] == attack_sources.digests(["patch_embedding", "soft_labels"])
    assert (content["scenario"], content["overrides"], content["accuracy"]) == ("soft_labels", [], [0.25])
    assert content["verdicts"] == {"0": {"images": "leaks"}}
    first, second = content["records"]
    assert (first["attack"], second["attack"]) == ("soft_labels", "patch_embedding")
    assert first["scores"] == {"psnr": pytest.approx(20.123456789, abs=1e-4)}
    assert first["pictures"] == {"psnr": pytest.approx([20.0, 20.2469], abs=1e-4)}
    assert second["pictures"] == {}
    assert first["controls"] == {"grey": {"psnr": 10.0}}


def test_a_folder_of_another_scenario_is_refused(tmp_path):
    finished(tmp_path, [])
    with pytest.raises(StaleRunError, match=r"not a run of fedsim run scenarios/mjp_gamma\.yaml"):
        scenario_runs.read(RUNS["mjp_gamma"], tmp_path, None)


def test_a_folder_of_other_sources_is_refused(tmp_path):
    finished(tmp_path, [])
    environment = json.loads((tmp_path / "environment.json").read_text())
    environment["imported_from"]["fedsim_attacks"] = str(tmp_path)
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(StaleRunError, match="not what is imported now"):
        scenario_runs.read(RUNS["soft_labels"], tmp_path, None)


def test_figures_are_means_over_records_and_over_clients():
    figures = Statistic((1.0, 2.0, 6.0), (1, 0, 1), (4.0, 4.0))
    assert (figures.mean, figures.least, figures.most) == (3.0, 1.0, 6.0)
    assert f"{figures.each:.1f}" == "2.0 / 3.5"
    assert f"{figures.over_images:.1f}" == "4.0 [4.0, 4.0]"
    assert f"{Statistic((3.0,)).interval:.1f}" == "3.0"


def test_a_figure_of_no_record_is_an_error():
    with pytest.raises(ValueError, match="no record"):
        filled("{psnr.mean}", Pick(run="mjp_gamma", attack="gradvit"))
