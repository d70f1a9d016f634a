"""Training a plan on the engine that its scenario names."""

from __future__ import annotations

from collections.abc import Callable

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import Tensor

from fedsim import ray_cluster
from fedsim.federation.client_app import client_app
from fedsim.federation.server_app import RoundLine, server_app
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import torch_threads
from fedsim.strategies.quiet import quiet_flower

Trainer = Callable[[Plan, RunFolder | None, Callable[[RoundLine], None]], dict[str, Tensor]]
"""What trains a plan into a folder, tells of each round, and returns the final global weights."""


def _engine(name: str) -> Callable[[ServerApp, ClientApp, int], None]:
    # Ray takes seconds to import, which the inline engine need not wait for.
    if name == "ray":
        ray_cluster.require("engine: ray", "engine: inline")
        from fedsim.federation import engine_ray

        return engine_ray.run
    from fedsim.federation import engine_inline

    return engine_inline.run


def train(
    plan: Plan,
    folder: RunFolder | None,
    on_round: Callable[[RoundLine], None] | None = None,
) -> dict[str, Tensor]:
    """Run the federation of a plan, from where the folder ends; see `server_app`.

    Returns:
        The final global weights.

    Raises:
        FedsimError: the run cannot go on, for a reason that the user can mend.
    """
    if plan.scenario.engine == "deployment":
        # Its ServerApp and ClientApp run in other processes, which make them anew from the scenario.
        from fedsim.federation import engine_deployment

        return engine_deployment.train(plan, folder, on_round)
    scenario, final = plan.scenario, dict[str, Tensor]()
    server = server_app(plan, folder, on_round, final.update)
    with quiet_flower(), torch_threads(1):
        _engine(scenario.engine)(server, client_app(scenario), scenario.federation.clients)
    return final
