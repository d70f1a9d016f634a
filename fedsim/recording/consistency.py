"""Whether the files of a run folder tell of one run: rounds, captures, records and scenario are compared with one another.

Each file may be whole and still not belong: a line of another run, a client that the scenario does not have, captures that
are gone though the rounds name who took part. Nothing is trained, attacked or scored on top of that.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fedsim.errors import RunFolderError
from fedsim.recording import environment
from fedsim.recording.headers import MODEL, IndexLine, client_key, global_key
from fedsim.recording.records import ViewRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import Scenario


def check(folder: RunFolder, scenario: Scenario, trains: bool) -> None:
    """Refuse a folder whose files contradict one another.

    Args:
        folder: the run; its lines have been checked one by one.
        scenario: what the run goes on with.
        trains: whether the training goes on as well, so that captures which are gone are made again.

    Raises:
        RunFolderError: names the file, the line and what it contradicts.
    """
    rounds, index = folder.rounds.read(), folder.index()
    # What an observed app did is not the scenario's business.
    is_simulated = environment.origin(folder.path) == "simulated"
    limits = _Limits(scenario.federation.rounds, scenario.federation.clients) if is_simulated else None
    if limits is not None:
        _check_rounds(folder, rounds, limits)
        _check_index(folder, index, limits)
    if not trains:
        _check_captures(folder, rounds, index)
    _check_records(folder, limits, None if trains else {(line.round, line.client) for line in index})
    _check_calibrations(folder, limits)


class _Limits(NamedTuple):
    """What a scenario has: rounds from 1, clients from 0."""

    rounds: int
    clients: int

    def check(self, where: str, round: int, client: int) -> None:
        """Refuse a line of what the scenario does not have."""
        if round > self.rounds:
            raise RunFolderError(f"{where} is of round {round}, but the scenario has {self.rounds}. Delete the line.")
        if client >= self.clients:
            raise RunFolderError(
                f"{where} is of client {client}, but the scenario has {self.clients}, from 0. Delete the line."
            )


def _check_rounds(folder: RunFolder, rounds: list[dict[str, Any]], limits: _Limits) -> None:
    for number, line in enumerate(rounds, 1):
        where = f"{folder.rounds.path}: line {number}"
        if line["round"] != number - 1:
            raise RunFolderError(
                f"{where} is of round {line['round']}, expected round {number - 1}. Delete the file to have it made again "
                "from the captures by fedsim run --resume."
            )
        for client in (*line["participants"], *map(int, line["failed"])):
            limits.check(where, line["round"], client)


def _check_index(folder: RunFolder, index: list[IndexLine], limits: _Limits) -> None:
    first: dict[str, tuple[int, bool]] = {}
    for number, line in enumerate(index, 1):
        where, failed = f"{folder.index_path}: line {number}", line.failed is not None
        if line.round is not None:
            limits.check(where, line.round, line.client or 0)
        before, had_failed = first.setdefault(line.key, (number, failed))
        if failed != had_failed:
            said, contrary = ("failed", "was captured") if failed else ("was captured", "failed")
            raise RunFolderError(
                f"{where} says that {line.key} {said}, but line {before} says that it {contrary}. Delete the wrong line."
            )


def _check_captures(folder: RunFolder, rounds: list[dict[str, Any]], index: list[IndexLine]) -> None:
    """Refuse to audit what is left of the captures: attacks on those that are gone would be missing unnoticed."""
    listed = {line.key for line in index}
    for line in rounds:
        round = line["round"]
        needed = {
            client_key(round, int(client)): f"of client {client}" for client in (*line["participants"], *line["failed"])
        }
        if line["participants"]:
            needed[global_key(round)] = "that the server sent"
        for key, what in needed.items():
            if key not in listed:
                raise RunFolderError(
                    f"{folder.index_path}: lists nothing {what} in round {round}, though rounds.jsonl tells of it. Restore the "
                    "captures, or make them again with fedsim run --resume."
                )
    for key in sorted(listed - {MODEL}):
        if not folder.is_removed_key(key):
            folder.check_is_there(key)


def _check_records(
    folder: RunFolder, limits: _Limits | None, captured: set[tuple[int | None, int | None]] | None
) -> None:
    run = folder.run
    places: dict[str, int] = {}
    for number, line in enumerate(folder.read_records(), 1):
        where = f"{folder.records.path}: line {number}"
        view = line.view if isinstance(line, ViewRecord) else None
        rounds, clients = (view.rounds, view.clients) if view else ((line.round,), (line.client or 0,))
        if limits is not None:
            limits.check(where, max(rounds), max(clients))
        # Not every client of a view took part in each of its rounds.
        gone = [client for client in clients if captured is not None and not {(r, client) for r in rounds} & captured]
        if gone:
            raise RunFolderError(
                f"{where} is of client {gone[0]} in round {line.round}, of which captures/index.jsonl lists nothing. Restore "
                "the captures, or delete the line."
            )
        if run is not None and line.run != run:
            raise RunFolderError(f"{where} is of the run {line.run}, this one is {run}. Delete the line.")
        named = view.model_dump() if view else line.client
        place = json.dumps([line.round, named, line.attack.name, line.attack.params, line.attack.is_plain])
        if places.setdefault(place, number) != number:
            raise RunFolderError(f"{where} is of the same attempt as line {places[place]}. Delete one of the two.")


def _check_calibrations(folder: RunFolder, limits: _Limits | None) -> None:
    run = folder.run
    places: dict[str, int] = {}
    for number, line in enumerate(folder.calibrations.read(), 1):
        where, round = f"{folder.calibrations.path}: line {number}", line["round"]
        if limits is not None:
            limits.check(where, round, 0)
        if run is not None and line.get("run") != run:
            raise RunFolderError(f"{where} is of the run {line.get('run')}, this one is {run}. Delete the line.")
        attack = line["attack"]
        place = json.dumps([round, attack["name"], attack["params"], line.get("grants"), line.get("workload")])
        if places.setdefault(place, number) != number:
            raise RunFolderError(f"{where} is of the same calibration as line {places[place]}. Delete one of the two.")
