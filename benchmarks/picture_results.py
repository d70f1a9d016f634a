"""Attempts on images as JSON: one row each, written as they are made, and their means as a Markdown table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.metrics.bootstrap import interval
from fedsim.metrics.skill import best_control
from fedsim.recording.files import write_atomically
from fedsim.seeds import numpy_generator

Row = dict[str, Any]

_PLACE = ("label", "digest", "defense", "auxiliary", "threads", "seed", "budget")
_BLIND = ("grey", "own_mean", "dataset_mean")


class Results:
    """The rows of one file: for each attack as it was named and each batch, the latest attempt."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, Any] = {}
        self._rows: dict[str, Row] = {}
        if path.exists():
            content = json.loads(path.read_text())
            self._facts = content["facts"]
            self._rows = {place(row): row for row in content["rows"]}

    def find(self, row: Row) -> Row | None:
        """Return the finished row of the same attempt, where there is one; other defaults make another attempt."""
        known = self._rows.get(place(row))
        return known if known is not None and _plain(known["params"]) == _plain(row["params"]) else None

    def note(self, name: str, fact: Any) -> None:
        """Set what holds for the rows as a whole."""
        self._facts[name] = fact

    def put(self, row: Row) -> None:
        """Add or replace a row, and write the file."""
        self._rows[place(row)] = row
        lines = ",\n".join(json.dumps(each, allow_nan=False) for each in self._rows.values())
        facts = json.dumps(self._facts, allow_nan=False)
        write_atomically(self._path, f'{{"facts": {facts},\n"rows": [\n{lines}\n]}}\n')


def place(row: Row) -> str:
    """Return the place of a row in its file."""
    return json.dumps([row[key] for key in _PLACE])


def images_of(row: Row) -> str:
    """Return the pool that the batch of a row was drawn from; rows that do not state it are of test images."""
    return str(row.get("pictures", "test"))


def _plain(params: Any) -> Any:
    return json.loads(json.dumps(params))


class Mean(NamedTuple):
    """A mean over batches and its 95% bootstrap interval; none for fewer than two."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        bounds = "" if self.low is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f}{bounds}"


def mean(values: Sequence[float], *path: str | int) -> Mean:
    """Return the mean of one value a batch; `path` names the resamples."""
    bounds = interval(values, numpy_generator(0, "bootstrap", *path))
    return Mean(statistics.fmean(values), *(bounds or (None, None)))


class Summary(NamedTuple):
    """What the attempts of one attack on batches of one size and state come to.

    Args:
        batches: attempts that were not refused.
        refused: attempts that were.
        psnr: in decibels, over batches; of a batch, over its images.
        ssim: likewise.
        control: of each batch the blind guess with the highest PSNR.
        margin: PSNR beyond it.
        wrong: PSNR of what was found in another batch's gradient, beyond grey; None where it was not measured.
        label_recall: share of the labels found.
        seconds: of processor time a batch, which with one thread is what it takes on a quiet machine.
    """

    batches: int
    refused: int
    psnr: Mean
    ssim: float
    control: float
    margin: Mean
    wrong: Mean | None
    label_recall: float | None
    seconds: float


def summarize(rows: Sequence[Row]) -> Summary | None:
    """Return the summary of the rows of one cell, or None where every attempt was refused."""
    made = [row for row in rows if "refused" not in row]
    if not made:
        return None
    path = (made[0]["label"], made[0]["state"], made[0]["batch_size"])
    scores = [statistics.fmean(row["psnr"]) for row in made]
    best = [_best(row) for row in made]
    wrong = [row["wrong_update"] - row["controls"]["grey"]["psnr"] for row in made if "wrong_update" in row]
    recalls = [row["label_recall"] for row in made if "label_recall" in row]
    return Summary(
        len(made),
        len(rows) - len(made),
        mean(scores, "psnr", *path),
        statistics.fmean(statistics.fmean(row["ssim"]) for row in made),
        statistics.fmean(best),
        mean([score - control for score, control in zip(scores, best, strict=True)], "margin", *path),
        mean(wrong, "wrong", *path) if wrong else None,
        statistics.fmean(recalls) if recalls else None,
        statistics.fmean(row["processor_seconds"] for row in made),
    )


def _best(row: Row) -> float:
    found = best_control("psnr", {name: row["controls"][name] for name in _BLIND}, "higher")
    assert found is not None
    return found.value


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table, one row a cell, in the order in which the cells first occur."""
    cells: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["state"], row["batch_size"], images_of(row), row["label"]), []).append(row)
    lines = [
        "| state | batch | images | attack | PSNR, dB | SSIM | best control | margin | wrong update over grey | labels | "
        "CPU s |",
        "|" + "---|" * 11,
    ]
    for (state, size, pictures, label), found in cells.items():
        lines.append(f"| {state} | {size} | {pictures} | `{label}` | " + " | ".join(_columns(found)) + " |")
    return "\n".join(lines)


def _columns(found: list[Row]) -> list[str]:
    summary = summarize(found)
    if summary is None:
        return [f"refused: {found[0]['refused']}", *["-"] * 6]
    part = f" ({summary.batches} of {summary.batches + summary.refused})" if summary.refused else ""
    return [
        f"{summary.psnr}{part}",
        f"{summary.ssim:.2f}",
        f"{summary.control:.1f}",
        str(summary.margin),
        "-" if summary.wrong is None else str(summary.wrong),
        "-" if summary.label_recall is None else f"{summary.label_recall:.2f}",
        f"{summary.seconds:.0f}",
    ]
