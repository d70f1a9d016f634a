"""The deployment engine: a SuperLink and one SuperNode per client, as real processes that exchange messages over HTTP.

The ServerApp runs in a process of the SuperLink and captures into the run folder; this process submits the run, follows it
through the lines of that folder, and ends all processes with itself.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import tomli_w
from torch import Tensor

from fedsim.deployment import app_folder, commands, network
from fedsim.deployment.certificates import Credentials
from fedsim.deployment.options import Options
from fedsim.deployment.processes import Processes
from fedsim.errors import FedsimError
from fedsim.federation.events import Events, error_of
from fedsim.federation.server_app import RoundLine
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder

_PAUSE = 0.2
_RUN = "run"
# Beyond the nodes' own time: Flower starts the ServerApp, which imports torch and reads the data.
_START = 300.0


def train(
    plan: Plan,
    folder: RunFolder | None,
    on_round: Callable[[RoundLine], None] | None = None,
    options: Options | None = None,
) -> dict[str, Tensor]:
    """Run the federation of a plan in other processes, from where the folder ends; see `fedsim.federation.engine.train`.

    Args:
        plan: the run's plan.
        folder: the run; None trains without an observer, and keeps nothing.
        on_round: called with each line of rounds.jsonl.
        options: where it runs; a private SuperLink without TLS otherwise.

    Returns:
        The final global weights.

    Raises:
        FedsimError: the run cannot go on, for a reason that the user can mend.
    """
    options, is_observed = options or Options(), folder is not None
    with contextlib.ExitStack() as stack:
        if folder is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsim-run-"))
            folder = RunFolder.create(Path(place) / "run", plan.scenario)
        # The ServerApp stops where nobody holds the folder any more.
        stack.enter_context(folder.locked())
        credentials = None if options.tls is None else Credentials(options.tls.absolute())
        if credentials is not None:
            # Nodes that run already have keys of their own.
            credentials.check(plan.scenario.federation.clients if options.superlink is None else None)
        events = Events(folder.path)
        events.clear()
        stack.callback(events.clear)
        processes = stack.enter_context(Processes(commands.environment()))
        if options.superlink is None:
            network.start(processes, plan.scenario.federation.clients, credentials, options.node_timeout)
        else:
            network.connect(processes, options.superlink, credentials)
            if credentials is not None and credentials.public_key(0).is_file():
                network.register(processes, credentials, plan.scenario.federation.clients, options.node_timeout)
        _submit(processes, plan, folder, options, is_observed)
        _follow(processes, events, on_round, plan, options)
        # The ServerApp's process has written it.
        folder.refresh()
        return folder.read_model()


def _submit(processes: Processes, plan: Plan, folder: RunFolder, options: Options, is_observed: bool) -> None:
    app = processes.folder / "app"
    config = processes.folder / "run.toml"
    values = {
        "scenario": json.dumps(plan.scenario.resolved()),
        "out": str(folder.path.absolute()),
        "attended": True,
        "observed": is_observed,
        "node-timeout": options.node_timeout,
    }
    config.write_text(tomli_w.dumps(values), encoding="utf-8")
    processes.start(_RUN, commands.run(app_folder.write(app), config))


def _follow(
    processes: Processes,
    events: Events,
    on_round: Callable[[RoundLine], None] | None,
    plan: Plan,
    options: Options,
) -> None:
    """Hand on the rounds of the ServerApp until it has finished.

    Raises:
        FedsimError: what the ServerApp says; or a process that the run needs has ended.
    """
    has_started, has_trained = False, False
    end = time.monotonic() + options.node_timeout + _START
    while True:
        # Asked before the events are read, so that none is missed.
        ended = processes.ended()
        for name, value in events.new():
            has_started = True
            if name == "finished":
                return
            if name == "error":
                raise error_of(value)
            if name == "fault":
                raise RuntimeError(f"the ServerApp failed:\n{value}")
            if name == "round":
                has_trained = True
                if on_round:
                    on_round(value)
        _check(processes, ended, has_trained, plan)
        if not has_started and time.monotonic() > end:
            raise FedsimError(
                f"--engine deployment: the SuperLink has not started the ServerApp within {options.node_timeout + _START:g} s. "
                f"With --superlink, its run folder has to be there too. flwr run said:\n{processes.said(_RUN)}"
            )
        time.sleep(_PAUSE)


def _check(processes: Processes, ended: Mapping[str, int], has_trained: bool, plan: Plan) -> None:
    """Refuse to wait for a process that is no more."""
    nodes = [network.node_name(client) for client in range(plan.scenario.federation.clients)]
    # Of a node that is lost later, Flower tells the ServerApp, for which its client has failed.
    for name in ["superlink", *([] if has_trained else nodes), _RUN]:
        if name in ended:
            raise FedsimError(
                f"--engine deployment: {name} ended with exit code {ended[name]} before the training was done. It said:\n"
                f"{processes.said(name)}"
            )
