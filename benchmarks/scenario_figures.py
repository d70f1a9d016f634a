"""Figures out of the stored records of a run, and text with figures in it.

Text is a format string; its names are metrics (`{psnr.mean:.1f}`), controls (`{own_mean.psnr.mean:.1f}`), what a metric
is beyond a control (`{beyond_own_mean.psnr.mean:+.1f}`), and `seconds`, `accuracy`, `verdict`, `defenses`. A figure is a
`Statistic` of the picked records, one value each; `{evaluations[NAME]:.2f}` is a score of the run's evaluators.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import picture_results
from scenario_runs import RUNS

Record = dict[str, Any]

_EXPONENT = re.compile(r"(e[-+])0(?=\d)")


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which records a figure is of; None where any."""

    run: str | None = None
    attack: str | None = None
    clients: tuple[int, ...] | None = None
    round: int | None = None

    def narrowed(self, other: Pick) -> Pick:
        """Return this pick with what the other one states."""
        return replace(self, **{name: value for name, value in vars(other).items() if value is not None})

    def takes(self, record: Record) -> bool:
        """Return whether a record is picked."""
        return (
            self.attack in (None, record["attack"])
            and (self.clients is None or record["client"] in self.clients)
            and self.round in (None, record["round"])
        )


ANY = Pick()


class _Series(tuple[float, ...]):
    """Several figures, one behind the other."""

    def __format__(self, spec: str) -> str:
        return " / ".join(format(value, spec) for value in self)


class _Mean:
    """A mean with its 95% bootstrap interval."""

    def __init__(self, values: Sequence[float]) -> None:
        self._mean = picture_results.mean(values, "scenarios")

    def __format__(self, spec: str) -> str:
        low, high = self._mean.low, self._mean.high
        bounds = "" if low is None or high is None else f" [{low:{spec}}, {high:{spec}}]"
        return f"{self._mean.value:{spec}}{bounds}"


@dataclass(frozen=True)
class Statistic:
    """Values of one metric.

    Args:
        values: one a record.
        clients: whose each is.
        examples: one an image, where these are kept.
    """

    values: tuple[float, ...]
    clients: tuple[int, ...] = ()
    examples: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over records."""
        return statistics.fmean(self.values)

    @property
    def least(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest."""
        return max(self.values)

    @property
    def interval(self) -> _Mean:
        """Mean and interval over records."""
        return _Mean(self.values)

    @property
    def over_images(self) -> _Mean:
        """Mean and interval over images."""
        return _Mean(self.examples)

    @property
    def each(self) -> _Series:
        """Mean of each client."""
        own: dict[int, list[float]] = {}
        for client, value in zip(self.clients, self.values, strict=True):
            own.setdefault(client, []).append(value)
        return _Series(statistics.fmean(own[client]) for client in sorted(own))


@cache
def stored(run: str) -> dict[str, Any]:
    """Return the JSON of a run."""
    content: dict[str, Any] = json.loads(RUNS[run].file.read_text())
    return content


def figures(pick: Pick) -> dict[str, Any]:
    """Return what a format string may name."""
    assert pick.run is not None
    content = stored(pick.run)
    records = [record for record in content["records"] if pick.takes(record)]
    evaluations = content.get("evaluations", {})
    if not records and not evaluations:
        raise ValueError(f"no record of {pick}")
    names: dict[str, Any] = {
        metric: _statistic(records, partial(_score, metric=metric), metric)
        for metric in _names(record["scores"] for record in records)
    }
    for control in _names(record["controls"] for record in records):
        names[control] = _namespace(records, control, _control)
        names[f"beyond_{control}"] = _namespace(records, control, _beyond)
    names["seconds"] = _statistic(records, itemgetter("seconds"))
    names["accuracy"] = content["accuracy"]
    names["evaluations"] = evaluations
    names["defenses"] = _joined(" + ".join(f"`{name}`" for name in record["defenses"]) or "none" for record in records)
    names["verdict"] = {
        kind: _joined(content["verdicts"][str(record["client"])][kind] for record in records)
        for kind in content["verdicts"].get(str(records[0]["client"]) if records else "", {})  # of sums there are none
    }
    return names


def filled(template: str, pick: Pick) -> str:
    """Return the text with its figures; an empty one needs none."""
    return template and _EXPONENT.sub(r"\1", template.format_map(figures(pick)))


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))


def _names(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _statistic(records: Sequence[Record], value: Callable[[Record], float | None], metric: str = "") -> Statistic:
    found = [(record["client"], number) for record in records if (number := value(record)) is not None]
    examples = tuple(number for record in records for number in record["pictures"].get(metric, ()))
    return Statistic(tuple(number for _, number in found), tuple(client for client, _ in found), examples)


def _namespace(
    records: Sequence[Record], control: str, value: Callable[[Record, str, str], float | None]
) -> SimpleNamespace:
    metrics = _names(record["controls"].get(control, {}) for record in records)

    def of(metric: str) -> Statistic:
        return _statistic(records, lambda record: value(record, control, metric))

    return SimpleNamespace(**{metric: of(metric) for metric in metrics})


def _score(record: Record, metric: str) -> float | None:
    value: float | None = record["scores"].get(metric)
    return value


def _control(record: Record, control: str, metric: str) -> float | None:
    value: float | None = record["controls"].get(control, {}).get(metric)
    return value


def _beyond(record: Record, control: str, metric: str) -> float | None:
    score, floor = _score(record, metric), _control(record, control, metric)
    return None if score is None or floor is None else score - floor
