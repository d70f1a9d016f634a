"""One attack on one update: the finding, stored before anybody scores it.

A finding file (safetensors) is complete or absent, and its header names the attack with all parameters, so a resumed
audit knows whether it may be used again.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from fedsim import installation
from fedsim.audit.claims import checked
from fedsim.audit.text import cut
from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError, RunFolderError
from fedsim.exchange import Finding, Trajectory, Update
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack
from fedsim.recording import files, records
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import derive, seeded

Status = Literal["found", "failed", "refused"]


@dataclass(frozen=True)
class Attempt:
    """What came of one attack on one update.

    Args:
        status: `found`; `refused` when the attack's precondition does not hold; `failed` when it raised, took too long, or
            claimed what cannot be, or when its process died.
        finding: empty unless found.
        message: why it was refused or failed.
        seconds: wall time of the attack itself.
        seed: what its generator was seeded with.
    """

    status: Status
    finding: Finding
    message: str | None
    seconds: float
    seed: int


def identity(planned: PlannedAttack) -> dict[str, Any]:
    """Return what names an attack in records: its name, all parameters, and the version it came from."""
    return {
        "name": planned.info.name,
        "params": planned.params,
        "version": planned.info.version,
        "distribution": installation.recorded(planned.info.distribution),
    }


def finding_path(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Path:
    """Return where the finding of an attempt is stored."""
    return folder.artifact(round, client, f"{planned.slug}.safetensors")


class Made(NamedTuple):
    """What came of an attack, and the content of the file that it is stored in."""

    status: Status
    content: bytes


def read(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Attempt:
    """Return the stored attempt. It is never made here, since attacks run in processes of their own.

    Raises:
        RunFolderError: there is none of these parameters and this version, or it belongs to another update.
    """
    found, path = stored(folder, round, client, planned), finding_path(folder, round, client, planned)
    if found is None:
        raise RunFolderError(f"{path}: missing, damaged or of another version of the attack. Audit again.")
    if found.seed != _seed(plan, planned, round, client):
        raise RunFolderError(
            f"{path}: made with the seed {found.seed}, which this attack on client {client} in round {round} does not have. "
            "Delete the file to attack again."
        )
    return found


def stored(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Attempt | None:
    """Return a stored attempt; None when there is none, one of other parameters or another version, or a damaged one.

    Raises:
        RunFolderError: it belongs to another round, client or run, or is no file.
    """
    return _read(folder, round, client, planned)


def store(folder: RunFolder, round: int, client: int, planned: PlannedAttack, content: bytes) -> None:
    """Store an attempt that was made."""
    folder.write(finding_path(folder, round, client, planned), content)


def forget_failure(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> bool:
    """Remove a stored attempt if it failed; returns whether it did."""
    stored = _read(folder, round, client, planned)
    if stored is None or stored.status != "failed":
        return False
    finding_path(folder, round, client, planned).unlink()
    return True


def store_failure(
    plan: Plan,
    folder: RunFolder,
    round: int,
    client: int,
    planned: PlannedAttack,
    message: str,
    seconds: float = 0.0,
) -> None:
    """Store that an attempt failed in a way that it could not survive to tell."""
    failed = Attempt("failed", Finding(), message, seconds, _seed(plan, planned, round, client))
    store(folder, round, client, planned, _content(planned, failed, _where(folder, round, client)))


def _seed(plan: Plan, planned: PlannedAttack, round: int, client: int) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    return derive(plan.scenario.seed, "attack", planned.info.name, params, round, client)


def make(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Made:
    """Run the attack, and check what it claims; nothing is written.

    Whatever the attack raises is a failed attempt, KeyboardInterrupt included: the audit calls this in a process that no
    interruption from the keyboard reaches.

    Raises:
        RunFolderError: the capture is missing or corrupted.
    """
    update, weights = folder.read_update(round, client), folder.read_global(round, client)
    seed = _seed(plan, planned, round, client)
    attempt, content = attack(plan, planned, update, weights, seed, _where(folder, round, client))
    return Made(attempt.status, content)


def attack(
    plan: Plan,
    planned: PlannedAttack,
    update: Update,
    weights: Mapping[str, Tensor],
    seed: int,
    where: Mapping[str, Any],
) -> tuple[Attempt, bytes]:
    """Run an attack on one update, and check what it claims; returns the attempt and the content of the file for it.

    Args:
        plan: the plan behind the update; its threat model decides what the attack may know.
        planned: the attack.
        update: what the client sent.
        weights: the global weights that the client got.
        seed: of the attack's generator.
        where: what the header of the file says of the update that it belongs to.
    """
    if not update.is_finite():
        refused = Attempt("refused", Finding(), "the update is not finite", 0.0, seed)
        return refused, _content(planned, refused, where)
    observation = ThreatModel(plan).observe(update, weights)
    started = time.perf_counter()

    def ended(status: Status, finding: Finding, message: str | None) -> tuple[Attempt, bytes]:
        attempt = Attempt(status, finding, message, float(f"{time.perf_counter() - started:.4g}"), seed)
        return attempt, _content(planned, attempt, where)

    try:
        with seeded(seed):
            finding = planned.attack.run(observation, torch.Generator().manual_seed(seed))
        # To its bytes inside: a claim that cannot be stored is a fault of the attack as well.
        return ended("found", checked(finding, observation), None)
    except AttackRefusedError as error:
        return ended("refused", Finding(), _said(error))
    except BaseException as error:  # noqa: BLE001  (boundary: a failed attack is a record, the audit goes on)
        return ended("failed", Finding(), f"{_name(error)}: {_said(error)} ({_place(sys.exc_info()[2])})")


def _said(error: BaseException) -> str:
    try:
        return cut(str(error))
    except BaseException as second:  # noqa: BLE001  (the same boundary: its text is code of the plug-in, too)
        return f"its text cannot be read, as that raises {_name(second)}"


def _name(error: BaseException) -> str:
    # Past the attributes of the plug-in's own class, which may raise as well.
    return cut(type.__dict__["__name__"].__get__(type(error)))


def _place(trace: TracebackType | None) -> str:
    """Return the file and line where something was raised, without reading the file."""
    frame, line = list(traceback.walk_tb(trace))[-1]
    return cut(f"{Path(frame.f_code.co_filename).name}:{line}")


def _where(folder: RunFolder, round: int, client: int) -> dict[str, Any]:
    """Return what the header of a finding says of the update that it belongs to."""
    return {"run": folder.run, "round": round, "client": client}


def _content(planned: PlannedAttack, attempt: Attempt, where: Mapping[str, Any]) -> bytes:
    finding = attempt.finding
    trajectory = finding.trajectory
    tensors = {"images": finding.images, "labels": finding.labels, "features": finding.features}
    if trajectory is not None:
        tensors["film"] = trajectory.images
    header = {
        "schema": records.SCHEMA,
        **where,
        "attack": identity(planned),
        "status": attempt.status,
        "message": attempt.message,
        "trace": dict(finding.trace),
        "cautions": list(finding.cautions),
        "seconds": attempt.seconds,
        "seed": attempt.seed,
        "film": None if trajectory is None else {"steps": trajectory.steps, "losses": trajectory.losses},
    }
    return save(
        {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
            if tensor is not None
        },
        files.header(header),
    )


def _read(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Attempt | None:
    """Return a stored attempt; None when there is none, one of other parameters or another version, or a damaged one.

    Raises:
        RunFolderError: it belongs to another round, client or run, or is no file.
    """
    path = finding_path(folder, round, client, planned)
    try:
        read = files.read_tensors(path, folder.path, "a finding")
        if read is None:
            return None
        tensors, header = read[0], records.check_header(path, read[1], records.FindingHeader, "a finding")
    except files.DamagedFileError:
        return None
    if header.attack != json.loads(json.dumps(identity(planned), default=str)):
        return None
    folder.check_place(path, (header.round, header.client, header.run), (round, client))
    frames = tensors.pop("film", None)
    if not set(tensors) <= {"images", "labels", "features"} or (frames is None) != (header.trajectory is None):
        return None
    trajectory = None
    if frames is not None and header.trajectory is not None:
        trajectory = Trajectory(tuple(header.trajectory.steps), frames, tuple(header.trajectory.losses))
    finding = Finding(**tensors, trace=header.trace, cautions=tuple(header.cautions), trajectory=trajectory)
    return Attempt(header.status, finding, header.message, header.seconds, header.seed)
