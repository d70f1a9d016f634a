"""Figures in the documents are those of the files that they come from, and rows of other sources than today's are marked."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import picture_results  # noqa: E402
from pictures import sources  # noqa: E402

RESULTS = [
    ROOT / "benchmarks" / "results" / f"pictures{name}.json" for name in ("", "_trained", "_newton", "_defended")
]
INTERVAL = re.compile(r"(-?\d+\.\d)(?:\*\*)? \[(-?\d+\.\d), (-?\d+\.\d)\]")
DOCUMENTS = ("README.md", "attacks/README.md")


def rows():
    return [row for file in RESULTS for row in json.loads(file.read_text())["rows"]]


def means():
    """Return every mean with its interval that the stored attempts come to, as text."""
    cells = {}
    for row in rows():
        place = (row["label"], row["state"], row["batch_size"], row["defense"], row["seed"])
        cells.setdefault((*place, picture_results.pictures_of(row)), []).append(row)
    found = [summary for cell in cells.values() if (summary := picture_results.summarize(cell))]
    return {
        str(mean) for summary in found for mean in (summary.psnr, summary.margin, summary.wrong) if mean is not None
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_mean_with_an_interval_is_that_of_stored_attempts(document):
    quoted = [f"{value} [{low}, {high}]" for value, low, high in INTERVAL.findall((ROOT / document).read_text())]
    assert len(quoted) >= 8
    assert [text for text in quoted if text not in means()] == []


def test_rows_that_other_sources_made_are_marked_as_older():
    catalogue = (ROOT / "attacks" / "README.md").read_text()
    for code in {row["code"] for row in rows()}:
        assert f"`{code}`" in catalogue
    marked = "older than this version" in catalogue
    assert marked == any(row["code"] != sources() for row in rows())


def test_every_row_states_the_sources_that_made_it():
    assert all(re.fullmatch("[0-9a-f]{12}", row["code"]) for row in rows())
