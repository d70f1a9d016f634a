"""Tables and other figures of the gallery's scenarios: made from runs that are kept as JSON, written into the documents.

    python benchmarks/scenario_tables.py
    python benchmarks/scenario_tables.py --run mjp_gamma april_stock
    python benchmarks/scenario_tables.py --run gradvit_ablation april_imagenet --cifar FOLDER --imagenet FOLDER

`--run` runs scenarios first (see scenario_runs.py), in folders under `--folders`; a folder that is finished is read, not
run again. Then every table between `<!-- table: NAME -->` and `<!-- end -->` is written anew, and so is the result of every
row of the attacks' catalogue whose command is one of the runs. What other attacks' sources than today's made is marked as
older. Sentences are not written: those whose figures are no longer those of the runs are printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from attack_sources import is_current, older
from scenario_claims import CATALOGUE, CLAIMS, Parts
from scenario_figures import filled, stored
from scenario_layouts import TABLES, Table
from scenario_runs import ROOT, RUNS, make

from fedsim.recording.files import write_atomically

GALLERY, ATTACKS = "scenarios/README.md", "attacks/README.md"
DOCUMENTS = ("README.md", GALLERY, ATTACKS, "defenses/README.md")
# Tables of which no run is kept: what they say is older than this version.
WITHOUT_FILE = (
    "pictures_from_batches_224",
    "cifar10_accuracy",
    "cifar10_fedavg",
)
NO_FILE = "Older than this version: figures without a file."
OLDER = " (of older sources)"

_BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)\n<!-- end -->", re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the tables between markers, with their names."""
    return _BLOCK.findall(text)


def rendered(name: str) -> str:
    """Return a table as Markdown, with a mark where other sources than today's made it."""
    table = TABLES[name]
    headings = [filled(column.heading, table.pick.narrowed(column.pick)) for column in table.columns]
    lines = [
        "| " + " | ".join([table.corner, *headings]) + " |",
        "|" + "---|" * (len(table.columns) + 1),
        *("| " + " | ".join(cells) + " |" for cells in _rows(table)),
    ]
    mark = _mark(table.runs)
    return "\n".join([*lines, *(["", mark] if mark else [])])


def _rows(table: Table) -> Iterable[list[str]]:
    for row in table.rows:
        yield [row.heading, *(filled(*table.cell(row, column)) for column in table.columns)]


def _mark(runs: Iterable[str]) -> str | None:
    codes = sorted({code for run in runs for code in older(stored(run)["code"])})
    named = " and ".join(f"`{code}`" for code in codes)
    return f"Older than this version: made by the attacks' sources {named}." if codes else None


def with_tables(text: str) -> str:
    """Return a document with its tables written anew; those without a file are marked alone."""

    def replace(match: re.Match[str]) -> str:
        name, content = match.groups()
        if name in WITHOUT_FILE:
            content = content if content.endswith(NO_FILE) else f"{content}\n\n{NO_FILE}"
        else:
            content = rendered(name)
        return f"<!-- table: {name} -->\n{content}\n<!-- end -->"

    return _BLOCK.sub(replace, text)


def text_of(parts: Parts) -> str:
    """Return text out of figures of several picks."""
    return "".join(filled(template, pick) for pick, template in parts)


def _runs(parts: Parts) -> set[str]:
    return {part.pick.run for part in parts if part.pick.run}


def with_catalogue(text: str) -> str:
    """Return the attacks' catalogue with the results of its rows of scenarios written anew."""
    lines = text.split("\n")
    for run, parts in CATALOGUE.items():
        wanted = f"| `{RUNS[run].command}` |"
        found = [number for number, line in enumerate(lines) if wanted in line]
        if len(found) != 1:
            raise ValueError(f"{ATTACKS}: expected one row of {wanted}, found {len(found)}.")
        head, _, _ = lines[found[0]].partition(wanted)
        mark = OLDER if not all(is_current(stored(name)["code"]) for name in _runs(parts)) else ""
        lines[found[0]] = f"{head}{wanted} {text_of(parts)}{mark} |"
    return "\n".join(lines)


def written(document: str) -> str:
    """Return a document as it should be."""
    text = with_tables((ROOT / document).read_text())
    return with_catalogue(text) if document == ATTACKS else text


def missing_claims(document: str) -> list[str]:
    """Return the sentences of runs that a document should hold and does not."""
    text = " ".join((ROOT / document).read_text().split())
    return [claim for parts in CLAIMS[document] if (claim := text_of(parts)) not in text]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=[], choices=RUNS, metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--folders", type=Path, default=ROOT / "runs" / "scenarios", help="where the run folders are")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet")
    parser.add_argument("--imagenet", type=Path, help="folder of images in class sub-folders")
    options = parser.parse_args(arguments)
    for name in options.run:
        pictures = RUNS[name].pictures
        folder = getattr(options, pictures) if pictures else None
        if pictures and folder is None:
            parser.error(f"{name} needs --{pictures}")
        make(RUNS[name], options.folders / name, folder and folder.resolve())
    wrong = []
    for document in DOCUMENTS:
        write_atomically(ROOT / document, written(document))
        wrong += [f"{document}: {claim}" for claim in missing_claims(document)]
    for claim in wrong:
        print(f"should say, and does not: {claim}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
