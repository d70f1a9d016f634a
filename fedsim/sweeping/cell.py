"""One cell of a sweep to its end, in this process: `python -m fedsim.sweeping.cell SWEEP FOLDER`.

The process ends as soon as its standard input does: whoever started it holds the other end, and may be killed. It watches that
from its first moment, before it imports what a run needs. What goes wrong is the cell's outcome.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim import installation, process_tree
from fedsim.errors import FedsimError, RunFolderError, told

if TYPE_CHECKING:
    from fedsim.recording.run_folder import RunFolder
    from fedsim.sweeping.manifest import Outcome, SweepFolder

_PATIENCE = 20.0  # seconds that the process of a killed sweep may take to end
_PAUSE = 0.1


def complete(sweep: SweepFolder, folder: str) -> Outcome:
    """Go on with the run of a cell from where its folder ends, and store how it came out.

    Args:
        sweep: the folder of the sweep.
        folder: the name of the cell's run folder.
    """
    from fedsim.recording.records import SCHEMA
    from fedsim.sweeping.manifest import Outcome

    began = time.monotonic()
    try:
        troubles = _run(sweep.run(folder))
    except (FedsimError, OSError) as error:
        outcome = Outcome(schema=SCHEMA, status="failed", reason=str(error))
    except Exception as error:  # noqa: BLE001  (boundary: one cell's failure is a row of the sweep, not its end)
        traceback.print_exc()
        outcome = Outcome(schema=SCHEMA, status="failed", reason=told(error))
    else:
        outcome = Outcome(schema=SCHEMA, status="finished", troubles=troubles)
    outcome = outcome.model_copy(update={"seconds": round(time.monotonic() - began, 1)})
    sweep.write_outcome(folder, outcome)
    return outcome


def _run(path: Path) -> tuple[str, ...]:
    """Complete a run, and return what failed inside of it."""
    from fedsim import simulation
    from fedsim.planning import inputs
    from fedsim.planning import preparation as planning
    from fedsim.recording.run_folder import RunFolder

    folder = RunFolder.open(path)
    with _held(folder):
        folder.check()
        plan = planning.of(folder.scenario())
        records = simulation.simulate(plan, folder, simulation.Progress(), inputs.of(plan))
        lines, evaluations = folder.read_rounds(), folder.read_evaluations()
    failed = sum(record.status == "failed" for record in records)
    clients = sorted({client for line in lines for client in line.failed})
    unanswered = sum(line.status == "failed" for line in evaluations)
    return (
        *([f"{failed} of {len(records)} attempts failed"] if failed else []),
        *([f"clients failed in some rounds: {', '.join(map(str, clients))}"] if clients else []),
        *([f"{unanswered} of {len(evaluations)} evaluations failed"] if unanswered else []),
    )


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Hold a run folder; the process of a sweep that was killed just now may take a moment to let it go."""
    end = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder.locked())
                break
            except RunFolderError:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
        yield


def end_with_input() -> None:
    """End this process, and what it has started, once its standard input ends."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        process_tree.end_descendants()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: list[str]) -> None:
    """Complete one cell."""
    end_with_input()
    from fedsim.sweeping.manifest import SweepFolder

    sys.path.append(os.getcwd())  # where a "module:Class" under development lives; see `fedsim.cli.main`
    installation.check()
    sweep, folder = arguments
    complete(SweepFolder(Path(sweep)), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
