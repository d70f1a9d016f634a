"""Leakage at a glance: one line per client, attack and kind of finding, and one sentence above them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsim.report.evidence import Evidence
from fedsim.report.ratings import Rating, scale, worst
from fedsim.report.summaries import NO_DEFENSE, Summary


@dataclass(frozen=True)
class Entry:
    """What one attack recovers of one client, by the first metric of its kind.

    Args:
        client: partition number.
        summary: the metric that is shown.
        kind: `pictures`, `labels`, `soft labels`, `features` or `other`; `nothing` when no attempt was scored.
        rating: the worst verdict over the metrics of the kind.
        decisive: another metric that is worse than the one shown.
    """

    client: int
    summary: Summary
    kind: str
    rating: Rating
    decisive: Summary | None


KINDS = ("pictures", "labels", "soft labels", "features")
"""What an attack may recover, the gravest first."""


def entries(summaries: Sequence[Summary]) -> list[Entry]:
    """Return the lines of the table, client by client, from the summaries by client."""
    groups: dict[tuple[int, str, str, str], list[Summary]] = {}
    for summary in summaries:
        kind = "nothing" if summary.metric is None else _kind(summary.metric)
        groups.setdefault((summary.clients[0], summary.defenses, summary.attack, kind), []).append(summary)
    return [_entry(client, kind, members) for (client, _, _, kind), members in groups.items()]


def _kind(metric: str) -> str:
    recovers = scale(metric).recovers
    return "pictures" if recovers == "images" else recovers


def _entry(client: int, kind: str, members: Sequence[Summary]) -> Entry:
    shown = next((summary for summary in members if summary.mean is not None), members[0])
    rating = worst(summary.rating for summary in members)
    judge = next(summary for summary in members if summary.rating == rating)
    return Entry(client, shown, kind, rating, None if shown.rating == rating else judge)


def client_ratings(lines: Iterable[Entry]) -> dict[int, Rating]:
    """Return the worst verdict of each client."""
    found: dict[int, Rating] = {}
    for line in lines:
        found[line.client] = worst([found.get(line.client, "unrated"), line.rating])
    return found


def enumerated(words: Iterable[object]) -> str:
    """Return "a, b and c"."""
    *most, last = [str(word) for word in words]
    return f"{', '.join(most)} and {last}" if most else last


def clients_named(numbers: Sequence[int]) -> str:
    """Return "client 3" or "clients 0, 1 and 2"."""
    return f"client{'s' if len(numbers) != 1 else ''} {enumerated(numbers)}"


def headline(evidence: Evidence, lines: Sequence[Entry]) -> str:
    """Return the result in one sentence: the gravest kind of finding, and the others in short."""
    rated = [(kind, [line for line in lines if line.kind == kind and line.rating != "unrated"]) for kind in KINDS]
    known = [(kind, own) for kind, own in rated if own]
    if known:
        return f"{_claim(known[0][1], known[0][0])}{''.join(_too(own, kind) for kind, own in known[1:])}."
    if not evidence.records:
        return (
            "No attack has been recorded yet." if evidence.is_audited else "The scenario names no attack to audit with."
        )
    failed, refused = (sum(record.status == s for record in evidence.records) for s in ("failed", "refused"))
    found = len(evidence.records) - failed - refused
    if found:
        return f"Attacks returned {found} finding{'s' if found != 1 else ''}, none of which could be rated."
    return f"No attack returned a finding: {failed} failed and {refused} were refused."


def _claim(lines: Sequence[Entry], kind: str) -> str:
    total = len({line.client for line in lines})
    rating = worst(line.rating for line in lines)
    hit = [line for line in lines if line.rating == rating]
    count = len({line.client for line in hit})
    if rating not in ("leaks", "partial"):
        return f"None of {_counted(total)} leaks its {kind}: {_reach(lines)}"
    verb, whose = ("leaks", "its") if count == 1 else ("leak", "their")
    part = "part of " if rating == "partial" else ""
    return f"{count} of {_counted(total)} {verb} {part}{whose} {kind}: {_who(hit)}, {_reach(hit)}"


def _counted(clients: int) -> str:
    return f"{clients} client{'s' if clients != 1 else ''}"


def _too(lines: Sequence[Entry], kind: str) -> str:
    total = len({line.client for line in lines})
    hit = [line.client for line in lines if line.rating == "leaks"]
    return f"; {kind} leak from {len(set(hit)) or 'none'} of {total}"


def _who(hit: Sequence[Entry]) -> str:
    groups: dict[str, list[int]] = {}
    for line in hit:
        numbers = groups.setdefault(line.summary.defenses, [])
        if line.client not in numbers:
            numbers.append(line.client)
    return enumerated(
        f"{clients_named(numbers)} ({'no defense' if defenses == NO_DEFENSE else defenses})"
        for defenses, numbers in groups.items()
    )


def _reach(lines: Sequence[Entry]) -> str:
    """Return how far the strongest attempt gets, and what a blind guess gets there."""
    top = max((line.decisive or line.summary for line in lines), key=_severity)
    written = scale(str(top.metric))
    value, control = top.mean, top.best.value if top.best else None
    if top.peak and top.peak.control is not None:
        value, control = top.peak.value, top.peak.control
    assert value is not None and control is not None
    title = written.title if written.recovers == "images" else written.title.removeprefix("Label ").lower()
    way = "down" if top.worse == "lower" else "up"
    return f"{way} to {written.write(value)} {title} where a blind guess reaches {written.write(control)}"


def _severity(summary: Summary) -> float:
    """Return skill in units of the threshold for a leak, so that metrics can be compared."""
    gained = summary.peak.skill if summary.peak and summary.peak.skill is not None else summary.skill
    return -math.inf if gained is None else gained / scale(str(summary.metric)).leaks
