"""Overview of leakage: one entry per client, attack and kind of finding, a verdict per client, and one sentence above them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedsim.findings.kinds import IMAGES, KINDS, gravest
from fedsim.metrics.ratings import scale
from fedsim.recording.run_data import RunData
from fedsim.report.naming import NO_DEFENSE
from fedsim.report.summaries import Peak, Summary
from fedsim.verdicts.judge import Verdict, kind_of, worst
from fedsim.verdicts.scope import Scope
from fedsim.verdicts.several import ViewEntry

_MOST_NAMED = 20  # clients in one sentence


@dataclass(frozen=True)
class Entry:
    """What one attack recovers of one client, by the first metric of its kind.

    Args:
        client: partition number.
        summary: the metric that is shown.
        kind: `images`, `labels`, `soft labels`, `features` or `other`; `nothing` when no attempt was scored and the record
            does not say what the attack is after.
        verdict: the worst over the metrics of the kind; one that shows a leak decides, else one that has a value.
        reason: why, where no leak was found.
        is_open: whether that is something which no other attack's failure dispels.
        decisive: another metric that is worse than the one shown.
    """

    client: int
    summary: Summary
    kind: str
    verdict: Verdict
    reason: str
    is_open: bool
    decisive: Summary | None

    @property
    def judge(self) -> Summary:
        """The metric that decides the verdict."""
        return self.decisive or self.summary


@dataclass(frozen=True)
class ClientVerdict:
    """What may be claimed of one client.

    Args:
        verdict: the worst over the kinds of what may leak. Not `resisted` where its images were never attacked, or where a
            record that the scenario asks for is missing.
        kinds: kind -> the verdict of the attack that got farthest. One that is known to work and found nothing outweighs those
            that are not made for the update, or not known to work on it, but none that met something here: a failure, a score
            that luck or another client's update explains, a missing record.
    """

    verdict: Verdict
    kinds: Mapping[str, Verdict]


def entries(summaries: Sequence[Summary]) -> list[Entry]:
    """Return the lines of the table, client by client, from the summaries by client."""
    groups: dict[tuple[int, str, str, str], list[Summary]] = {}
    for summary in summaries:
        for kind in _kinds(summary):
            groups.setdefault((summary.clients[0], summary.defenses, summary.attack, kind), []).append(summary)
    return [_entry(client, kind, members) for (client, _, _, kind), members in groups.items()]


def _kinds(summary: Summary) -> list[str]:
    if summary.metric is not None:
        return [kind_of(summary.metric)]
    sought = [gravest((field,)) for field in summary.recovers]
    return [kind.name for kind in sought if kind is not None] or ["nothing"]


def _entry(client: int, kind: str, members: Sequence[Summary]) -> Entry:
    shown = next((summary for summary in members if summary.mean is not None), members[0])
    leaking = [summary for summary in members if summary.verdict in ("leaks", "partial")]
    # A metric that is unavailable, or shown and not rated, takes nothing from what another one shows.
    rated = [summary for summary in members if summary.level != "unrated"]
    verdict = worst(summary.verdict for summary in leaking or rated or members)
    judge = next(summary for summary in leaking or rated or members if summary.verdict == verdict)
    decisive = judge if leaking and shown.verdict != verdict else None
    is_open = any(summary.is_open for summary in leaking or rated or members)
    return Entry(client, shown, kind, verdict, judge.reason, is_open, decisive)


def client_verdicts(
    lines: Iterable[Entry], scope: Scope | None = None, views: Sequence[ViewEntry] = ()
) -> dict[int, ClientVerdict]:
    """Return the verdict of each client; controls, which look at no update, say nothing.

    Args:
        lines: all of the table.
        scope: what the audit covers; all that there is where it is not given.
        views: what attacks on several updates show. What leaks of all updates of a client is the client's leak. What leaks of
            a round or the run may be the client's, which then has not resisted.
    """
    found: dict[int, dict[str, list[Entry]]] = {}
    for line in lines:
        kinds = found.setdefault(line.client, {})
        if not line.summary.is_control:
            kinds.setdefault(line.kind, []).append(line)
    verdicts = {}
    together = [view for view in views if view.is_leak]
    for view in together:
        for record in view.leaking if view.scope == "client" else ():
            found.setdefault(record.view.clients[0], {})
    for client, kinds in found.items():
        by_kind = {kind: _farthest(_with_variants(members)) for kind, members in kinds.items()}
        for view in together:
            if any(client in record.view.clients for record in view.leaking):
                known = by_kind.get(view.kind)
                if view.scope == "client":
                    by_kind[view.kind] = worst([view.verdict, *([known] if known else [])])
                elif known == "resisted":
                    by_kind[view.kind] = "inconclusive"
        is_lacking = IMAGES.name not in by_kind or (scope is not None and client in scope.lacking_clients)
        unknown: tuple[Verdict, ...] = ("inconclusive",) if is_lacking else ()
        verdicts[client] = ClientVerdict(worst([*by_kind.values(), *unknown]), by_kind)
    return verdicts


def _with_variants(lines: Sequence[Entry]) -> list[Entry]:
    """Return the lines of one kind, without plain variants that resisted what the aware attack cannot tell.

    That an attack which is not told of a defense finds nothing does not make up for one that is told and cannot tell.
    """
    unknown = {one.summary.aware_key for one in lines if not one.summary.is_plain and one.verdict == "inconclusive"}
    return [
        one
        for one in lines
        if not (one.summary.is_plain and one.verdict == "resisted" and one.summary.aware_key in unknown)
    ]


def _farthest(lines: Sequence[Entry]) -> Verdict:
    is_open = any(line.is_open and line.verdict == "inconclusive" for line in lines)
    order: tuple[Verdict, ...] = (
        "leaks",
        "partial",
        *(("inconclusive", "resisted") if is_open else ("resisted", "inconclusive")),
    )
    return min((line.verdict for line in lines), key=order.index)


def overall(lines: Iterable[Entry], scope: Scope | None = None, views: Sequence[ViewEntry] = ()) -> Verdict:
    """Return the verdict of the whole run: the worst of all clients; `inconclusive` where nothing was attacked.

    What took part and was not audited is inconclusive as well.

    Args:
        lines: all of the table.
        scope: what the audit covers; all that there is where it is not given.
        views: what attacks on several updates show.
    """
    together = [view.verdict for view in views if not view.is_control]
    unknown: tuple[Verdict, ...] = () if scope is None or scope.is_whole else ("inconclusive",)
    clients = client_verdicts(lines, scope, views).values()
    return worst([*(client.verdict for client in clients), *together, *unknown])


def enumerated(words: Iterable[object]) -> str:
    """Return "a, b and c"."""
    *most, last = [str(word) for word in words]
    return f"{', '.join(most)} and {last}" if most else last


def clients_named(numbers: Sequence[int]) -> str:
    """Return "client 3" or "clients 0, 1 and 2", of more than `_MOST_NAMED` the first ones and how many more."""
    named = [str(number) for number in numbers[:_MOST_NAMED]]
    more = [f"{len(numbers) - _MOST_NAMED} more"] if len(numbers) > _MOST_NAMED else []
    return f"client{'s' if len(numbers) != 1 else ''} {enumerated([*named, *more])}"


def headline(run: RunData, lines: Sequence[Entry], scope: Scope | None = None, views: Sequence[ViewEntry] = ()) -> str:
    """Return the result in one sentence: the gravest kind of finding, and the others in short.

    Args:
        run: what the run folder holds.
        lines: all of the table.
        scope: what the audit covers; worked out where it is not given.
        views: what attacks on several updates at once show.
    """
    scope = scope or Scope.of(run)
    together = [entry.written for entry in views if entry.is_leak]
    open_views = [entry for entry in views if not entry.is_leak and not entry.is_control]
    if open_views:
        first, more = open_views[0], len(open_views) - 1
        others = f", and {more} more of this kind" if more else ""
        together.append(
            f"inconclusive for the {first.kind} by {first.attack} ({first.looks_at}: {first.reason}{others})"
        )
    looking = [line for line in lines if not line.summary.is_control]
    known = [(kind, own) for kind in KINDS if (own := [line for line in looking if line.kind == kind])]
    if known:
        leaking = [kind for kind, own in known if worst(line.verdict for line in own) in ("leaks", "partial")]
        main = leaking[0] if leaking else known[0][0]
        rest = [(kind, own) for kind, own in known if kind != main]
        also = any(entry.is_leak and entry.kind == main for entry in views)
        said = [_claim(dict(known)[main], main, len(scope.clients), also), *(_too(own, kind) for kind, own in rest)]
        if not leaking and IMAGES.name not in dict(known):
            said.append(f"{IMAGES.name} were not attacked")
        return f"{'; '.join([*said, *together, *filter(None, [scope.written()])])}."
    if together:
        said = [*together, *([_unrated(run)] if looking else []), *filter(None, [scope.written()])]
        return f"{_capital('; '.join(said))}."
    if views:
        return "Inconclusive: only controls were run, and they look at no update."
    if not run.records:
        return "No attack has been recorded yet." if run.is_audited else "The scenario names no attack to audit with."
    if not looking:
        return "Inconclusive: only controls were run, and they look at no update."
    return f"Inconclusive: {_unrated(run)}."


def _unrated(run: RunData) -> str:
    failed, refused = (sum(record.status == s for record in run.records) for s in ("failed", "refused"))
    found = len(run.records) - failed - refused
    if found:
        return f"attacks returned {found} finding{'s' if found != 1 else ''}, none of which could be rated"
    return f"no attack returned a finding; {failed} failed and {refused} were refused"


def _capital(text: str) -> str:
    # Names of attacks stay as they are written.
    return f"I{text[1:]}" if text.startswith("inconclusive ") else text


def _by_verdict(lines: Sequence[Entry], kind: str) -> dict[Verdict, list[int]]:
    found: dict[Verdict, list[int]] = {}
    for client, verdict in client_verdicts(lines).items():
        found.setdefault(verdict.kinds[kind], []).append(client)
    return found


def _claim(lines: Sequence[Entry], kind: str, took_part: int, leaks_elsewhere: bool = False) -> str:
    clients = _by_verdict(lines, kind)
    attacked = sum(len(numbers) for numbers in clients.values())
    total = max(attacked, took_part)
    parts: list[str] = []
    for verdict, part in (("leaks", ""), ("partial", "part of ")):
        numbers = clients.get(verdict, [])  # type: ignore[call-overload]
        if numbers:
            own = set(numbers)
            hit = [line for line in lines if line.client in own and line.verdict == verdict]
            verb, whose = ("leaks", "its") if len(numbers) == 1 else ("leak", "their")
            counted = str(len(numbers)) if parts else f"{len(numbers)} of {_counted(total)}"
            parts.append(f"{counted} {verb} {part}{whose} {kind}: {_who(hit)}, {_reach(hit)}")
    resisted, unknown = clients.get("resisted", []), clients.get("inconclusive", [])
    if not parts and not resisted:
        whom = _all(total) if attacked == total else f"{attacked} of {_counted(total)}"
        return f"Inconclusive for the {kind} of {whom}: {_why(lines, unknown)}"
    if resisted:
        own = set(resisted)
        attacks, others = (
            dict.fromkeys(line.summary.attack for line in lines if line.client in own and line.verdict == verdict)
            for verdict in ("resisted", "inconclusive")
        )
        alone = f"{len(resisted)} of {_counted(total)}"
        counted = str(len(resisted)) if parts else alone if leaks_elsewhere else f"No leak of {kind} was found: {alone}"
        blind = f" ({enumerated(others)} cannot tell)" if others else ""
        parts.append(f"{counted} resisted {enumerated(attacks)}{blind}")
    if unknown:
        is_are = "is" if len(unknown) == 1 else "are"
        parts.append(f"{len(unknown)} {is_are} inconclusive ({clients_named(unknown)}; {_why(lines, unknown)})")
    return "; ".join(parts)


def _all(total: int) -> str:
    return "the only client" if total == 1 else f"all {total} clients"


def _why(lines: Sequence[Entry], clients: Sequence[int]) -> str:
    """Return the most frequent reason of these clients' inconclusive lines, with the attack that it is about."""
    reasons: dict[tuple[str, str], int] = {}
    wanted = set(clients)
    for line in lines:
        if line.client in wanted and line.verdict == "inconclusive":
            key = (line.summary.attack, line.reason)
            reasons[key] = reasons.get(key, 0) + 1
    attack, reason = max(reasons, key=lambda key: reasons[key])
    others = len({key[1] for key in reasons}) - 1
    more = f", and {others} more reason{'s' if others != 1 else ''} below" if others else ""
    return f"{attack}: {reason.partition(';')[0].rstrip('.')}{more}"


