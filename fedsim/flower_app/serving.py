"""What the ServerApp does on a SuperLink: the whole run, or its training alone where `fedsim run` attends to the rest."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim import installation, simulation
from fedsim.errors import FedsimError, RunFolderError
from fedsim.federation._flwr_private import keep_draws_apart
from fedsim.federation.engine import Trainer
from fedsim.federation.events import Events
from fedsim.federation.server_app import RoundLine, server_app
from fedsim.flower_app.scenarios import named
from fedsim.planning import preparation
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import Scenario
from fedsim.seeds import torch_threads
from fedsim.strategies.quiet import quiet_flower

_log = logging.getLogger(__name__)


def serve(grid: Grid, config: Mapping[str, Any]) -> None:
    """Make the run that a run configuration names.

    Raises:
        FedsimError: it is refused, or cannot go on.
    """
    installation.check()
    keep_draws_apart()
    out = Path(str(config["out"]))
    if not out.is_absolute():
        raise RunFolderError(
            f"out: the run configuration names {str(out)!r:.80}, and the ServerApp has a working directory of its own. Give "
            "the absolute path of a run folder: --run-config 'out=\"/path/to/run\"'."
        )
    scenario = named(str(config["scenario"]))
    train = _training(grid, float(config["node-timeout"]))
    if config["attended"]:
        _attended(train, scenario, out, bool(config["observed"]))
    else:
        _alone(train, scenario, out)


def _attended(train: Trainer, scenario: Scenario, out: Path, is_observed: bool) -> None:
    """Train into a folder that `fedsim run` holds, and tell it how far that has come; unobserved, only the model is kept."""
    if not out.is_dir():
        raise RunFolderError(
            f"{out}: not there on the machine of the ServerApp. It has to be one folder for fedsim run and for the ServerApp: "
            "put it on a storage that both have at the same path."
        )
    events = Events(out)
    events.add("started", True)
    try:
        plan, folder = preparation.of(scenario), RunFolder.open(out)

        def on_round(line: RoundLine) -> None:
            _refuse_without_driver(folder)
            events.add("round", line)

        final = train(plan, folder if is_observed else None, on_round)
        if not is_observed:
            folder.write_model(final)
    except FedsimError as error:
        events.add_error(error)
        raise
    except Exception:
        events.add("fault", traceback.format_exc())
        raise
    events.add("finished", True)


def _refuse_without_driver(folder: RunFolder) -> None:
    """Stop once `fedsim run`, which holds the folder, has ended: another one may go on with it.

    Raises:
        FedsimError: nobody holds the folder.
    """
    try:
        with folder.locked():
            pass
    except RunFolderError:
        return
    raise FedsimError(f"{folder.path}: fedsim run has ended. Go on with fedsim run --resume {folder.path}.")


def _alone(train: Trainer, scenario: Scenario, out: Path) -> None:
    """Train, audit and report; a folder of the same scenario is completed."""
    plan = preparation.of(scenario)
    is_there = out.is_dir() and any(out.iterdir())
    folder = RunFolder.open(out) if is_there else RunFolder.create(out, scenario)
    if is_there and folder.scenario() != scenario:
        raise RunFolderError(f"{out}: holds a run of another scenario. Name another folder.")
    simulation.simulate(plan, folder, simulation.Progress(), train_with=train)
    _log.info("fedsim: %s", out / "report.html")


def _training(grid: Grid, node_timeout: float) -> Trainer:
    """Return what trains over a grid, as `fedsim.federation.engine.train` does over its own."""

    def train(plan: Plan, folder: RunFolder | None, on_round: Callable[[RoundLine], None]) -> dict[str, Tensor]:
        final = dict[str, Tensor]()
        with quiet_flower(), torch_threads(1):
            server_app(plan, folder, on_round, final.update, node_timeout)(grid, Context(1, 1, {}, RecordDict(), {}))
        return final

    return train
