"""Flower's private modules, which only `ray_backend` and `fedsim.deployment.patience` import beside this one.

A test names the versions on which they are as expected.
"""

from __future__ import annotations

import numpy as np
from flwr.supercore import heartbeat
from flwr.supercore.retry import retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "identify_process", "keep_draws_apart"]


def identify_process(run_id: int) -> None:
    """Give this process the identity without which Flower refuses to make a Message."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = run_id


def keep_draws_apart() -> None:
    """Give Flower's threads, which wait for random times, a generator of their own in this process.

    The heartbeat of a ServerApp draws from `random` at times that nobody controls, and strategies draw their clients from
    there: the same seed would not give the same clients.
    """
    generator = np.random.default_rng()
    for module in (heartbeat, retry_invoker):
        vars(module)["random"] = generator
