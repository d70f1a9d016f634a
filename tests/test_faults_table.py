"""The table of faults: every row says what is lost, and names tests that are there or that it was run by hand."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_row_of_the_table_of_faults_names_its_tests_or_how_it_was_run_by_hand() -> None:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    faults = [row for row in rows if row[0] != "fault"]
    assert len(faults) > 20 and all(len(row) == 4 and all(row) for row in rows)
    for fault, _, _, test in faults:
        named = re.findall(r"tests/\S+\.py", test)
        assert named or test.startswith("by hand: "), fault
        assert all((ROOT / name).is_file() for name in named), named
