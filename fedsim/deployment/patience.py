"""Flower's SuperLink or SuperNode, with time for the processes that it starts.

    python -m fedsim.deployment.patience PROGRAM ARGUMENTS

Flower gives a process 30 seconds from the start to its first sign of life, by a constant that no option changes. Then it takes
the process for lost and starts another one for the same message, while the first goes on. Each imports torch, which takes
longer the more of them there are: on a busy machine none ever gets ready. Here a process has `START` seconds. One that is at
work and stops giving signs of life is lost as soon as ever.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState

PROGRAMS = ("flower-superlink", "flower-supernode")
"""Those that start processes, and keep what is under way in memory."""
START = 300.0
"""Seconds that a process has from its start to its first sign of life."""


def give_time() -> None:
    """Let tasks of this process's state be claimed for `START` seconds.

    Both programs keep their state in memory unless they are told otherwise.
    """
    claim = InMemoryCoreState.claim_task

    def claim_task(state: InMemoryCoreState, task_id: int) -> str | None:
        token = claim(state, task_id)
        if token is not None:
            with state.lock_task_store:
                state.task_token_store[task_id].active_until += timedelta(seconds=START - HEARTBEAT_DEFAULT_INTERVAL)
        return token

    InMemoryCoreState.claim_task = claim_task  # type: ignore[assignment, method-assign]


def main() -> None:
    """Run the program that the first argument names, by a path or alone, with the others."""
    sys.argv = sys.argv[1:]
    name = Path(sys.argv[0]).name if sys.argv else ""
    if name not in PROGRAMS:
        raise SystemExit(f"Name the program to run, one of {', '.join(PROGRAMS)}, and then its arguments.")
    (program,) = metadata.entry_points(group="console_scripts", name=name)
    give_time()
    program.load()()


if __name__ == "__main__":
    main()
