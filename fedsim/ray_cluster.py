"""Ray: the cluster that RAY_ADDRESS names, or one on this machine for as long as somebody needs it."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fedsim.errors import FedsimError


class LostError(Exception):
    """A task ended with its process or its node, whatever it was doing; elsewhere it may come to its end."""


class KilledError(Exception):
    """Ray ended a task for want of memory."""


def require(where: str, instead: str) -> None:
    """Refuse to go on without Ray.

    Args:
        where: the setting that asks for it, such as `engine: ray`.
        instead: the setting that does without.

    Raises:
        FedsimError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise FedsimError(
            f"{where}: Ray is not installed here. Install it with pip install 'flwr[simulation]', or use {instead}."
        )


def init_args(cpus: int) -> dict[str, Any]:
    """Return what `ray.init` gets: the address of the cluster to use, or how to start one on this machine.

    Args:
        cpus: to use where Ray is started on this machine.

    Raises:
        FedsimError: nothing answers at RAY_ADDRESS.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        check_address(named)
    # By default Ray joins any cluster that somebody has started on this machine, and refuses a number of CPUs then.
    return {"address": named} if named else {"address": "local", "num_cpus": cpus}


def check_address(address: str, where: str = "RAY_ADDRESS") -> None:
    """Refuse an address where nobody listens; Ray itself tries for minutes, and then ends the process.

    Args:
        address: such as "10.0.0.1:6379"; names without a port are Ray's to resolve.
        where: what names it, for the message.

    Raises:
        FedsimError: nothing answers there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise FedsimError(
            f"{where}: {address} does not answer ({error}). Start the cluster, or leave the address out."
        ) from None


def connect(cpus: int) -> bool:
    """Connect to Ray; returns whether this did, so that whoever called leaves it again.

    Args:
        cpus: to use where Ray is started on this machine.

    Raises:
        FedsimError: nothing answers at RAY_ADDRESS.
    """
    import ray

    if ray.is_initialized():
        return False
    given = init_args(cpus)
    if "num_cpus" in given:
        given["include_dashboard"] = False
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **given)
    return True


@dataclass(frozen=True)
class Share:
    """What a task takes of a node, fractions allowed; Ray counts with it and enforces nothing of the processors."""

    cpus: float
    gpus: float

    def fits(self, resources: dict[str, float]) -> int:
        """Return how many tasks fit into a node at once."""
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(name, 0.0) / part + 1e-6) for name, part in needed.items() if part)


class Cluster:
    """Runs functions on the nodes of a Ray cluster.

    Args:
        share: what each task takes.

    Raises:
        FedsimError: nothing answers at RAY_ADDRESS, or no node has so much.
    """

    def __init__(self, share: Share) -> None:
        import ray

        self._share = share
        self._is_own = connect(os.cpu_count() or 1)
        # Ray's own retries would not tell a lost node from a task that kills its process.
        self._remote = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0)
        self._running: dict[Future[Any], Any] = {}
        try:
            self.slots()
        except FedsimError:
            self.close()
            raise

    def slots(self) -> int:
        """Return how many tasks run at once on the nodes that there are now.

        Raises:
            FedsimError: none.
        """
        import ray

        listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node["Resources"] for node in listed if node["Alive"]]
        slots = sum(map(self._share.fits, nodes))
        if not slots:
            has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes) or "none"
            raise FedsimError(
                f"audit: no node of the Ray cluster has {self._share.cpus:g} CPU and {self._share.gpus:g} GPU for a task "
                f"(nodes: {has}). Lower audit.task_cpus or audit.task_gpus, or add a node."
            )
        return slots

    def submit(self, function: Callable[..., Any], given: Sequence[Any]) -> Future[Any]:
        """Run a function of an importable module on some node.

        The future holds what it returned or raised, or `LostError` or `KilledError`.
        """
        reference = self._remote(function).remote(*given)
        ended: Future[Any] = Future()
        self._running[ended] = reference
        reference.future().add_done_callback(lambda inner: self._take(ended, inner))
        return ended

    def put(self, content: bytes) -> Any:
        """Put a content into the object store; it stays there for as long as the reference that this returns."""
        import ray

        return ray.put(content)

    def _take(self, ended: Future[Any], inner: Future[Any]) -> None:
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        self._running.pop(ended, None)
        error = inner.exception()
        if error is None:
            ended.set_result(inner.result())
        elif isinstance(error, OutOfMemoryError):
            ended.set_exception(KilledError("Ray ended its process for want of memory on its node"))
        elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
            ended.set_exception(LostError(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]))
        else:
            ended.set_exception(error)

    def cancel(self) -> None:
        """End all tasks at once, with their processes."""
        import ray

        for reference in list(self._running.values()):
            ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave Ray, and end it where it was started for this."""
        import ray

        if self._is_own:
            ray.shutdown()


def fetch(reference: Any) -> bytes:
    """Return a content of the object store, in a task."""
    import ray

    content: bytes = ray.get(reference)
    return content
