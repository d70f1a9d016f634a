"""What the observer captured of somebody else's Flower app, and why a folder may hold nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fedsim.errors import RunFolderError
from fedsim.recording import files
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder

Shape = tuple[int, ...]

NODE, NODE_ID, PARTITION = "node", "node-id", "partition-id"
"""Where a capture states which node the client is and, where its reply said so, which partition it holds."""

_LOG = "observed.json"
_KEPT = 5  # errors of the observer that are kept in the folder; all of them are in the app's log


class EmptyCaptureError(RunFolderError):
    """Nothing was captured, so there is nothing to audit or to show."""


@dataclass(frozen=True)
class Captured:
    """What an observed folder holds, none of it assumed.

    Args:
        rounds: of which a reply is stored, ascending.
        clients: whose reply is stored at least once, or who failed, ascending.
        updates: stored replies.
        failures: round, client and message of each client that failed.
        kinds: kinds of update, in the order of their first appearance.
        arrays: name and shape of each array that the server sent, in the order of sending.
        examples: smallest and largest number of examples that a client reported; None when none reported any.
        skipped: reason -> how many replies to train messages the observer could not store.
    """

    rounds: tuple[int, ...]
    clients: tuple[int, ...]
    updates: int
    failures: tuple[tuple[int, int, str], ...]
    kinds: tuple[str, ...]
    arrays: tuple[tuple[str, Shape], ...]
    examples: tuple[int, int] | None
    skipped: tuple[tuple[str, int], ...]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name -> shape of each array that the server sent."""
        return dict(self.arrays)

    @property
    def numbers(self) -> int:
        """Numbers in all arrays together."""
        return sum(prod(shape) for _, shape in self.arrays)


def write_log(folder: RunFolder, seen: Mapping[str, int], skipped: Mapping[str, int], errors: Sequence[object]) -> None:
    """Store what the observer saw, so that an empty folder can say why it is empty.

    Args:
        folder: the observed run.
        seen: type of message -> number of replies.
        skipped: reason -> number of replies to train messages that were not stored.
        errors: what the observer could not store.
    """
    content = {
        "schema": SCHEMA,
        "replies": dict(seen),
        "skipped": dict(skipped),
        "errors": [str(error) for error in errors[:_KEPT]],
    }
    folder.write(folder.path / _LOG, json.dumps(content, indent=2) + "\n")


def _read_log(folder: RunFolder) -> dict[str, Any] | None:
    path = folder.path / _LOG
    try:
        content = files.read_json(path, folder.path)
        if content is None:
            return None
        return {
            "replies": Counter({str(kind): int(count) for kind, count in content["replies"].items()}),
            "skipped": Counter({str(reason): int(count) for reason, count in content["skipped"].items()}),
            "errors": [str(error) for error in content["errors"]],
        }
    except (AttributeError, KeyError, TypeError, ValueError, files.DamagedFileError):
        raise RunFolderError(
            f"{path}: damaged, not what fedsim writes. Delete it; the captures do not need it."
        ) from None


def read(folder: RunFolder) -> Captured:
    """Return what an observed folder holds.

    Raises:
        EmptyCaptureError: no reply is stored; the message names the likely cause.
        RunFolderError: the index or a capture is damaged.
    """
    log = _read_log(folder)
    rounds = folder.captured_rounds()
    failures = tuple(
        (round, *item) for round in folder.failed_rounds() for item in sorted(folder.failures(round).items())
    )
    if not rounds:
        raise EmptyCaptureError(f"{folder.path}: nothing was captured: {_cause(log, failures)}")
    stored = [(round, client) for round in rounds for client in folder.captured(round)]
    headers = [folder.read_header(round, client) for round, client in stored]
    reported = [count for header in headers if (count := folder.reported_examples(header))]
    return Captured(
        rounds=rounds,
        clients=tuple(sorted({*(client for _, client in stored), *(client for _, client, _ in failures)})),
        updates=len(stored),
        failures=failures,
        kinds=tuple(dict.fromkeys(str(header["kind"]) for header in headers)),
        arrays=tuple(folder.sent_shapes(*stored[0]).items()),
        examples=(min(reported), max(reported)) if reported else None,
        skipped=tuple(log["skipped"].items()) if log else (),
    )


def _cause(log: Mapping[str, Any] | None, failures: Sequence[tuple[int, int, str]]) -> str:
    """Return why an observed folder is empty, and what to do."""
    if failures:
        round, client, message = failures[0]
        return f"every client failed, client {client} in round {round} with: {message.rstrip('.')}."
    if log is None:
        return "the app is still running, or was killed before the first reply of a client was stored. Run it again."
    if log["errors"]:
        return f"no reply could be stored: {log['errors'][0].rstrip('.')}."
    if log["skipped"]:
        reason, count = log["skipped"].most_common(1)[0]
        return f"{count} replies to train messages were left out, because {reason}. Send the model as one ArrayRecord."
    kinds = ", ".join(f"{kind} ({count})" for kind, count in log["replies"].items())
    if not kinds:
        return "no client replied to any message. Run the app to the end of a round."
    return f"no reply to a train message came by, only to {kinds}. fedsim reads messages of type train or train.NAME."
