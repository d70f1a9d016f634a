"""Commands that make a run, go on with it, or read it: run, audit, report, records."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedsim import scenario as scenarios
from fedsim.cli import clustered, completion, deployed, phased, terminal
from fedsim.cli.arguments import AsJson, Engine, FailOn, Folder, Overrides, Verdict, shipped_names
from fedsim.cli.clustered import Executor, ExecutorOption, RayAddress
from fedsim.cli.preparation import load, prepared
from fedsim.cli.terminal import note, say, write_json
from fedsim.errors import FedsimError, RunFolderError, ScenarioError, printable_line
from fedsim.scenario import Scenario, yaml_loader

_EPSILON = "epsilon"  # a column of runs in which a client claims a budget
_COLUMNS = {
    "round": "round",
    "client": "client",
    "attack": "attack",
    "defenses": "defenses",
    _EPSILON: _EPSILON,
    "status": "status",
    "metric": "metric",
    "value": "value",
    "control": "control_value",
}  # of the table of records: title -> column of tables/records.csv


def run(
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", show_default=False, autocompletion=shipped_names),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name>-<time> otherwise.")] = None,
    engine: Engine = None,
    settings: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Complete an interrupted run in this folder.")] = None,
    fail_on: FailOn = None,
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="With engine deployment: a SuperLink that runs, with its SuperNodes."),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With engine deployment: TLS and node authentication, with what fedsim certs wrote."
        ),
    ] = None,
    node_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=1, help="With engine deployment: until all nodes have to be there; 300 otherwise."
        ),
    ] = None,
    executor: ExecutorOption = None,
    ray_address: RayAddress = None,
) -> None:
    """Train, capture, audit and report.

    SCENARIO is a YAML file, or a name that "fedsim list scenarios" shows.
    """
    from fedsim.recording.run_folder import RunFolder

    if (scenario is None) == (resume is None):
        raise FedsimError(
            "run: give a scenario, as in fedsim run quickstart, or --resume with a run folder, and not both."
        )
    if resume is not None:
        if out or settings or engine:
            raise FedsimError("run --resume: goes on exactly as the run began; leave --out, --engine and --set away.")
        if phased.folder_of(resume) is not None:
            deployed.refuse_for_phases(superlink, tls, node_timeout)
            clustered.refuse_for_phases("run --resume", executor, ray_address)
            phased.run(resume, fail_on)
            return
        folder = RunFolder.open(resume)
        with folder.locked():
            folder.check()
            again = clustered.audited_on(folder.scenario(), executor)
            clustered.use("run", ray_address, again, trains=True)
            train_with = deployed.trainer(again, superlink, tls, node_timeout)
            _carry_out(*_noted(again), folder, True, fail_on, train_with=train_with)
    else:
        assert scenario is not None
        settings = clustered.settings_with(settings, executor)
        if phased.is_stated(scenario):
            deployed.refuse_for_phases(superlink, tls, node_timeout)
            clustered.refuse_for_phases("run", None, ray_address)
            phased.run(phased.begin(scenario, settings, engine, out), fail_on)
            return
        loaded, notes = load(scenario, settings, engine)
        note(notes)
        clustered.use("run", ray_address, loaded, trains=True)
        train_with = deployed.trainer(loaded, superlink, tls, node_timeout)
        plan, seen = _noted(loaded)
        created = RunFolder.create(out or _default_folder(loaded), loaded)
        _carry_out(plan, seen, created, True, fail_on, train_with=train_with)


def _default_folder(scenario: Scenario) -> Path:
    from fedsim.simulation import default_folder

    return default_folder(scenario)


def _noted(scenario: Scenario, folder: Any = None) -> tuple[Any, Any]:
    plan, seen = prepared(scenario, folder)
    note(seen.notes)
    return plan, seen


def _carry_out(
    plan: Any,
    seen: Any,
    folder: Any,
    train: bool,
    fail_on: Verdict | None,
    draws: int | None = None,
    train_with: Any = None,
) -> None:
    checks = "" if draws is None else f" --mechanisms --draws {draws}"
    command = "fedsim run --resume" if train else "fedsim audit"
    completion.complete(plan, seen, folder, train, f"{command} {folder.path}{checks}", draws, train_with)
    completion.exit_by(folder, fail_on)


def audit(
    folder: Folder,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Add an attack: its name, or '{name: ..., params: {...}}'; may be repeated."),
    ] = None,
    fail_on: FailOn = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario for the folder of an observed app that has none yet.", autocompletion=shipped_names
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Of an observed app: override one key of its scenario."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Of an observed app: returns what a client trained on, to score findings with.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Of an observed app: its loss, where it is not cross-entropy."),
    ] = None,
    mechanisms: Annotated[
        bool,
        typer.Option(
            "--mechanisms", help="Check the privacy budgets that defenses claim, by drawing their noise again."
        ),
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            min=100, max=10**7, help="With --mechanisms: how often, for each of two neighbors; 5,000 otherwise."
        ),
    ] = None,
    executor: ExecutorOption = None,
    ray_address: RayAddress = None,
) -> None:
    """Attack what no record tells of: added attacks, failed attempts, and a module:Class edited since.

    FOLDER is that of a run, or of an observed app, for which attacks are chosen by what applies where nobody lists any.
    Other attempts that have a record are left alone; delete records.jsonl, calibrations.jsonl and artifacts/ to make all
    of them again.
    """
    from fedsim.audit.mechanism import DRAWS
    from fedsim.recording.run_folder import RunFolder

    if draws is not None and not mechanisms:
        raise FedsimError("audit --draws: belongs to --mechanisms, which was not given. Add it, or leave --draws out.")
    told = [*(settings or ()), *_stated("audit.truth", truth), *_stated("training.loss", loss)]
    count = (draws or DRAWS) if mechanisms else None
    if phased.folder_of(folder) is not None:
        if scenario is not None or told:
            raise ScenarioError(
                "--scenario" if scenario is not None else told[0].partition("=")[0],
                f"{folder} holds phases with scenarios of their own. Leave --scenario, --set, --truth and --loss out.",
            )
        phased.audit(
            folder, lambda opened: _audit(opened, None, [], attack or [], fail_on, count, executor, ray_address)
        )
        return
    _audit(RunFolder.open(folder), scenario, told, attack or [], fail_on, count, executor, ray_address)


def _stated(key: str, value: str | None) -> list[str]:
    return [] if value is None else [f"{key}={value}"]


def _audit(
    opened: Any,
    scenario: str | None,
    settings: Sequence[str],
    attack: Sequence[str],
    fail_on: Verdict | None,
    draws: int | None,
    executor: Executor | None,
    ray_address: str | None,
) -> None:
    from fedsim.planning import choice
    from fedsim.recording import environment

    # Another process may be adding an attack: what the run has is read once this one holds it.
    with opened.locked():
        opened.check()
        if scenario is None and not settings:
            chosen = opened.scenario()
        else:
            chosen = _scenario_of_observed(opened, scenario, settings)
        chosen = clustered.audited_on(chosen, executor)
        clustered.use("audit", ray_address, chosen, trains=False)
        notes: tuple[str, ...] = ()
        if environment.is_observed(opened.path) and "attacks" not in chosen.model_fields_set:
            chosen = chosen.model_copy(update={"attacks": []})
            if not attack:
                chosen, found = choice.chosen(opened, chosen)
                notes = found.notes()
        plan, seen = prepared(_with_attacks(chosen, attack), opened)
        seen = dataclasses.replace(seen, notes=(*notes, *seen.notes))
        note(seen.notes)
        _carry_out(plan, seen, opened, False, fail_on, draws)


def _scenario_of_observed(folder: Any, named: str | None, settings: Sequence[str]) -> Scenario:
    """Return the scenario of a file, or its own with settings, for the folder of an observed app.

    Once checked, the audit stores it there.
    """
    from fedsim.planning import inputs
    from fedsim.recording import environment

    option = "--set" if named is None else "--scenario"
    if not environment.is_observed(folder.path):
        raise ScenarioError(
            option,
            f"{folder.path} is no observed app: it was simulated with its own scenario. Leave {option} out.",
        )
    if named is not None and folder.has_scenario() and inputs.is_audited(folder):
        raise ScenarioError(
            "--scenario",
            f"{folder.path} has a scenario, and findings that were made under it. Leave --scenario out, or delete "
            f"{inputs.AUDITED} to audit under another.",
        )
    if named is None:
        folder.scenario()  # says what to do where there is none
        return scenarios.load(folder.path / "scenario.yaml", settings)[0]
    return load(named, settings, None)[0]


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


def report(
    folder: Folder,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Print report.pdf as well, with a Chromium or Chrome without a window.")
    ] = False,
    browser: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="With --pdf: the browser; that of FEDSIM_BROWSER, or the first in PATH, otherwise."
        ),
    ] = None,
) -> None:
    """Render report.html, report.md and tables/ from the FOLDER of a run; of phases, those of each, and index.html."""
    from fedsim.report import pdf as printing

    if browser is not None and not pdf:
        raise FedsimError("report --browser: belongs to --pdf, which was not given. Add it, or leave --browser out.")
    program = printing.browser(browser) if pdf else None
    if phased.folder_of(folder) is not None:
        phased.report(folder, lambda opened: _report(opened, program))
    else:
        _report(folder, program)


def _report(folder: Path, program: Path | None) -> None:
    from fedsim import report as reports
    from fedsim.planning import inputs
    from fedsim.recording.run_folder import RunFolder
    from fedsim.report import pdf as printing

    opened = RunFolder.open(folder)
    scenario = None
    # A scenario that cannot be read is told by the report.
    with contextlib.suppress(ScenarioError, RunFolderError):
        if opened.has_scenario():
            scenario = opened.scenario()
    if scenario is not None:
        inputs.check_scenario(opened, scenario)
    path = reports.render(opened.path)
    say(f"Report: {path}")
    if program is not None:
        say(f"PDF: {printing.write(opened.path, program)}")


def records(
    folder: Folder,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one line per attempt and metric.")] = False,
) -> None:
    """Print the records in the FOLDER of a run: each attack on each update, with its scores."""
    from fedsim.recording.run_folder import RunFolder
    from fedsim.report import reading, tables
    from fedsim.report.naming import Naming

    if as_json and as_csv:
        raise FedsimError("records: give --json or --csv, and not both.")
    if as_json:
        write_json(RunFolder.open(folder).records.read())
        return
    found = reading.read(folder)
    records = [*found.records, *found.views]
    rows = tables.record_rows(records, Naming(records))
    if as_csv:
        sys.stdout.write(tables.as_csv(rows))
        return
    has_budgets = any(row[_EPSILON] is not None for row in rows)
    columns = {title: column for title, column in _COLUMNS.items() if has_budgets or column != _EPSILON}
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns.values()))
    terminal.out.print(table if rows else "No records yet.")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable_line(str(value))
