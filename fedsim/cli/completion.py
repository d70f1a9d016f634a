"""A run to its end, shown in the terminal, and the exit code that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim.cli import terminal
from fedsim.cli.arguments import Verdict
from fedsim.cli.terminal import complain, say

if TYPE_CHECKING:
    from fedsim.recording.records import AnyRecord, EvaluationRecord, MechanismRecord  # imports torch

_TOO_BAD = 3  # a verdict that --fail-on names, or a claimed privacy budget that is refuted
_RELEASES = {"update": "round", "step": "local step"}  # what a claim is for, in words
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


def complete(
    plan: Any, seen: Any, folder: Any, train: bool, again: str, draws: int | None = None, train_with: Any = None
) -> None:
    """Train, audit and report, or audit and report alone, and show how far it has come and what came out.

    Args:
        plan: of the run.
        seen: its inputs.
        folder: of the run.
        train: whether rounds are trained.
        again: the command that goes on after an interruption.
        draws: see `fedsim.simulation.audit`.
        train_with: see `fedsim.simulation.simulate`; None for the scenario's engine.

    Raises:
        typer.Exit: interrupted from the keyboard.
    """
    from fedsim import simulation
    from fedsim.cli.display import Display, summary

    say(f"Run folder: {folder.path}")
    try:
        with Display(terminal.out, plan.scenario.federation.rounds, training=train) as display:
            if train:
                chosen = {} if train_with is None else {"train_with": train_with}
                simulation.simulate(plan, folder, display.progress, seen, **chosen)
            else:
                simulation.audit(plan, folder, display.progress, seen, draws)
    except KeyboardInterrupt:
        complain(f"interrupted; go on with {again}")
        raise typer.Exit(INTERRUPTED) from None
    terminal.out.print(summary(folder.path))
    say(f"Report: {folder.path / 'report.html'}")


def exit_by(folder: Any, fail_on: Verdict | None) -> None:
    """End with an exit code of its own where something failed inside of a run, or the verdict is too bad.

    Raises:
        typer.Exit: see `fedsim.cli`.
    """
    mechanisms = folder.read_mechanisms()
    _exit_by_verdict(folder.path, fail_on, mechanisms)
    _exit_by(folder.read_records(), folder.rounds.read(), folder.read_evaluations(), mechanisms)


def _exit_by_verdict(folder: Path, fail_on: Verdict | None, mechanisms: Sequence[MechanismRecord]) -> None:
    from fedsim.report import summary

    for line in mechanisms:
        if line.status == "refuted" and line.claimed is not None and line.claimed.epsilon is not None:
            complain(
                f"client {line.client}: {line.defense.title} claims epsilon {line.claimed.epsilon:.3g} for one "
                f"{_RELEASES[line.release]}, and {line.draws:,} draws show at least {line.lower_bound:.3g} "
                f"(delta {line.claimed.delta:g})."
            )
    if any(line.status == "refuted" for line in mechanisms):
        complain(f"A claimed privacy budget is refuted; ends with exit code {_TOO_BAD}.")
        raise typer.Exit(_TOO_BAD)
    if fail_on is not None:
        verdict = summary.verdict_of(folder)
        if summary.is_failure(verdict, fail_on.value):
            complain(f"verdict: {verdict}; --fail-on {fail_on.value} ends with exit code {_TOO_BAD}.")
            raise typer.Exit(_TOO_BAD)


def _exit_by(
    records: Sequence[AnyRecord],
    lines: Sequence[dict[str, Any]],
    evaluations: Sequence[EvaluationRecord],
    mechanisms: Sequence[MechanismRecord],
) -> None:
    failed = [record for record in records if record.status == "failed"]
    clients = {client for line in lines for client in line["failed"]}
    if failed:
        terminal.out.print(f"{len(failed)} of {len(records)} attempts failed; records.jsonl says why.", style="red")
    if clients:
        terminal.out.print(
            f"Clients failed in some rounds: {', '.join(sorted(clients, key=int))}; see rounds.jsonl.", style="red"
        )
    unanswered = [line for line in evaluations if line.status == "failed"]
    if unanswered:
        terminal.out.print(
            f"{len(unanswered)} of {len(evaluations)} evaluations failed; evaluations.jsonl says why.", style="red"
        )
    unchecked = [line for line in mechanisms if line.status == "failed"]
    if unchecked:
        terminal.out.print(
            f"{len(unchecked)} of {len(mechanisms)} checks of a claim failed; mechanisms.jsonl says why.", style="red"
        )
    if failed or clients or unanswered or unchecked:
        raise typer.Exit(1)
