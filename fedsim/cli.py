"""The command line: run, audit, report, check, list, schema.

Exit codes: 0, all done; 1, all done and saved, but an attack or a client failed; 2, the user can mend it, and the
message says how; 3, all done and saved, and the verdict is as bad as --fail-on says, or worse; 130, interrupted from the
keyboard, and what was done is saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim import scenario as scenarios
from fedsim import yaml_loader
from fedsim.errors import (
    FedsimError,
    RunFolderError,
    ScenarioError,
    nearest,
    printable,
    printable_line,
    printable_lines,
)
from fedsim.scenario import Scenario


class Verdict(StrEnum):
    """A verdict that --fail-on may name, from the worst."""

    leaks = "leaks"
    partial = "partial"
    inconclusive = "inconclusive"


app = typer.Typer(
    name="fedsim",
    help="Train federated Vision Transformers, and audit what each client's update leaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(markup=False, emoji=False)
_TOO_BAD = 3  # a verdict that --fail-on names
_FIRST_NAMES = 10  # of the classes, shown by check
_NAME_WIDTH = 40
_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (YAML).", show_default=False)]
Folder = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one key of the scenario; may be repeated.")
]
FailOn = Annotated[
    Verdict | None,
    typer.Option(help="End with exit code 3 where the worst verdict is this one or a worse one, for use in CI."),
]
Engine = Annotated[str | None, typer.Option("--engine", help="inline or ray; the scenario's own otherwise.")]


def _load(file: Path, overrides: Sequence[str] | None, engine: str | None) -> Scenario:
    settings = [*(overrides or ()), *([f"engine={engine}"] if engine else ())]
    scenario, notes = scenarios.load(file, settings)
    _note(notes)
    return scenario


@app.command()
def run(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario file (YAML).", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name>-<time> otherwise.")] = None,
    engine: Engine = None,
    settings: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Complete an interrupted run in this folder.")] = None,
    fail_on: FailOn = None,
) -> None:
    """Train, capture, audit and report."""
    from fedsim.recording import RunFolder

    if (scenario is None) == (resume is None):
        raise FedsimError("run: give a scenario file, or --resume with a run folder, and not both.")
    if resume is not None:
        if out or settings or engine:
            raise FedsimError("run --resume: goes on exactly as the run began; leave --out, --engine and --set away.")
        folder = RunFolder.open(resume)
        with folder.locked():
            folder.check()
            _carry_out(*_prepared(folder.scenario()), folder, True, fail_on)
    else:
        assert scenario is not None
        loaded = _load(scenario, settings, engine)
        plan, seen = _prepared(loaded)
        _carry_out(plan, seen, RunFolder.create(out or _default_folder(loaded), loaded), True, fail_on)


def _default_folder(scenario: Scenario) -> Path:
    from fedsim.simulation import default_folder

    return default_folder(scenario)


def _prepared(scenario: Scenario, folder: Any = None) -> tuple[Any, Any]:
    """Return the plan of a scenario, or of the audit of a folder, and its inputs, for which every picture has been read."""
    from fedsim import inputs
    from fedsim import plan as planning

    with _out.status("Preparing data and model"):
        plan = planning.of(scenario) if folder is None else planning.of_folder(folder, scenario)
        seen = inputs.of(plan)
    _note(seen.notes)
    return plan, seen


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        _out.print(f"note: {printable_line(note)}", style="yellow", highlight=False, soft_wrap=True)


def _carry_out(plan: Any, seen: Any, folder: Any, train: bool, fail_on: Verdict | None) -> None:
    from fedsim import simulation
    from fedsim.display import Display, summary

    _out.print(printable_line(f"Run folder: {folder.path}"), highlight=False, markup=False, soft_wrap=True)
    try:
        with Display(_out, plan.scenario.federation.rounds, training=train) as display:
            step = simulation.simulate if train else simulation.audit
            records = step(plan, folder, display.progress, seen)
    except KeyboardInterrupt:
        command = "fedsim run --resume" if train else "fedsim audit"
        _complain(f"interrupted; go on with {command} {folder.path}")
        raise typer.Exit(_INTERRUPTED) from None
    _out.print(summary(folder.path))
    _out.print(printable_line(f"Report: {folder.path / 'report.html'}"), highlight=False, markup=False, soft_wrap=True)
    _exit_by_verdict(folder.path, fail_on)
    _exit_by(records, folder.rounds.read())


def _exit_by_verdict(folder: Path, fail_on: Verdict | None) -> None:
    from fedsim.report import summary

    if fail_on is not None:
        verdict = summary.verdict_of(folder)
        if summary.is_failure(verdict, fail_on.value):
            _complain(f"verdict: {verdict}; --fail-on {fail_on.value} ends with exit code {_TOO_BAD}.")
            raise typer.Exit(_TOO_BAD)


def _exit_by(records: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> None:
    failed = [record for record in records if record["status"] == "failed"]
    clients = {client for line in lines for client in line["failed"]}
    if failed:
        _out.print(f"{len(failed)} of {len(records)} attempts failed; records.jsonl says why.", style="red")
    if clients:
        _out.print(
            f"Clients failed in some rounds: {', '.join(sorted(clients, key=int))}; see rounds.jsonl.", style="red"
        )
    if failed or clients:
        raise typer.Exit(1)


@app.command()
def audit(
    folder: Folder,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Add an attack: its name, or '{name: ..., params: {...}}'; may be repeated."),
    ] = None,
    fail_on: FailOn = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Scenario file for the folder of an observed app that has none yet.")
    ] = None,
) -> None:
    """Attack what no record tells of: added attacks, failed attempts, and a module:Class edited since.

    Other attempts that have a record are left alone; delete records.jsonl and artifacts/ to make all of them again.
    """
    from fedsim.recording import RunFolder

    opened = RunFolder.open(folder)
    # Another process may be adding an attack: what the run has is read once this one holds it.
    with opened.locked():
        opened.check()
        chosen = opened.scenario() if scenario is None else _scenario_of_observed(opened, scenario)
        _carry_out(*_prepared(_with_attacks(chosen, attack or []), opened), opened, False, fail_on)


def _scenario_of_observed(folder: Any, file: Path) -> Scenario:
    """Return the scenario of a file for the folder of an observed app; once checked, the audit stores it there."""
    from fedsim import environment, inputs

    if not environment.is_observed(folder.path):
        raise ScenarioError(
            "--scenario",
            f"{folder.path} is no observed app: it was simulated with its own scenario. Leave --scenario out.",
        )
    if folder.has_scenario() and inputs.is_audited(folder):
        raise ScenarioError(
            "--scenario",
            f"{folder.path} has a scenario, and findings that were made under it. Leave --scenario out, or delete "
            "records.jsonl and artifacts/ to audit under another.",
        )
    return _load(file, None, None)


def _with_attacks(scenario: Scenario, added: Sequence[str]) -> Scenario:
    """Return the scenario with attacks added; one that it has already is not, but takes the label given."""
    attacks = list(scenario.attacks)
    for text in added:
        part = scenarios.parse_attack(yaml_loader.parse(text, "--attack"), "--attack")
        places = [n for n, known in enumerate(attacks) if (known.name, known.params) == (part.name, part.params)]
        if not places:
            attacks.append(part)
        elif part.label:
            attacks[places[0]] = part
    return scenario.model_copy(update={"attacks": attacks})


@app.command()
def report(folder: Folder) -> None:
    """Render report.html, report.md and tables/ from a run folder."""
    from fedsim import inputs
    from fedsim import report as reports
    from fedsim.recording import RunFolder

    opened = RunFolder.open(folder)
    scenario = None
    # A scenario that cannot be read is told by the report.
    with contextlib.suppress(ScenarioError, RunFolderError):
        if opened.has_scenario():
            scenario = opened.scenario()
    if scenario is not None:
        inputs.check_scenario(opened, scenario)
    path = reports.render(opened.path)
    _out.print(printable_line(f"Report: {path}"), highlight=False, markup=False, soft_wrap=True)


@app.command()
def check(scenario: ScenarioFile, engine: Engine = None, settings: Overrides = None) -> None:
    """Check a scenario without training: names, parameters, grants, data, partition, model."""
    from fedsim import coverage

    loaded = _load(scenario, settings, engine)
    plan, _ = _prepared(loaded)
    parameters = sum(p.numel() for p in plan.initial_weights().values())
    table = Table(show_header=False, box=None, pad_edge=False)
    sizes = [len(samples) for samples in plan.data.partition]
    table.add_row(
        "data", f"{loaded.data.name}, {plan.num_classes} classes, {min(sizes)} to {max(sizes)} samples a client"
    )
    table.add_row("classes", Text(_first_names(plan.data.pools.class_names)))
    splits = {"training": plan.data.pools.train, "test": plan.data.pools.test, "auxiliary": plan.data.pools.auxiliary}
    table.add_row("pictures", ", ".join(f"{len(pool)} {split}" for split, pool in splits.items()))
    table.add_row("model", f"{loaded.model.name}, {parameters / 1e6:.1f} M parameters, input {plan.image_shape}")
    table.add_row("federation", f"{loaded.federation.clients} clients, {loaded.federation.rounds} rounds")
    table.add_row("server knows", ", ".join(loaded.threat.grants) or "the update and the model")
    for planned in plan.defenses:
        clients = ", ".join(map(str, sorted(planned.clients)))
        table.add_row("defense", printable_line(f"{planned.info.name}{_given(planned.changed)} on clients {clients}"))
    for planned in plan.attacks:
        called = f"{planned.label}: " if planned.label else ""
        table.add_row("attack", printable_line(f"{called}{planned.info.name}{_given(planned.changed)}"))
    for client in range(loaded.federation.clients):
        for text in plan.cautions_of(client):
            table.add_row("caution", printable_line(f"client {client}: {text}"))
    for gap in coverage.gaps(plan):
        table.add_row("inconclusive", printable_line(_in_words(gap)))
    _out.print(table)
    _out.print(printable_line(f"{scenario}: fine"), style="green", highlight=False, soft_wrap=True)


def _first_names(names: Sequence[str]) -> str:
    """Return the first ten class names; a name is cut where it is long."""
    shown = [printable(name, _NAME_WIDTH) for name in names[:_FIRST_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _FIRST_NAMES} more" if len(names) > _FIRST_NAMES else "")


def _given(params: dict[str, Any]) -> str:
    """Return in words how a plug-in differs from its defaults, which `fedsim list` shows."""
    return f" ({', '.join(f'{name}: {value}' for name, value in params.items())})" if params else ""


def _in_words(gap: Any) -> str:
    """Return what an audit will not be able to tell, as one row of `fedsim check`."""
    clients = f"client{'s' if len(gap.clients) != 1 else ''} {', '.join(map(str, gap.clients))}"
    instead = f" Add instead: {', '.join(gap.instead)}." if gap.instead else ""
    return f"{gap.attack or 'every attack'} on {clients}, where it finds nothing: {gap.reason}.{instead}"


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="attacks, defenses, data, models, strategies or metrics.")] = None,
) -> None:
    """List what a scenario can name, with parameters and their defaults."""
    from fedsim import catalogue

    sections = catalogue.sections()
    if kind is not None and kind not in sections:
        raise ScenarioError("list", f"no kind {kind!r}.{nearest(kind, sections)} Known: {', '.join(sections)}.")
    for name, rows in sections.items():
        if kind in (None, name):
            table = Table(title=name, title_justify="left", title_style="bold", show_lines=False, expand=False)
            for column in ("name", "what it is", "parameters"):
                table.add_column(column, overflow="fold")
            for row in rows():
                table.add_row(*(printable_line(cell) for cell in row))
            _out.print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, for editors."""
    sys.stdout.write(json.dumps(Scenario.model_json_schema(), indent=2) + "\n")


def main() -> None:
    """Run the command line; errors that the user can mend are printed without a traceback."""
    # A console script does not see the working directory, where a "module:Class" under development lives. Appended: what
    # is installed comes first.
    sys.path.append(os.getcwd())
    try:
        app()
    except FedsimError as error:
        _complain(f"fedsim: {error}")
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full disk, missing rights, a folder where a file should be: the user's to mend, and no fault of the code.
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"fedsim: {where}{error.strerror or error}.")
        sys.exit(2)


def _complain(message: str) -> None:
    console = Console(stderr=True, emoji=False)
    console.print(printable_lines(message), style="red", markup=False, highlight=False, soft_wrap=True)
