"""What `fedsim run --engine deployment` is told beyond the scenario; it decides nothing of what is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NODE_TIMEOUT = 300.0
"""Seconds until all nodes have to be there; processes of SuperNodes take a few to start."""


@dataclass(frozen=True)
class Options:
    """Where a deployment runs.

    Args:
        superlink: address of a SuperLink that runs with its SuperNodes; None starts a private one.
        tls: a folder of `fedsim certs`; None for no TLS.
        node_timeout: seconds until SuperLink and nodes have to be there.
    """

    superlink: str | None = None
    tls: Path | None = None
    node_timeout: float = NODE_TIMEOUT
