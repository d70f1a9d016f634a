"""Runs from Python: make one, or read one that there is, as tables of pandas.

    import fedsim

    run = fedsim.run("smoke")
    run.verdict, run.headline
    run.records.groupby(["defenses", "attack", "metric"])["value"].mean()

A script calls `run` under `if __name__ == "__main__":`, since the audit's worker processes import the script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import scenario as scenarios
from fedsim import shipped, simulation
from fedsim.planning import preparation
from fedsim.recording.run_folder import RunFolder
from fedsim.report import evaluations, reading, summary, tables
from fedsim.report.analysis import Analysis
from fedsim.scenario import parse
from fedsim.verdicts.judge import Verdict

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Run:
    """What a run folder holds, read once; a report of it is `report`.

    Args:
        folder: the run folder.
    """

    folder: Path

    @cached_property
    def _analysis(self) -> Analysis:
        return Analysis(reading.read(self.folder))

    @property
    def scenario(self) -> Mapping[str, Any]:
        """The resolved scenario as plain data."""
        return self._analysis.run.scenario

    @property
    def verdict(self) -> Verdict:
        """The verdict of the whole run."""
        return self._analysis.verdict

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        return self._analysis.headline

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return summary.of(self._analysis)

    @property
    def report(self) -> Path:
        """The report, to be opened in a browser."""
        return self.folder / "report.html"

    @cached_property
    def records(self) -> pandas.DataFrame:
        """One row per attempt and metric: round, client, defenses, attack, epsilon, status, value, control_value, skill, ...

        Of an attempt on several updates, `client` says which these are. `epsilon`, `delta` and `neighbors` are what the
        client's defenses claim over its rounds so far: empty where they claim nothing, and where several clients are attacked.
        """
        run = self._analysis.run
        return _frame(tables.record_rows([*run.records, *run.views], self._analysis.naming))

    @cached_property
    def rounds(self) -> pandas.DataFrame:
        """One row per round: accuracy, loss, participants, failed, seconds; round 0 is before the training."""
        return _frame(tables.round_rows(self._analysis.run.rounds))

    @cached_property
    def budgets(self) -> pandas.DataFrame:
        """One row per round and client with a privacy budget: epsilon over all rounds so far, delta, neighbors."""
        return _frame(tables.budget_rows(self._analysis.run.rounds))

    @cached_property
    def evaluations(self) -> pandas.DataFrame:
        """One row per evaluator, round and score."""
        return _frame(evaluations.rows(self._analysis.run.evaluations))


def load(folder: str | Path) -> Run:
    """Return the run in a folder.

    Raises:
        RunFolderError: there is none.
    """
    run = Run(Path(folder))
    RunFolder.open(run.folder)
    return run


def run(
    scenario: str | Path | Mapping[str, Any],
    folder: str | Path | None = None,
    settings: Sequence[str] = (),
) -> Run:
    """Train, audit and report, as `fedsim run` does.

    Args:
        scenario: a YAML file, the name of a shipped scenario, or its content.
        folder: the run folder, which must not exist yet; runs/<name>-<time> by default.
        settings: changes such as "federation.rounds=2", as `--set` takes them; of a file or a shipped scenario.

    Raises:
        ScenarioError: anything that the scenario names or combines does not work.
        RunFolderError: the folder exists.
        FedsimError: the training cannot go on.
    """
    if isinstance(scenario, Mapping):
        if settings:
            raise ValueError("settings: change the mapping itself; they are of a file or of a shipped scenario.")
        chosen = parse(dict(scenario), "scenario")
    else:
        chosen, _ = scenarios.load(shipped.find(str(scenario)), settings)
    made = RunFolder.create(Path(folder) if folder is not None else simulation.default_folder(chosen), chosen)
    simulation.simulate(preparation.of(chosen), made, simulation.Progress())
    return Run(made.path)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(rows)
