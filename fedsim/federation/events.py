"""What the ServerApp tells `fedsim run`, as lines of a file in the run folder: nothing else joins the two processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.federation.aggregation import ClientsFailedError
from fedsim.recording.json_lines import JsonLines

NAME = "deployment.jsonl"

_KINDS = {kind.__name__: kind for kind in (FedsimError, RunFolderError, ClientsFailedError)}


class Events:
    """The events of a training under way: `started`, `round`, and one of `finished`, `error` and `fault`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = JsonLines(folder / NAME, folder)
        self._told = 0

    def add(self, name: str, value: Any) -> None:
        """Tell one event."""
        self._lines.append({name: value})

    def add_error(self, error: FedsimError) -> None:
        """Tell an error that the user can mend."""
        if isinstance(error, ScenarioError):
            self.add("error", {"where": error.where, "message": error.message})
        else:
            self.add("error", {"kind": type(error).__name__, "message": str(error)})

    def new(self) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each event that has not been yielded before.

        Raises:
            RunFolderError: the file is damaged.
        """
        lines = self._lines.read()[self._told :]
        for line in lines:
            self._told += 1
            yield from line.items()

    def clear(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            self._lines.path.unlink()
        self._told = 0


def error_of(stated: Any) -> FedsimError:
    """Return the error that `Events.add_error` told."""
    if "where" in stated:
        return ScenarioError(str(stated["where"]), str(stated["message"]))
    return _KINDS.get(str(stated.get("kind")), FedsimError)(str(stated["message"]))
