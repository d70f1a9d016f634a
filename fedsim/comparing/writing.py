"""A comparison as flat rows, as JSON, and as LaTeX: numbers with their intervals, or with the values of the few seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedsim.comparing.choice import Choice
from fedsim.comparing.leaks import Attacker
from fedsim.comparing.settings import Family, Row, Setting, epsilon_of
from fedsim.comparing.spread import FEWEST_SEEDS, Spread
from fedsim.metrics.ratings import scale

SCHEMA = 1

Write = Callable[[float], str]
Rows = list[dict[str, Any]]

FEW = f"fewer than {FEWEST_SEEDS} seeds: no interval, the values instead"


def accuracy(value: float) -> str:
    """Return an accuracy as text."""
    return f"{value:.3f}"


def change(value: float) -> str:
    """Return a difference of accuracies as text."""
    return f"{round(value, 3) + 0.0:+.3f}"  # no "-0.000"


def ratio(value: float) -> str:
    """Return a ratio of times as text."""
    return f"{value:.2f}x"


def of_metric(metric: str | None, signed: bool = False) -> Write:
    """Return what writes a value of a metric, without its unit."""
    written = scale(metric or "")
    return lambda value: written.write(value, signed).removesuffix(written.unit)


def mean(spread: Spread, write: Write) -> str:
    """Return the mean as text; a dash without any value."""
    return "-" if spread.mean is None else write(spread.mean)


def doubt(spread: Spread, write: Write) -> str:
    """Return the interval as text, or the values of the few seeds; nothing for one value."""
    if spread.interval is not None:
        return f"[{write(spread.interval.low)}, {write(spread.interval.high)}]"
    return "" if len(spread.values) < 2 else " / ".join(write(value) for value in spread.values.values())


def whole(spread: Spread, write: Write) -> str:
    """Return mean and doubt as text."""
    return " ".join(filter(None, [mean(spread, write), doubt(spread, write)]))


def seeds(setting: Setting) -> str:
    """Return how many runs a setting has, and how many of them are missing."""
    lost = f", {len(setting.lost)} without a result" if setting.lost else ""
    return f"{len(setting.runs)}{lost}"


def losing(spread: Spread) -> Spread:
    """Return a loss of accuracy as a change, so that less accuracy is negative."""
    bounds = None if spread.interval is None else type(spread.interval)(-spread.interval.high, -spread.interval.low)
    return Spread({seed: -value for seed, value in spread.values.items()}, bounds)


def leakage(row: Row | None) -> str:
    """Return what an attacker finds, beside its control."""
    if row is None or row.value.mean is None:
        return "-"
    write, unit = of_metric(row.metric), scale(row.metric or "").unit
    control = "" if row.control.mean is None else f" (control {write(row.control.mean)})"
    return f"{write(row.value.mean)}{unit}{control}"


def titles(family: Family) -> tuple[str, ...]:
    """Return the columns of the short table."""
    return ("setting", "runs", "accuracy", "epsilon", "verdict", *(attacker.title for attacker in family.attackers))


def short_rows(family: Family) -> list[tuple[str, ...]]:
    """Return the short table, one row per setting."""
    return [
        (
            setting.name,
            seeds(setting),
            whole(setting.accuracy, accuracy),
            setting.epsilon.written or "-",
            setting.verdict,
            *(f"{leakage(row)} {row.verdict}" if row else "not run" for row in map(setting.rows.get, family.attackers)),
        )
        for setting in family.settings
    ]


# CSV


def csv_rows(families: Sequence[Family]) -> Rows:
    """Return one row per setting, with the same columns in all; an attacker of another family has empty cells."""
    attackers = list(dict.fromkeys(attacker for family in families for attacker in family.attackers))
    return [
        _csv_row(number, family, setting, attackers)
        for number, family in enumerate(families, 1)
        for setting in family.settings
    ]


def _csv_row(number: int, family: Family, setting: Setting, attackers: Sequence[Attacker]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "family": number,
        "model_and_data": family.title,
        "setting": setting.name,
        "runs": len(setting.runs),
        "without_result": len(setting.lost),
        "reason": setting.lost[0].reason if setting.lost else None,
        "verdict": setting.verdict,
        **_columns("accuracy", setting.accuracy),
        "baseline": setting.baseline.name if setting.baseline else None,
        **_columns("accuracy_lost", setting.loss_of_accuracy),
        "epsilon": setting.epsilon.value,
        "epsilon_written": setting.epsilon.written or None,
        **_columns("round_seconds", setting.seconds),
        **_columns("round_time_ratio", setting.time_ratio),
    }
    for attacker in attackers:
        found = setting.rows.get(attacker)
        name = attacker.title
        row |= {
            f"{name}, metric": found.metric if found else None,
            **_columns(name, found.value if found else Spread()),
            f"{name}, control": found.control.mean if found else None,
            f"{name}, skill": found.gained.mean if found else None,
            f"{name}, clients": found.group if found else None,
            f"{name}, verdict": found.verdict if found else "inconclusive" if attacker in family.attackers else None,
        }
    return row


def _columns(name: str, spread: Spread) -> dict[str, Any]:
    bounds = spread.interval
    return {
        name: spread.mean,
        f"{name}, low": None if bounds is None else bounds.low,
        f"{name}, high": None if bounds is None else bounds.high,
        f"{name}, by seed": " ".join(f"{seed}:{value:.10g}" for seed, value in spread.values.items()) or None,
    }


# JSON


def as_json(families: Sequence[Family], chosen: Sequence[Sequence[Choice]], margin: float, notes: Sequence[str]) -> str:
    """Return the text of compare.json."""
    content = {
        "schema": SCHEMA,
        "margin_db": margin,
        "is_comparable": len(families) < 2,
        "notes": list(notes),
        "families": [_family(family, own) for family, own in zip(families, chosen, strict=True)],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _family(family: Family, chosen: Sequence[Choice]) -> dict[str, Any]:
    return {
        "model_and_data": family.title,
        "choices": [
            {
                "against": choice.against or "all",
                "chosen": choice.chosen,
                "statement": choice.statement,
                "objections": choice.reasons,
            }
            for choice in chosen
        ],
        "settings": [_setting(family, setting) for setting in family.settings],
    }


def _setting(family: Family, setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "verdict": setting.verdict,
        "runs": [
            {"seed": source.seed, "folder": source.folder.name, "reason": source.reason or None}
            for source in setting.sources
        ],
        "accuracy": _spread(setting.accuracy),
        "epsilon": {"value": setting.epsilon.value, "written": setting.epsilon.written or None},
        "round_seconds": _spread(setting.seconds),
        "baseline": setting.baseline.name if setting.baseline else None,
        "paired_seeds": sorted(setting.paired),
        "accuracy_lost": _spread(setting.loss_of_accuracy),
        "round_time_ratio": _spread(setting.time_ratio),
        "attackers": [
            {**_named(attacker), **_row(row), "difference": _spread(setting.difference(attacker))}
            for attacker, row in setting.rows.items()
        ],
        "groups": [
            {
                "clients": sorted({client for row in rows.values() for client in row.clients}),
                "defenses": group,
                "epsilon": epsilon_of(setting.runs, _clients(rows)).written or None,
                "attackers": [{**_named(attacker), **_row(row)} for attacker, row in rows.items()],
            }
            for group, rows in setting.groups.items()
        ],
    }


def _clients(rows: Mapping[Attacker, Row]) -> list[int]:
    return sorted({client for row in rows.values() for client in row.clients})


def _named(attacker: Attacker) -> dict[str, str]:
    return {"attack": attacker.attack, "kind": attacker.kind}


def _row(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"verdict": "inconclusive", "reason": "it was not run, or left no record", "metric": None}
    return {
        "verdict": row.verdict,
        "reason": row.reason or None,
        "metric": row.metric,
        "clients": row.group,
        "value": _spread(row.value),
        "control": _spread(row.control),
        "skill": _spread(row.gained),
        "verdicts": {str(seed): verdict for seed, verdict in row.verdicts.items()},
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "mean": spread.mean,
        "interval": None if spread.interval is None else list(spread.interval),
        "by_seed": {str(seed): value for seed, value in spread.values.items()},
    }


# LaTeX

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escaped(text: str) -> str:
    """Return text that LaTeX sets as it is."""
    return "".join(_ESCAPED.get(character, character) for character in " ".join(text.split()))


def as_latex(families: Sequence[Family], chosen: Sequence[Sequence[Choice]]) -> str:
    """Return compare.tex, to be included: a table per family, which needs no package."""
    return "\n".join(_table(family, own) for family, own in zip(families, chosen, strict=True))


def _table(family: Family, chosen: Sequence[Choice]) -> str:
    header = titles(family)
    rows = [header, *short_rows(family)]
    lines = [f"{' & '.join(map(escaped, row))} \\\\" for row in rows]
    caption = f"{family.title}. {' '.join(choice.statement for choice in chosen)} {_legend(family)}"
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escaped(caption)}}}",
            f"\\begin{{tabular}}{{{'l' * len(header)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _legend(family: Family) -> str:
    few = any(0 < len(setting.runs) < FEWEST_SEEDS for setting in family.settings)
    said = "Means over seeds with 95% BCa bootstrap intervals"
    return f"{said}; {FEW}." if few else f"{said}."
