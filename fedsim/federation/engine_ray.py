"""The ray engine: Flower's simulation runtime, one actor per processor, or a Ray cluster when RAY_ADDRESS names one."""

from __future__ import annotations

import os
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation


def run(server_app: ServerApp, client_app: ClientApp, clients: int) -> None:
    """Run a Flower app to its end; exceptions of the server reach the caller."""
    init_args: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" in os.environ:
        init_args["address"] = os.environ["RAY_ADDRESS"]
    else:
        init_args["num_cpus"] = os.cpu_count() or 1
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_name="ray",
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": init_args},
    )
