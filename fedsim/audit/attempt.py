"""One attack on what one view shows: the finding, stored before anybody scores it.

A finding file (safetensors) is complete or absent, and its header names the attack with all parameters, so a resumed
audit knows whether it may be used again.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
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
from fedsim.exchange import Finding, Trajectory, Update, View
from fedsim.findings.kinds import fields
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack
from fedsim.recording import files, headers
from fedsim.recording.records import SCHEMA, RecordedView
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import Grant
from fedsim.seeds import derive, seeded

LARGEST_FILE = 512 * 2**20
"""Bytes of the largest file that an attack may write, in whatever folder: what fills a disk ends the whole run."""

Status = Literal["found", "failed", "refused"]


@dataclass(frozen=True)
class Attempt:
    """What came of one attack on one view.

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
    """Return what tells an attack from others: its name, all parameters, and the version it came from."""
    return {
        "name": planned.info.name,
        "params": planned.params,
        **({} if not planned.is_plain else {"is_plain": True}),
        "version": planned.info.version,
        "distribution": installation.recorded(planned.info.distribution),
    }


def grants_of(plan: Plan, planned: PlannedAttack) -> tuple[Grant, ...]:
    """Return what an attack is told of what the scenario grants."""
    return tuple(grant for grant in plan.scenario.threat.grants if grant not in planned.withheld)


def finding_path(folder: RunFolder, view: View, planned: PlannedAttack) -> Path:
    """Return where the finding of an attempt is stored."""
    return folder.artifact(view, f"{planned.slug}.safetensors")


class Made(NamedTuple):
    """What came of an attack, and the content of the file that it is stored in."""

    status: Status
    content: bytes


def read(plan: Plan, folder: RunFolder, view: View, planned: PlannedAttack) -> Attempt:
    """Return the stored attempt. It is never made here, since attacks run in processes of their own.

    Raises:
        RunFolderError: there is none of these parameters and this version, or it belongs to another update.
    """
    found, path = stored(folder, view, planned), finding_path(folder, view, planned)
    if found is None:
        raise RunFolderError(f"{path}: missing, damaged or of another version of the attack. Audit again.")
    if found.seed != _seed(plan, planned, view):
        raise RunFolderError(
            f"{path}: made with the seed {found.seed}, which this attack on {view} does not have. Delete the file to attack "
            "again."
        )
    return found


def stored(folder: RunFolder, view: View, planned: PlannedAttack) -> Attempt | None:
    """Return a stored attempt; None when there is none, one of other parameters or another version, or a damaged one.

    Raises:
        RunFolderError: it belongs to another round, client or run, or is no file.
    """
    return _read(folder, view, planned)


def store(folder: RunFolder, view: View, planned: PlannedAttack, content: bytes) -> None:
    """Store an attempt that was made."""
    folder.write(finding_path(folder, view, planned), content)


def forget_failure(folder: RunFolder, view: View, planned: PlannedAttack) -> bool:
    """Remove a stored attempt if it failed; returns whether it did."""
    stored = _read(folder, view, planned)
    if stored is None or stored.status != "failed":
        return False
    finding_path(folder, view, planned).unlink()
    return True


def store_failure(
    plan: Plan,
    folder: RunFolder,
    view: View,
    planned: PlannedAttack,
    message: str,
    seconds: float = 0.0,
) -> None:
    """Store that an attempt failed in a way that it could not survive to tell."""
    failed = Attempt("failed", Finding(), message, seconds, _seed(plan, planned, view))
    store(folder, view, planned, _content(planned, failed, _where(folder, view)))


def _seed(plan: Plan, planned: PlannedAttack, view: View) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    path = ["attack", planned.info.name, params, *([] if not planned.is_plain else ["plain"])]
    if view.client is not None:
        return derive(plan.scenario.seed, *path, view.round, view.client)
    return derive(plan.scenario.seed, *path, view.scope, *view.rounds, "clients", *view.clients)


def make(plan: Plan, folder: RunFolder, view: View, planned: PlannedAttack) -> Made:
    """Run the attack on what a view shows, and check what it claims; nothing is written.

    Whatever the attack raises is a failed attempt, KeyboardInterrupt included: the audit calls this in a process that no
    interruption from the keyboard reaches.

    Raises:
        RunFolderError: the capture is missing or corrupted.
    """
    sent = [(folder.read_update(*place), folder.read_global(*place)) for place in folder.captures_of(view)]
    attempt, content = attack(plan, planned, sent, view, _seed(plan, planned, view), _where(folder, view))
    return Made(attempt.status, content)


def _images_behind(plan: Plan, update: Update) -> int:
    return plan.data.images_used(update.client, update.round, plan.scenario.training)


