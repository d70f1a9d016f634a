"""Which setting costs least accuracy of those that keep every attacker near its control, and which costs least for its leakage.

A setting counts where every attacker was run on every group with every seed, and each is known not to be further beyond its
control than the margin: by the verdict `resisted`, or by a partial leak of images that is measured to be within the margin.
Inconclusive ones do not count, for whatever reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.comparing.leaks import Attacker
from fedsim.comparing.settings import Family, Row, Setting
from fedsim.findings.kinds import IMAGES

_RULE = " What is inconclusive, failed or was not run does not count."
_EQUAL = 0.0005  # accuracies are shown with three decimals


@dataclass(frozen=True)
class Choice:
    """The cheapest setting against some of the attackers.

    Args:
        against: what these are after; empty for all of them.
        chosen: the setting; None where none counts.
        statement: the result in words.
        reasons: setting -> why it does not count; empty where it does.
    """

    against: str
    chosen: str | None
    statement: str
    reasons: dict[str, list[str]]


def choices(family: Family, margin: float) -> list[Choice]:
    """Return the choice against all attackers; where there is none, also those against the attackers of each kind."""
    first = choose(family.settings, family.attackers, margin)
    kinds = list(dict.fromkeys(attacker.kind for attacker in family.attackers))
    if first.chosen is not None or len(kinds) < 2:
        return [first]
    each = (
        choose(family.settings, [one for one in family.attackers if one.kind == kind], margin, kind) for kind in kinds
    )
    return [first, *each]


def choose(settings: Sequence[Setting], attackers: Sequence[Attacker], margin: float, against: str = "") -> Choice:
    """Return the cheapest setting that keeps these attackers within a margin of their controls.

    Args:
        settings: of one family.
        attackers: those that count.
        margin: in decibels; attackers whose metric is another one must be resisted.
        against: what they are after; empty where these are all.
    """
    reasons = {setting.name: objections(setting, attackers, margin, not against) for setting in settings}
    fit = [setting for setting in settings if not reasons[setting.name] and setting.accuracy.mean is not None]
    who = f"every attacker that is after {against}" if against else "every attacker"
    near = f"within {margin:g} dB of its control"
    if not attackers:
        return Choice(against, None, "Nothing was attacked, so no setting is known to hold.", reasons)
    if not fit:
        return Choice(
            against,
            None,
            f"No setting is known to keep {who} {near}.{'' if against else _RULE}",
            reasons,
        )
    best = max(fit, key=lambda setting: setting.accuracy.mean or 0.0)
    assert best.accuracy.mean is not None
    others = f", of {len(fit)} that do" if len(fit) > 1 else ""
    return Choice(
        against,
        best.name,
        f"Cheapest setting that keeps {who} {near}: {best.name}, at an accuracy of {best.accuracy.mean:.3f}"
        f"{_loss(best)}{others}.",
        reasons,
    )


def _loss(setting: Setting) -> str:
    loss = setting.loss_of_accuracy.mean
    if setting.baseline is None or loss is None:
        return ""
    if abs(loss) < _EQUAL:
        return f", as accurate as {setting.baseline.name}"
    word = "below" if loss >= 0 else "above"
    return f", {abs(loss):.3f} {word} {setting.baseline.name}"


def objections(setting: Setting, attackers: Sequence[Attacker], margin: float, is_all: bool = True) -> list[str]:
    """Return why a setting is not known to keep attackers within a margin; empty where it is."""
    found = [f"seed {source.seed}: {source.reason}" for source in setting.lost]
    if not setting.runs:
        return found or ["it has no run"]
    for one in setting.runs:
        if not one.analysis.scope.is_whole:
            found.append(f"seed {one.seed}: {one.analysis.scope.written() or 'not all was audited'}")
    if is_all and not any(attacker.kind == IMAGES.name for attacker in attackers):
        found.append("images were not attacked")
    for attacker in attackers:
        why = _objection(setting.rows.get(attacker), margin)
        found += [f"{attacker.title}: {why}"] if why else []
    if setting.accuracy.mean is None:
        found.append("its accuracy was not recorded")
    return found


def _objection(row: Row | None, margin: float) -> str | None:
    if row is None:
        return "it was not run, or left no record"
    if row.verdict == "leaks":
        return "leaks"
    if row.verdict == "inconclusive":
        return f"inconclusive, {row.reason}"
    if row.decibels is not None:
        return f"{row.decibels:.1f} dB beyond its control" if row.decibels > margin else None
    return "leaks in part" if row.verdict == "partial" else None


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other beats: those for which none has at least the accuracy at no more leakage, one of it better.

    Args:
        points: accuracy and leakage of each.

    Returns:
        Their positions, by ascending accuracy; of equal points all.
    """
    kept: list[int] = []
    lowest, edge = float("inf"), float("nan")
    # From the highest accuracy down: a point counts where it leaks less than all with more accuracy.
    for place in sorted(range(len(points)), key=lambda place: (-points[place][0], points[place][1])):
        accuracy, leakage = points[place]
        if leakage < lowest or (leakage == lowest and accuracy == edge):
            kept.append(place)
            lowest, edge = leakage, accuracy
    return kept[::-1]