def _counted(clients: int) -> str:
    return f"{clients} client{'s' if clients != 1 else ''}"


def _too(lines: Sequence[Entry], kind: str) -> str:
    clients = _by_verdict(lines, kind)
    total = sum(len(numbers) for numbers in clients.values())
    said = [f"{kind} leak from {len(clients['leaks'])} of {total}"] if "leaks" in clients else []
    words: tuple[tuple[Verdict, str], ...] = (
        ("partial", "leak in part from"),
        ("resisted", "resisted for"),
        ("inconclusive", "inconclusive for"),
    )
    for verdict, word in words:
        if verdict in clients:
            count = f"{len(clients[verdict])}" + ("" if said else f" of {total}")
            said.append(f"{word} {count}" if said else f"{kind} {word} {count}")
    return ", ".join(said)


def _who(hit: Sequence[Entry]) -> str:
    groups: dict[str, dict[int, None]] = {}
    for line in hit:
        groups.setdefault(line.summary.defenses, {})[line.client] = None
    return enumerated(
        f"{clients_named(list(numbers))} ({'no defense' if defenses == NO_DEFENSE else defenses})"
        for defenses, numbers in groups.items()
    )


def _reach(lines: Sequence[Entry]) -> str:
    """Return what the attempt furthest beyond a blind guess gets, what the best blind guess gets there, and the floor."""
    top = max((line.judge for line in lines), key=severity)
    written = scale(str(top.metric))
    value, control, floor = top.mean, top.best.value if top.best else None, top.floor.value if top.floor else None
    if top.peak and top.peak.control is not None:
        value, control, floor = _shown(top.peak)
    assert value is not None and control is not None
    named = written.short or written.title
    said = f"most clearly at {written.write(value)} {named} where the best blind guess reaches {written.write(control)}"
    return said if floor is None else f"{said} (own mean color, a floor known from the truth: {written.write(floor)})"


def _shown(peak: Peak) -> tuple[float, float | None, float | None]:
    if peak.example is not None:
        return peak.example.value, peak.example.control, peak.example.floor
    return peak.value, peak.control, peak.floor


def severity(summary: Summary) -> float:
    """Return skill in units of the threshold for a leak, so that metrics can be compared."""
    gained = summary.peak.skill if summary.peak and summary.peak.skill is not None else summary.skill
    return -math.inf if gained is None else gained / scale(str(summary.metric)).leaks
