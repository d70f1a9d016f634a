"""The ray engine: Flower's simulation runtime, one actor per processor, or a Ray cluster when RAY_ADDRESS names one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedsim import ray_cluster
from fedsim.federation.grid import EndableGrid

# Options of each of Flower's actors. One whose process dies is started again: Flower keeps it in its pool, dead or not, where
# every client that it got later would fail.
_ACTOR: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1}


def run(server_app: ServerApp, client_app: ClientApp, clients: int) -> None:
    """Run a Flower app to its end; exceptions of the server reach the caller.

    Raises:
        FedsimError: nothing answers at RAY_ADDRESS.
    """
    from fedsim.federation import ray_backend  # imports Ray

    init_args = {"log_to_driver": False, "logging_level": "ERROR", **ray_cluster.init_args(os.cpu_count() or 1)}
    ended, endable = threading.Event(), ServerApp()

    @endable.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(EndableGrid(grid, ended), context)

    try:
        with _silent_when_interrupted(), ray_backend.used():
            run_simulation(
                server_app=endable,
                client_app=client_app,
                num_supernodes=clients,
                backend_name="ray",
                backend_config={"client_resources": _ACTOR, "init_args": init_args},
            )
    finally:
        # Flower runs the server in a thread of its own, which would wait for replies for hours after an interruption.
        ended.set()


@contextlib.contextmanager
def _silent_when_interrupted() -> Iterator[None]:
    """Keep Flower from logging a traceback for every client that an interruption from the keyboard has cut off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
