"""The only importer of Flower's private modules; a test names the versions on which they are as expected."""

from __future__ import annotations

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "identify_process"]


def identify_process(run_id: int) -> None:
    """Give this process the identity without which Flower refuses to make a Message."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = run_id