def attack(
    plan: Plan,
    planned: PlannedAttack,
    sent: Sequence[tuple[Update, Mapping[str, Tensor]]],
    view: View,
    seed: int,
    where: Mapping[str, Any],
) -> tuple[Attempt, bytes]:
    """Run an attack on what a view shows, and check what it claims; returns the attempt and the content of the file for it.

    Args:
        plan: the plan behind the updates; its threat model decides what the attack may know.
        planned: the attack.
        sent: each update of the view, with the global weights that its client got.
        view: what is shown of them.
        seed: of the attack's generator.
        where: what the header of the file says of the view that it belongs to.
    """
    infinite = next((update for update, _ in sent if not update.is_finite()), None)
    if infinite is not None:
        whose = (
            "the update"
            if view.client is not None
            else f"the update of client {infinite.client} in round {infinite.round}"
        )
        refused = Attempt("refused", Finding(), f"{whose} is not finite", 0.0, seed)
        return refused, _content(planned, refused, where)
    if plan.captured is None and not any(_images_behind(plan, update) for update, _ in sent):
        refused = Attempt(
            "refused", Finding(), "Poisson sampling drew no image, so there is nothing to find", 0.0, seed
        )
        return refused, _content(planned, refused, where)
    observation = ThreatModel(plan, planned.withheld).show(sent, view)
    started = time.perf_counter()

    def ended(status: Status, finding: Finding, message: str | None) -> tuple[Attempt, bytes]:
        attempt = Attempt(status, finding, message, float(f"{time.perf_counter() - started:.4g}"), seed)
        return attempt, _content(planned, attempt, where)

    try:
        with seeded(seed):
            finding = planned.runs.run(observation, torch.Generator().manual_seed(seed))
        # To its bytes inside: a claim that cannot be stored is a fault of the attack as well.
        return ended("found", checked(finding, observation), None)
    except AttackRefusedError as error:
        return ended("refused", Finding(), _said(error))
    except BaseException as error:  # noqa: BLE001  (boundary: a failed attack is a record, the audit goes on)
        return ended("failed", Finding(), f"{_name(error)}: {_said(error)} ({_place(sys.exc_info()[2])})")


def _said(error: BaseException) -> str:
    try:
        said = cut(str(error))
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            said = f"{said}; an attack may write files of at most {LARGEST_FILE // 2**20} MiB"
        return said
    except BaseException as second:  # noqa: BLE001  (the same boundary: its text is code of the plug-in, too)
        return f"its text cannot be read, as that raises {_name(second)}"


def _name(error: BaseException) -> str:
    # Past the attributes of the plug-in's own class, which may raise as well.
    return cut(type.__dict__["__name__"].__get__(type(error)))


def _place(trace: TracebackType | None) -> str:
    """Return the file and line where something was raised, without reading the file."""
    frame, line = list(traceback.walk_tb(trace))[-1]
    return cut(f"{Path(frame.f_code.co_filename).name}:{line}")


def recorded(view: View) -> dict[str, Any]:
    """Return how records and headers name a view: a single update by round and client."""
    if view.client is not None:
        return {"round": view.round, "client": view.client}
    return {"round": view.round, "client": None, "view": dataclasses.asdict(view)}


def view_of(round: int, client: int | None, recorded: RecordedView | None) -> View:
    """Return the view that a record or a header names."""
    if recorded is None:
        assert client is not None, "only a view of several updates names no client"
        return View.of_update(round, client)
    return recorded.as_view()


def _where(folder: RunFolder, view: View) -> dict[str, Any]:
    """Return what the header of a finding says of the view that it belongs to."""
    return {"run": folder.run, **recorded(view)}


def _content(planned: PlannedAttack, attempt: Attempt, where: Mapping[str, Any]) -> bytes:
    finding = attempt.finding
    trajectory = finding.trajectory
    tensors: dict[str, Tensor | None] = {one.name: getattr(finding, one.name) for one in fields()}
    if trajectory is not None:
        tensors["film"] = trajectory.images
    header = {
        "schema": SCHEMA,
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


def _read(folder: RunFolder, view: View, planned: PlannedAttack) -> Attempt | None:
    """Return a stored attempt; None when there is none, one of other parameters or another version, or a damaged one.

    Raises:
        RunFolderError: it belongs to another round, client or run, or is no file.
    """
    path = finding_path(folder, view, planned)
    try:
        read = files.read_tensors(path, folder.path, "a finding")
        if read is None:
            return None
        tensors, header = read[0], headers.check_header(path, read[1], headers.FindingHeader, "a finding")
    except files.DamagedFileError:
        return None
    if header.attack != json.loads(json.dumps(identity(planned), default=str)):
        return None
    # What is stored of several updates may be of fewer rounds or clients than there are by now, and is made again then.
    stated = header.round if view.client is not None else view.round
    folder.check_place(path, (stated, header.client, header.run), (view.round, view.client))
    if (header.client is None) != (header.view is not None):
        return None
    if view_of(header.round, header.client, header.view) != view:
        return None
    frames = tensors.pop("film", None)
    if not tensors.keys() <= {one.name for one in fields()} or (frames is None) != (header.trajectory is None):
        return None
    trajectory = None
    if frames is not None and header.trajectory is not None:
        trajectory = Trajectory(tuple(header.trajectory.steps), frames, tuple(header.trajectory.losses))
    finding = Finding(**tensors, trace=header.trace, cautions=tuple(header.cautions), trajectory=trajectory)
    return Attempt(header.status, finding, header.message, header.seconds, header.seed)
