"""What the two templates show: the same values for the page and for the Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple
from urllib.parse import quote

from fedsim.defense import EPSILON_OF_ONE_RUN
from fedsim.errors import ScenarioError
from fedsim.metrics.ratings import scale
from fedsim.metrics.skill import CONTROL_TITLES
from fedsim.metrics.table import METRICS
from fedsim.recording.records import Attempted, Budget, Calibration, Found, Record, ViewRecord
from fedsim.recording.run_data import RunData
from fedsim.report import evaluations, mechanisms, plots
from fedsim.report.analysis import Analysis
from fedsim.report.citations import citations
from fedsim.report.embedding import Plot, plot
from fedsim.report.evidence import Evidence
from fedsim.report.gallery import NOT_KNOWN, gallery
from fedsim.report.limitations import Cautions, limits
from fedsim.report.naming import NO_DEFENSE, Naming
from fedsim.report.overview import ClientVerdict, Entry, clients_named
from fedsim.report.summaries import Summary
from fedsim.report.worst import worst
from fedsim.scenario import parse, select_clients
from fedsim.strips import spread
from fedsim.verdicts.judge import CORRECTION, ORDER, updates_without_defense
from fedsim.verdicts.scores import scored

_SHOWN_ROUNDS = 8
_SHOWN_CLASSES = 20
_SHOWN_ATTEMPTS = 2000
_FIRST_LIMITS = 3  # of the first screen; a section holds all of them
_KINDS = {"delta": "delta, new weights minus those sent", "gradient": "gradient, as the clients state"}

GRANTS: Mapping[str, str] = {
    "batch_size": "how many images each local step saw",
    "labels": "which labels the images had, in no order",
    "normalization": "how pixels become the model's input",
    "training": "the local recipe: optimizer, learning rate, steps, label smoothing, mixup",
    "train_mode": "whether dropout and the like were active",
    "defenses": "which defenses the client carried, with their parameters",
    "auxiliary_data": "other images of the same kind",
    "candidates": "pairs of images, of each of which one was trained on",
}


@dataclass(frozen=True)
class ClientCost:
    """What taking part cost one client."""

    client: int
    defenses: str
    rounds: int
    failed: int
    budget: Budget | None


class ViewAttempt(NamedTuple):
    """One attempt on several updates: what it found in words, and its images, by name and link."""

    record: ViewRecord
    attack: str
    result: str
    pictures: tuple[tuple[str, str], ...]


def context(analysis: Analysis) -> dict[str, Any]:
    """Return everything the templates refer to."""
    run, naming, summaries, lines = analysis.run, analysis.naming, analysis.by_client, analysis.entries
    verdicts = analysis.client_verdicts
    displays, left_out, missing = gallery(run, naming, _deciding_rounds(lines), _ranked(verdicts))
    trajectories = _trajectories(run, naming)
    evaluated = evaluations.examples(run.folder, run.evaluations, missing)
    shown, view_attempts = run.records[:_SHOWN_ATTEMPTS], _view_attempts(run, naming)
    return {
        "run": run,
        "naming": naming,
        "headline": analysis.headline,
        "overall": analysis.verdict,
        "facts": _captured_facts(run) if run.is_observed else _facts(run),
        "lines": lines,
        "numbered_lines": list(enumerate(lines, 1)),
        "worst": worst(lines, displays),
        "evidence": Evidence(analysis, displays, shown, len(view_attempts)),
        "verdicts": verdicts,
        "correction": CORRECTION,
        "legend": [metric.thresholds() for name, metric in METRICS.items() if _is_used(run, name)],
        "cautions": Cautions([*run.records, *run.views], naming),
        "limits": limits(run, summaries),
        "MOST_LIMITS": _FIRST_LIMITS,
        "notes": [*run.notes, *missing],
        "displays": displays,
        "left_out": clients_named(left_out) if left_out else None,
        "is_mixed": bool(run.part("training").get("mixup")),
        "is_augmented": bool(run.part("training").get("augment")),
        "views": analysis.views,
        "view_attempts": view_attempts,
        "findings": [record for record in run.records if record.found is not None],
        "labels_found": labels_found,
        "undefended": NOT_KNOWN if run.is_observed else "no defense",
        "leakage_plots": _leakage_plots(analysis),
        "trajectory_plots": _trajectory_plots(trajectories, naming),
        "trajectories": trajectories,
        "utility_plot": _utility_plot(run),
        "budgets": _budgets(run),
        "budget_rounds": _shown_rounds(run),
        "is_start_of_run": any(EPSILON_OF_ONE_RUN in note for note in run.notes),
        "epsilon_of_one_run": EPSILON_OF_ONE_RUN,
        "costs": [] if run.is_observed else _costs(run, naming),
        "logged": _logged(run),
        "by_client": [summary for summary in summaries if summary.mean is not None],
        "by_defense": [summary for summary in analysis.by_defense if summary.mean is not None],
        "shown_records": shown,
        "metrics": list(dict.fromkeys(metric for record in run.records for metric in record.scores)),
        "controls": list(dict.fromkeys(name for summary in summaries for name in summary.controls or {})),
        "failed_clients": [
            *((line.round, client, message) for line in run.rounds for client, message in line.failed.items()),
            *(run.captured.failures if run.captured else ()),
        ],
        "epsilon": _epsilon,
        "troubled": [record for record in run.records if record.status != "found"],
        "grants": [(grant, GRANTS.get(grant, "")) for grant in run.grants],
        "withheld": [(grant, text) for grant, text in GRANTS.items() if grant not in run.grants],
        "environment": _flat(run.environment),
        "citations": citations([*run.records, *run.views], run.evaluations),
        "scale": scale,
        "own_score": _own_score,
        "control_titles": CONTROL_TITLES,
        "calibrations": run.calibrations,
        "evaluations": evaluations.tables(run.evaluations),
        "evaluation_plots": evaluations.figures(run.evaluations),
        "evaluation_examples": evaluated,
        "claims": mechanisms.claims(run.mechanisms),
        "calibrated": _calibrated,
        "NO_DEFENSE": NO_DEFENSE,
    }


def _view_attempts(run: RunData, naming: Naming) -> list[ViewAttempt]:
    shown = []
    for record in run.views[:_SHOWN_ATTEMPTS]:
        found = [f"{scale(name).title} {_own_score(record, name)}" for name in record.scores]
        if record.found is not None:
            counts = {"pictures": record.found.pictures, "features": record.found.features}
            found += [f"{count} {what}" for what, count in counts.items() if count]
            found += [f"labels {labels}"] if (labels := labels_found(record.found)) else []
        result = ", ".join(found) if record.status == "found" else f"{record.status}: {record.message}"
        pictures = [(name, quote(path)) for name, path in record.artifacts.items() if path.endswith(".png")]
        shown.append(ViewAttempt(record, naming.attack(record), result or "not scored", tuple(pictures)))
    return shown


def _deciding_rounds(lines: Sequence[Entry]) -> dict[int, set[int]]:
    """Return client -> the rounds that decide its verdicts."""
    found: dict[int, set[int]] = {}
    for line in lines:
        for summary in (line.summary, line.judge):
            if summary.peak is not None and not summary.is_control:
                found.setdefault(line.client, set()).add(summary.peak.round)
    return found


def _ranked(verdicts: Mapping[int, ClientVerdict]) -> list[int]:
    """Return the clients, the worst verdicts first."""
    return sorted(verdicts, key=lambda client: (-ORDER.index(verdicts[client].verdict), client))


def _calibrated(calibration: Calibration) -> str:
    """Return in words what an attack found in updates that the auditor made itself."""
    if calibration.status != "found":
        return f"{calibration.status}: {calibration.message or 'no message'}"
    found = updates_without_defense(calibration.trials)
    return "; ".join(tried.written(kind) for kind, tried in found.items())


def _is_used(run: RunData, metric: str) -> bool:
    return any(metric in record.scores for record in run.records)


def _own_score(record: Attempted, metric: str) -> str:
    """Return one attempt's score and skill in words, for the table of all attempts."""
    for one in scored([record], metric):
        written = scale(metric)
        return written.write(one.value) + ("" if one.skill is None else f" ({written.write(one.skill, True)})")
    return "unavailable" if metric in record.scores else ""


