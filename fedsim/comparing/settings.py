"""Settings: all runs that differ in their seed alone, summarized; and families, settings of one model and one data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from fedsim.comparing.leaks import Attacker, Leak, leaks, worst_of
from fedsim.comparing.sources import Source
from fedsim.comparing.spread import Spread
from fedsim.errors import FedsimError, nearest
from fedsim.recording.records import Budget
from fedsim.recording.run_data import RunData
from fedsim.report.analysis import Analysis
from fedsim.report.naming import NO_DEFENSE, Naming
from fedsim.verdicts.judge import Verdict, worst

_NO_SEED = -1  # of a run whose seed nobody knows


@dataclass(frozen=True)
class Measured:
    """One run that came to its end.

    Args:
        source: where it comes from.
        analysis: what it comes to.
        leaks: attacker -> what it shows of each group.
    """

    source: Source
    analysis: Analysis
    leaks: Mapping[Attacker, Sequence[Leak]]

    @property
    def run(self) -> RunData:
        """What the folder holds."""
        return self.analysis.run

    @property
    def seed(self) -> int:
        """The seed; a stand-in where nobody knows it."""
        return _NO_SEED if self.source.seed is None else self.source.seed

    @property
    def accuracy(self) -> float | None:
        """Of the global model after the last round."""
        return self.run.rounds[-1].accuracy if self.run.rounds else None

    @property
    def seconds(self) -> float | None:
        """Wall time of a round on average: training of all its clients, and the evaluation."""
        known = [line.seconds for line in self.run.rounds if line.round and line.seconds is not None]
        return math.fsum(known) / len(known) if known else None

    @cached_property
    def budgets(self) -> dict[int, Budget]:
        """Client -> the budget after its last round."""
        return {client: budget for line in self.run.rounds for client, budget in line.epsilon.items()}

    @cached_property
    def took_part(self) -> frozenset[int]:
        """The clients that took part in any round."""
        return frozenset(client for line in self.run.rounds for client in line.participants)


@dataclass(frozen=True)
class Epsilon:
    """What differential privacy promises several clients.

    Args:
        written: for people.
        value: the largest epsilon; None where a client has none that is finite, one is refuted, or they do not compare.
    """

    written: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """What one attacker shows of one group over the seeds of a setting.

    Args:
        group: the defenses that its clients carry.
        clients: those attacked, in any run.
        metric: which the values are of; None where nothing was scored.
        value: over seeds.
        control: of the best blind guess, over seeds.
        gained: `value` beyond `control`, in the direction of more leakage.
        verdict: the worst over seeds.
        reason: why, where no leak was found.
        verdicts: seed -> verdict.
        decibels: the largest over seeds; see `Leak`. None where it is not known of every run.
    """

    group: str
    clients: tuple[int, ...]
    metric: str | None
    value: Spread
    control: Spread
    gained: Spread
    verdict: Verdict
    reason: str
    verdicts: Mapping[int, Verdict]
    decibels: float | None


@dataclass(frozen=True)
class Setting:
    """All runs that differ in their seed alone.

    Args:
        name: what people call it.
        sources: its runs, those too that did not come to their end.
        runs: those that did.
        attackers: all of its family.
        baseline: the setting that it is compared with; None without one, and for the baseline itself.
        paired: seeds of which its run and the baseline's have the same data.
    """

    name: str
    sources: tuple[Source, ...]
    runs: tuple[Measured, ...]
    attackers: tuple[Attacker, ...] = ()
    baseline: Setting | None = None
    paired: frozenset[int] = field(default_factory=frozenset)

    @property
    def lost(self) -> tuple[Source, ...]:
        """Its runs that did not come to their end."""
        return tuple(source for source in self.sources if source.run is None)

    @property
    def family(self) -> str:
        """Model and data of its runs; empty where it has none."""
        return next((source.family for source in self.sources if source.family), "")

    @cached_property
    def is_undefended(self) -> bool:
        """Whether its scenario names no defense, and no run of it has a record of one."""
        stated = [source.scenario.get("defenses") for source in self.sources if source.scenario]
        carried = any(record.defenses for one in self.runs for record in (*one.run.records, *one.run.views))
        return bool(stated) and not any(stated) and not carried

    @cached_property
    def accuracy(self) -> Spread:
        """Accuracy of the global model after the last round."""
        return self._over_seeds("accuracy")

    @cached_property
    def seconds(self) -> Spread:
        """Wall time of a round."""
        return self._over_seeds("seconds")

    def _over_seeds(self, name: str) -> Spread:
        return Spread.of({one.seed: getattr(one, name) for one in self.runs}, self.name, name)

    @cached_property
    def loss_of_accuracy(self) -> Spread:
        """Accuracy of the baseline minus its own, of the seeds that can be paired."""
        if self.baseline is None:
            return Spread()
        return self._paired(self.baseline.accuracy).minus(self._paired(self.accuracy), self.name, "loss of accuracy")

    @cached_property
    def time_ratio(self) -> Spread:
        """Wall time of a round over that of the baseline, of the seeds that can be paired."""
        if self.baseline is None:
            return Spread()
        return self._paired(self.seconds).over(self._paired(self.baseline.seconds), self.name, "time ratio")

    def _paired(self, spread: Spread) -> Spread:
        return spread.only(self.paired)

    @cached_property
    def verdict(self) -> Verdict:
        """The worst verdict of its runs and of its rows; a run that is missing is inconclusive."""
        unknown: tuple[Verdict, ...] = ("inconclusive",) if self.lost or not self.runs else ()
        # What luck explains on one client may be more than luck on a group of them.
        shown = [row.verdict for row in self.rows.values() if row is not None]
        return worst([*(one.analysis.verdict for one in self.runs), *shown, *unknown])

    @cached_property
    def epsilon(self) -> Epsilon:
        """The largest epsilon of its clients after the last round."""
        return epsilon_of(self.runs, None)

    @cached_property
    def groups(self) -> dict[str, dict[Attacker, Row]]:
        """Group -> attacker -> row."""
        found: dict[str, dict[Attacker, Row]] = {}
        for attacker in self.attackers:
            names = dict.fromkeys(leak.group for one in self.runs for leak in one.leaks.get(attacker, ()))
            for name in names:
                found.setdefault(name, {})[attacker] = self._row(attacker, name)
        return dict(sorted(found.items(), key=lambda item: (item[0] != NO_DEFENSE, item[0])))

    @cached_property
    def rows(self) -> dict[Attacker, Row | None]:
        """Attacker -> the row of the group that leaks most, its verdict the worst of all groups; None where it is missing."""
        return {attacker: self._worst(attacker) for attacker in self.attackers}

    def _worst(self, attacker: Attacker) -> Row | None:
        own = [rows[attacker] for rows in self.groups.values() if attacker in rows]
        if not own:
            return None
        # The group is that of the largest skill; of the verdicts the worst counts, whichever group it is of.
        shown = max(own, key=lambda row: -math.inf if row.gained.mean is None else row.gained.mean)
        verdict = worst(row.verdict for row in own)
        reason = next(row.reason for row in own if row.verdict == verdict)
        far = [row.decibels for row in own]
        return replace(
            shown,
            verdict=verdict,
            reason=reason,
            verdicts={s: worst(row.verdicts[s] for row in own if s in row.verdicts) for s in shown.verdicts},
            decibels=None if None in far else max(value for value in far if value is not None),
        )

    def _row(self, attacker: Attacker, group: str) -> Row:
        found: dict[int, Leak] = {}
        missing: dict[int, str] = {}
        for one in self.runs:
            own = [leak for leak in one.leaks.get(attacker, ()) if leak.group == group]
            if own:
                found[one.seed] = worst_of(own)
            else:
                missing[one.seed] = f"no record of it with seed {one.seed}"
        for source in self.lost:
            missing.setdefault(_NO_SEED if source.seed is None else source.seed, source.reason)
        metric = next((leak.metric for leak in found.values() if leak.metric is not None), None)
        same = {seed: leak for seed, leak in found.items() if leak.metric == metric}
        unknown: tuple[Verdict, ...] = ("inconclusive",) if missing else ()
        verdict = worst([*(leak.verdict for leak in found.values()), *unknown])
        reasons = [*(leak.reason for leak in found.values() if leak.verdict == verdict), *missing.values()]
        far = [leak.decibels for leak in found.values()]
        path = (self.name, group, *attacker)
        verdicts: dict[int, Verdict] = {seed: leak.verdict for seed, leak in found.items()}
        return Row(
            group=group,
            clients=tuple(sorted({client for leak in found.values() for client in leak.clients})),
            metric=metric,
            value=Spread.of({seed: leak.value for seed, leak in same.items()}, *path, "value"),
            control=Spread.of({seed: leak.control for seed, leak in same.items()}, *path, "control"),
            gained=Spread.of({seed: leak.gained for seed, leak in same.items()}, *path, "skill"),
            verdict=verdict,
            reason=reasons[0] if reasons else "",
            verdicts={**verdicts, **dict.fromkeys(missing, "inconclusive")},
            decibels=None if missing or None in far else max(value for value in far if value is not None),
        )

    def difference(self, attacker: Attacker) -> Spread:
        """Return what an attacker finds here minus what it finds in the baseline, seed by seed."""
        own, other = self.rows.get(attacker), self.baseline.rows.get(attacker) if self.baseline else None
        if own is None or other is None or own.metric != other.metric:
            return Spread()
        return self._paired(own.value).minus(self._paired(other.value), self.name, *attacker, "difference")


def epsilon_of(runs: Sequence[Measured], clients: Sequence[int] | None) -> Epsilon:
    """Return the largest epsilon over several runs of the clients that took part, or of some of them."""
    found: list[Budget] = []
    has_none = is_refuted = False
    for one in runs:
        own = one.took_part if clients is None else one.took_part.intersection(clients)
        is_refuted = is_refuted or bool(own & one.run.refuted)
        has_none = has_none or any(client not in one.budgets for client in own)
        found += [one.budgets[client] for client in sorted(own) if client in one.budgets]
    if not found:
        return Epsilon("")
    if is_refuted:
        return Epsilon("refuted by its own draws")
    neighbors = " and ".join(dict.fromkeys(budget.neighbors for budget in found))
    delta = " and ".join(dict.fromkeys(f"{budget.delta:g}" for budget in found))
    if any(budget.epsilon is None for budget in found):
        return Epsilon("none finite")
    largest = max(budget.epsilon for budget in found if budget.epsilon is not None)
    written = f"{largest:.3g} (delta {delta}; {neighbors})"
    if has_none:
        return Epsilon(f"{written}, not of all clients")
    # Promises about other neighbors, or with another delta, do not compare.
    is_one = len({(budget.neighbors, budget.delta) for budget in found}) == 1
    return Epsilon(written, largest if is_one else None)


@dataclass(frozen=True)
class Family:
    """Settings of one model and one data set, which may be compared.

    Args:
        settings: in the order of the folders.
        attackers: of any of them.
        title: model and data.
    """

    settings: tuple[Setting, ...]
    attackers: tuple[Attacker, ...]
    title: str


def families(found: Sequence[Source], baseline: str | None) -> list[Family]:
    """Return the families of all sources, each setting with its baseline.

    Args:
        found: runs and cells.
        baseline: the name of the setting to compare with; None for the one without defenses.

    Raises:
        FedsimError: no setting has this name.
    """
    runs = [source.run for source in found if source.run is not None]
    naming = Naming([record for run in runs for record in (*run.records, *run.views)])
    grouped: dict[str, list[Source]] = {}
    for source in found:
        grouped.setdefault(source.setting, []).append(source)
    if baseline is not None and baseline not in grouped:
        raise FedsimError(
            f"--baseline {baseline}: no such setting.{nearest(baseline, grouped)} There are: {', '.join(grouped)}."
        )
    settings = [_setting(name, sources, naming) for name, sources in grouped.items()]
    by_family: dict[str, list[Setting]] = {}
    for setting in settings:
        by_family.setdefault(setting.family, []).append(setting)
    # What failed before it had a scenario stands beside the first of the others.
    strays = by_family.pop("", []) if len(by_family) > 1 else []
    for position, own in enumerate(by_family.values()):
        own += strays if position == 0 else []
    return [_family(own, baseline) for own in by_family.values()]


def _setting(name: str, sources: Sequence[Source], naming: Naming) -> Setting:
    measured = []
    for source in sources:
        if source.run is not None:
            analysis = Analysis(source.run, naming)
            measured.append(Measured(source, analysis, leaks(analysis)))
    return Setting(name, tuple(sources), tuple(measured))


def _family(settings: Sequence[Setting], baseline: str | None) -> Family:
    attackers = tuple(dict.fromkeys(a for setting in settings for one in setting.runs for a in one.leaks))
    known = [replace(setting, attackers=attackers) for setting in settings]
    paired = [_with_baseline(setting, known, baseline) for setting in known]
    return Family(tuple(paired), attackers, _title(settings))


def _title(settings: Iterable[Setting]) -> str:
    for setting in settings:
        for source in setting.sources:
            parts = [source.scenario.get(part) for part in ("model", "data")]
            names = [str(part.get("name")) for part in parts if isinstance(part, dict) and part.get("name")]
            if names:
                return " on ".join(names)
    return "unknown"


def _with_baseline(setting: Setting, known: Sequence[Setting], named: str | None) -> Setting:
    baseline = _baseline_of(setting, known, named)
    if baseline is None or baseline.name == setting.name:
        return setting
    data = {one.seed: one.source.has_same_data for one in baseline.runs}
    seeds = frozenset(one.seed for one in setting.runs if data.get(one.seed) == one.source.has_same_data)
    return replace(setting, baseline=baseline, paired=seeds)


def _baseline_of(setting: Setting, known: Sequence[Setting], named: str | None) -> Setting | None:
    """Return the named setting, else the one without defenses: that which differs in them alone, or the only one there is."""
    if named is not None:
        return next((one for one in known if one.name == named), None)
    plain = [one for one in known if one.is_undefended]
    alike = [one for one in plain if _without_defenses(one) == _without_defenses(setting)]
    return alike[0] if alike else plain[0] if len(plain) == 1 else None


def _without_defenses(setting: Setting) -> Mapping[str, object]:
    scenario = next((source.scenario for source in setting.sources if source.scenario), {})
    left_out = ("defenses", "seed", "name", "engine")
    return {part: value for part, value in scenario.items() if part not in left_out}
