"""From folders to compare.html, compare.csv, compare.json and compare.tex; no clock, one fixed seed for the intervals."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fedsim.comparing import plots, writing
from fedsim.comparing.choice import Choice, choices
from fedsim.comparing.leaks import Attacker, carried
from fedsim.comparing.settings import Family, Setting, epsilon_of, families
from fedsim.comparing.sources import Source, sources
from fedsim.comparing.spread import FEWEST_SEEDS
from fedsim.errors import RunFolderError
from fedsim.metrics.ratings import scale
from fedsim.recording.files import OWNER_ONLY, write_atomically
from fedsim.report.embedding import Plot, plot
from fedsim.report.rendering import html
from fedsim.report.tables import as_csv

_TEMPLATES = Path(__file__).parent / "templates"
_DIFFERENT = (
    "Models or data differ between these settings, so they are no repetitions of one experiment: each model on its data has a "
    "section of its own, and nothing is paired between them."
)


class Compared(NamedTuple):
    """What a comparison comes to, for the terminal.

    Args:
        page: compare.html.
        titles: of the columns of the table.
        rows: one per setting.
        statements: which setting is the cheapest that holds, or that none does.
    """

    page: Path
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    statements: tuple[str, ...]


def render(folders: Sequence[Path], out: Path, margin: float, baseline: str | None = None) -> Compared:
    """Write the comparison of runs and sweeps; the same folders give the same bytes.

    Args:
        folders: of runs and of sweeps.
        out: where to write.
        margin: how far beyond its control an image attack may be, in decibels, for a setting to keep it near.
        baseline: the name of the setting to compare with; None for the one without defenses.

    Raises:
        RunFolderError: a folder is neither a run nor a sweep, or `out` cannot be written.
        FedsimError: there is no such baseline.
    """
    found, notes = sources(folders)
    if not found:
        raise RunFolderError(f"{', '.join(map(str, folders))}: no run to compare.")
    known = families(found, baseline)
    chosen = [choices(family, margin) for family in known]
    if len(known) > 1:
        notes.insert(0, _DIFFERENT)
    notes += _notes(known)
    try:
        out.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{out}: cannot be made: {error.strerror}.") from None
    page = out / "compare.html"
    write_atomically(out / "compare.csv", as_csv(writing.csv_rows(known)))
    write_atomically(out / "compare.json", writing.as_json(known, chosen, margin, notes))
    write_atomically(out / "compare.tex", writing.as_latex(known, chosen))
    values = _context(known, chosen, found, notes, margin, out)
    write_atomically(page, html(_TEMPLATES).get_template("compare.html.j2").render(values, contents=[]))
    first = known[0]
    return Compared(
        page,
        writing.titles(first),
        tuple(row for family in known for row in _padded(family, first)),
        tuple(dict.fromkeys(choice.statement for own in chosen for choice in own)),
    )


def _padded(family: Family, first: Family) -> list[tuple[str, ...]]:
    """Return the short rows of a family in the columns of the first one."""
    return writing.short_rows(Family(family.settings, first.attackers, family.title))


def _notes(known: Sequence[Family]) -> list[str]:
    settings = [setting for family in known for setting in family.settings]
    found = [f"{setting.name}, seed {source.seed}: {source.reason}." for setting in settings for source in setting.lost]
    few = [setting.name for setting in settings if 0 < len(setting.runs) < FEWEST_SEEDS]
    if few:
        which = "All settings" if len(few) == len(settings) else ", ".join(few)
        found.append(f"{which}: {writing.FEW}.")
    apart = [one.name for one in settings if one.baseline and {run.seed for run in one.runs} - one.paired]
    if apart:
        found.append(
            f"{', '.join(apart)}: some seeds are not paired with the baseline, which lacks them or has other data there."
        )
    without = [one.name for one in settings if one.baseline is None and not one.is_undefended]
    if without:
        found.append(f"{', '.join(without)}: no setting without defenses to compare with; --baseline names one.")
    return found


def _context(
    known: Sequence[Family],
    chosen: Sequence[Sequence[Choice]],
    found: Sequence[Source],
    notes: Sequence[str],
    margin: float,
    out: Path,
) -> dict[str, Any]:
    first = chosen[0][0]
    lost = sum(source.run is None for source in found)
    anchors = {
        id(setting): f"setting-{n}" for n, setting in enumerate((one for own in known for one in own.settings), 1)
    }
    settings = {id(source): anchors[id(one)] for own in known for one in own.settings for source in one.sources}
    rows = {id(source): f"run-{n}" for n, source in enumerate(found, 1)}
    told = Counter(note for source in found if source.run is not None for note in source.run.notes)
    return {
        "title": f"Comparison: {known[0].title if len(known) == 1 else f'{len(known)} models or data sets'}",
        "headline": first.statement
        if len(known) == 1
        else "The settings differ in their model or data: see each section.",
        "is_chosen": len(known) == 1 and first.chosen is not None,
        "facts": [
            ("Settings", sum(len(family.settings) for family in known)),
            ("Runs", len(found) - lost),
            ("Without a result", lost),
            ("Margin", f"{margin:g} dB"),
        ],
        "notes": notes,
        "families": [
            _section(*pair, number, len(known)) for number, pair in enumerate(zip(known, chosen, strict=True), 1)
        ],
        "runs": [{**_run(source, out), "anchor": settings.get(id(source))} for source in found],
        "anchor_of": lambda setting: anchors[id(setting)],
        "runs_of": lambda setting: next(
            (rows[id(source)] for source in setting.sources if id(source) in rows), "every-run"
        ),
        "run_notes": [f"{note} ({count} run{'s' if count > 1 else ''})" for note, count in told.items()],
        "writing": writing,
        "scale": scale,
        "carried": carried,
        "epsilon_of": epsilon_of,
        "margin": f"{margin:g}",
        "fewest": FEWEST_SEEDS,
    }


def _section(family: Family, chosen: Sequence[Choice], number: int, total: int) -> dict[str, Any]:
    by_name = {choice.against: choice for choice in chosen}
    return {
        "number": number,
        "title": family.title if total > 1 else "Settings",
        "family": family,
        "choices": chosen,
        "objections": by_name[""].reasons,
        "tradeoffs": [figure for attacker in family.attackers for figure in _tradeoff(family.settings, attacker)],
        "over_rounds": [figure for attacker in family.attackers for figure in _over_rounds(family.settings, attacker)],
        "has_groups": any(len(setting.groups) > 1 for setting in family.settings),
        "baselines": {setting.baseline.name for setting in family.settings if setting.baseline},
        "has_epsilon": any(setting.epsilon.written for setting in family.settings),
    }


def _metric_of(settings: Sequence[Setting], attacker: Attacker) -> str | None:
    rows = [setting.rows.get(attacker) for setting in settings]
    return next((row.metric for row in rows if row is not None and row.metric is not None), None)


def _tradeoff(settings: Sequence[Setting], attacker: Attacker) -> list[Plot]:
    metric, drawn = _metric_of(settings, attacker), plots.drawn(settings, attacker)
    if metric is None or not drawn:
        return []
    edge = plots.pareto(settings, attacker)
    points = "; ".join(
        f"{setting.name}: accuracy {accuracy:.3f}, {scale(metric).write(leakage, True)}"
        f"{'' if plots.is_conclusive(setting, attacker) else ', inconclusive'}"
        for setting, accuracy, leakage in drawn
    )
    named = ", ".join(setting.name for setting, _, _ in edge) or "none, since all are inconclusive"
    return [
        plot(
            f"{attacker.title}: leakage against accuracy; lower right is better. On the Pareto front: {named}. Hollow marks "
            "are inconclusive: they may leak more to another attack, and are never on the front.",
            f"{scale(metric).title} of {attacker.attack} beyond its control against accuracy. {points}.",
            plots.tradeoff(settings, attacker, metric),
        )
    ]


def _over_rounds(settings: Sequence[Setting], attacker: Attacker) -> list[Plot]:
    metric = _metric_of(settings, attacker)
    lines = {setting.name: plots.by_round(setting, attacker) for setting in settings[: plots.MOST_SETTINGS]}
    if metric is None or not any(lines.values()):
        return []
    ends = "; ".join(
        f"{name} {scale(metric).write(points[max(points)], True)}" for name, points in lines.items() if points
    )
    return [
        plot(
            f"{attacker.title}: {scale(metric).title} beyond its control over rounds, the mean over clients and seeds.",
            f"{scale(metric).title} of {attacker.attack} over rounds. After the last one: {ends}.",
            plots.over_rounds(settings, attacker, metric),
        )
    ]


def _run(source: Source, out: Path) -> dict[str, Any]:
    report = source.folder / "report.html"
    link = os.path.relpath(report.resolve(), out.resolve()) if report.is_file() else None
    return {
        "setting": source.setting,
        "seed": source.seed,
        "folder": source.folder.name,
        "link": None if link is None else quote(link.replace(os.sep, "/")),
        "reason": source.reason,
    }