def _schedule(stated: Mapping[str, Any]) -> str | None:
    """Return how the learning rate follows the rounds; None where it is constant throughout."""
    name, others = stated.get("name", "constant"), {key: value for key, value in stated.items() if key != "name"}
    if name == "constant" and not others.get("warmup_rounds"):
        return None
    given = ", ".join(f"{key} {value}" for key, value in others.items() if value)
    return f"{name} ({given})" if given else str(name)


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return the set-up in pairs of a name and a value, as far as it is known."""
    done = max((line.round for line in run.rounds), default=0)
    accuracies = [line.accuracy for line in run.rounds if line.accuracy is not None]
    pairs = [
        ("Rounds", f"{done} of {run.planned_rounds}" if run.planned_rounds else str(done)),
        ("Clients", run.planned_clients),
        ("Global accuracy", f"{accuracies[0]:.3f} before, {accuracies[-1]:.3f} after" if accuracies else None),
        ("Model", run.part("model").get("name")),
        ("Data", run.part("data").get("name")),
        ("Clients share", run.part("training").get("shares")),
        ("Trained and sent", _patterns(run.part("training").get("trainable"))),
        ("LoRA", _lora(run.part("model").get("lora"))),
        ("PRECODE", _precode(run.part("model").get("precode"))),
        ("Position embedding", _fixed(run.part("model").get("position_embedding"))),
        ("Batch size", run.part("training").get("batch_size")),
        ("Schedule", _schedule(run.part("training").get("schedule") or {})),
        ("Sampling", "Poisson: batches vary in size" if run.part("training").get("sampling") == "poisson" else None),
        ("Clipping norm of a local step", run.part("training").get("clip_norm")),
        ("Label smoothing", run.part("training").get("label_smoothing") or None),
        ("Mixup alpha", run.part("training").get("mixup")),
        ("Augmentation", ", ".join(run.part("training").get("augment") or ()) or None),
        ("Server sees", "the sum of each round" if run.sees_sums else None),
        ("Strategy", run.part("federation").get("strategy")),
        ("Seed", run.scenario.get("seed")),
    ]
    return [(name, str(value)) for name, value in pairs if value is not None]


def _patterns(patterns: Any) -> str | None:
    return ", ".join(map(str, patterns)) if isinstance(patterns, list) else None


def _lora(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    head = "with the head" if part.get("train_head") else "without the head"
    return f"rank {part.get('rank')} of {_patterns(part.get('targets'))}, {head}; the rest is frozen"


def _precode(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    return f"a bottleneck of {part.get('size')} before the classifier, beta {part.get('beta')}; no formal guarantee"


def _fixed(kind: Any) -> str | None:
    return "sines and cosines, fixed" if kind == "sincos" else None


def _captured_facts(run: RunData) -> list[tuple[str, str]]:
    """Return what was captured of an observed app, and the model that the auditor named for it."""
    captured, named = run.captured, run.part("model").get("name")
    pairs = [("Origin", "a Flower app, observed")]
    if captured is not None:
        pairs += [
            ("Rounds captured", _numbered(captured.rounds)),
            ("Clients seen", f"{len(captured.clients)} ({_numbered(captured.clients)})"),
            ("Updates captured", str(captured.updates)),
            ("Kind of update", " and ".join(_KINDS.get(kind, kind) for kind in captured.kinds)),
            ("Arrays in an update", f"{len(captured.arrays)}, of {captured.numbers:,} numbers"),
            ("Examples reported", "none" if captured.examples is None else _spread(*captured.examples)),
        ]
    return [*pairs, *([("Model, as the auditor names it", str(named))] if named else [])]


def _spread(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _numbered(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges: "1 to 3, 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ", ".join(_spread(part[0], part[-1]) for part in ranges)


def labels_found(found: Found | None) -> str:
    """Return how often each class was found, in words."""
    counts = (found.labels or found.soft_labels or {}) if found else {}
    shown = [f"class {label}: {count}" for label, count in list(counts.items())[:_SHOWN_CLASSES]]
    rest = len(counts) - len(shown)
    return ", ".join([*shown, *([f"and {rest} more classes"] if rest else [])])


def _epsilon(budget: Budget | None) -> str:
    if budget is None:
        return "-"
    return "∞" if budget.epsilon is None else f"{budget.epsilon:.3g}"


def _leakage_plots(analysis: Analysis) -> list[Plot]:
    naming = analysis.naming
    shown: dict[tuple[str, str], list[Summary]] = {}
    for line in analysis.entries:
        if line.summary.metric and line.summary.skill is not None:
            shown.setdefault((line.summary.attack, line.summary.metric), []).append(line.summary)
    records: dict[str, list[Record]] = {}
    for record in analysis.run.records:
        records.setdefault(naming.attack(record), []).append(record)
    figures = []
    for (attack, metric), summaries in shown.items():
        written = scale(metric)
        of_clients, lines = "", "the median and the range of the clients, by their defenses"
        if not plots.are_many(records[attack]):
            means = "; ".join(
                f"client {summary.clients[0]} ({summary.defenses}) {written.write(summary.skill or 0.0, True)}"
                for summary in summaries
            )
            of_clients, lines = f" Mean skill by client: {means}.", "one line per client"
        figures.append(
            plot(
                f"{attack}: {written.title} over rounds, {lines}.",
                f"{written.title} of {attack} over rounds.{of_clients}",
                plots.leakage(records[attack], metric, naming),
            )
        )
    return figures


def _trajectories(run: RunData, naming: Naming) -> dict[tuple[str, int], list[Record]]:
    """Return attack and round -> attempts with a trajectory, for the first and the last round that has one."""
    with_trajectory = [record for record in run.records if record.trajectory is not None]
    found: dict[tuple[str, int], list[Record]] = {}
    for record in with_trajectory:
        if record.round in (with_trajectory[0].round, with_trajectory[-1].round):
            found.setdefault((naming.attack(record), record.round), []).append(record)
    return dict(sorted(found.items()))


def _trajectory_plots(trajectories: Mapping[tuple[str, int], Sequence[Record]], naming: Naming) -> list[Plot]:
    psnr, figures = scale("psnr"), []
    for (attack, round), found in trajectories.items():
        records = [found[position] for position in spread(len(found), plots.MOST_LINES)]
        many = f", for {len(records)} of {len(found)}" if len(records) < len(found) else ""
        ways = "; ".join(
            f"client {record.client} ({naming.defenses(record)}) "
            f"{psnr.write(trajectory.psnr[0])} to {psnr.write(trajectory.psnr[-1])}"
            for record in records
            if (trajectory := record.trajectory) is not None
        )
        figures.append(
            plot(
                f"{attack}, round {round}: its loss (dotted, left) and the PSNR of its images (right) at each iteration that "
                f"it saved, one line per client{many}. PSNR was drawn afterwards by the auditor; no attack ever saw it.",
                f"Loss and PSNR of {attack} in round {round} against iteration. PSNR from first to last: {ways}.",
                plots.trajectory(records, naming),
            )
        )
    return figures


def _utility_plot(run: RunData) -> Plot | None:
    known = [line for line in run.rounds if line.accuracy is not None]
    if not known:
        return None
    alt = "Test accuracy and loss of the global model. " + "; ".join(
        f"round {line.round}: accuracy {line.accuracy:.3f}" + ("" if line.loss is None else f", loss {line.loss:.3f}")
        for line in known
    )
    return plot("Accuracy and loss of the global model on the test images.", f"{alt}.", plots.utility(known))


class _Logged(NamedTuple):
    """What defenses logged under one name in a round, over the clients that did."""

    round: int
    name: str
    clients: int
    mean: float
    lowest: float
    highest: float


def _logged(run: RunData) -> list[_Logged]:
    found: dict[tuple[int, str], list[float]] = {}
    for line in run.rounds:
        for logged in line.logged.values():
            for name, value in logged.items():
                found.setdefault((line.round, name), []).append(value)
    return [_Logged(*key, len(all), fmean(all), min(all), max(all)) for key, all in sorted(found.items())]


def _budget_rounds(run: RunData) -> list[int]:
    return [line.round for line in run.rounds if line.epsilon]


def _shown_rounds(run: RunData) -> list[int]:
    """Return at most eight rounds with a privacy budget, evenly spread, the first and the last among them."""
    rounds = _budget_rounds(run)
    return [rounds[position] for position in spread(len(rounds), _SHOWN_ROUNDS)]


def _budgets(run: RunData) -> dict[int, dict[int, Budget]]:
    """Return client -> round -> budget."""
    found: dict[int, dict[int, Budget]] = {}
    for line in run.rounds:
        for client, budget in line.epsilon.items():
            found.setdefault(client, {})[line.round] = budget
    return dict(sorted(found.items()))


def _costs(run: RunData, naming: Naming) -> list[ClientCost]:
    defenses = _planned_defenses(run) | {record.client: naming.defenses(record) for record in run.records}
    taken = Counter(client for line in run.rounds for client in line.participants)
    failed = Counter(client for line in run.rounds for client in line.failed)
    last = {client: budget for line in run.rounds for client, budget in line.epsilon.items()}
    clients = sorted({*defenses, *taken, *failed, *range(run.planned_clients or 0)})
    return [
        ClientCost(client, defenses.get(client, "not recorded"), taken[client], failed[client], last.get(client))
        for client in clients
    ]


def _planned_defenses(run: RunData) -> dict[int, str]:
    """Return the names of each client's defenses as the scenario states them; empty where it cannot be read."""
    try:
        scenario = parse(dict(run.scenario), "scenario.yaml")
        clients, seed = scenario.federation.clients, scenario.seed
        chosen = [
            (part.name, frozenset(select_clients(part.clients, clients, seed, f"defenses.{index}.clients")))
            for index, part in enumerate(scenario.defenses)
        ]
    except ScenarioError:
        return {}
    return {
        client: " + ".join(name for name, carriers in chosen if client in carriers) or NO_DEFENSE
        for client in range(clients)
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested plain data as pairs of a dotted name and a value."""
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict):
            pairs += _flat(inner, f"{name}.")
        elif inner is not None:
            pairs.append((name, ", ".join(str(part) for part in inner) if isinstance(inner, list) else str(inner)))
    return pairs
