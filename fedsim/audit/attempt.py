"""One attack on what one view shows: the finding, stored before anybody scores it.

A finding file (safetensors) is complete or absent, and its header names the attack with all parameters, so a resumed
audit knows whether it may be used again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from fedsim import installation
from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError, RunFolderError
from fedsim.exchange import FRAMES, Finding, Trajectory, Update, View
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack
from fedsim.recording import files, headers
from fedsim.recording.records import SCHEMA, RecordedView
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import derive, seeded
from fedsim.strips import spread

Status = Literal["found", "failed", "refused"]

# What a plug-in may hand over beside its tensors: more of it is a fault of the attack, or is cut.
_LONGEST_TEXT = 2_000  # characters of a message or a caution
_LONGEST_TRACE = 1_000_000  # characters of JSON
_DEEPEST_TRACE = 64  # levels; JSON itself is read by recursion
_MOST_CAUTIONS = 100
_WIDEST_NUMBER = 64  # bits of a whole number
_FARTHEST_PROBABILITY = 1e6  # a soft label that was solved for may leave [0, 1]; its scores must stay finite
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
    """Return what names an attack in records: its name, all parameters, and the version it came from."""
    return {
        "name": planned.info.name,
        "params": planned.params,
        "version": planned.info.version,
        "distribution": installation.recorded(planned.info.distribution),
    }


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
    path = ["attack", planned.info.name, params]
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
    observation = ThreatModel(plan).show(sent, view)
    started = time.perf_counter()

    def ended(status: Status, finding: Finding, message: str | None) -> tuple[Attempt, bytes]:
        attempt = Attempt(status, finding, message, float(f"{time.perf_counter() - started:.4g}"), seed)
        return attempt, _content(planned, attempt, where)

    try:
        with seeded(seed):
            finding = planned.attack.run(observation, torch.Generator().manual_seed(seed))
        # To its bytes inside: a claim that cannot be stored is a fault of the attack as well.
        return ended("found", _checked(finding, observation.image_shape, observation.num_classes), None)
    except AttackRefusedError as error:
        return ended("refused", Finding(), _said(error))
    except BaseException as error:  # noqa: BLE001  (boundary: a failed attack is a record, the audit goes on)
        return ended("failed", Finding(), f"{_name(error)}: {_said(error)} ({_place(sys.exc_info()[2])})")


def _said(error: BaseException) -> str:
    try:
        return _text(str(error))
    except BaseException as second:  # noqa: BLE001  (the same boundary: its text is code of the plug-in, too)
        return f"its text cannot be read, as that raises {_name(second)}"


def _name(error: BaseException) -> str:
    # Past the attributes of the plug-in's own class, which may raise as well.
    return _text(type.__dict__["__name__"].__get__(type(error)))


def _place(trace: TracebackType | None) -> str:
    """Return the file and line where something was raised, without reading the file."""
    frame, line = list(traceback.walk_tb(trace))[-1]
    return _text(f"{Path(frame.f_code.co_filename).name}:{line}")


def _text(value: str) -> str:
    """Return text that every file can hold: cut where it is too long, with its length said, and lone surrogates escaped."""
    text = _encodable(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}... (cut, of {len(text):,} characters)"


def _encodable(value: str) -> str:
    return str.__str__(value).encode("utf-8", "backslashreplace").decode()


def _checked(claimed: Any, image_shape: tuple[int, int, int], num_classes: int) -> Finding:
    """Check what the plug-in claims and bring it to the CPU in float32, pixels clamped, the trace to plain JSON.

    Every field is read once, so that a subclass with properties cannot show two things.
    """
    if not isinstance(claimed, Finding):
        raise TypeError(f"the attack returned {type(claimed).__name__}, not a Finding")
    images, labels, features, trajectory = claimed.images, claimed.labels, claimed.features, claimed.trajectory
    pictures = None if images is None else _checked_images(images, image_shape)
    return Finding(
        images=pictures,
        labels=None if labels is None else _checked_labels(labels, num_classes),
        features=None if features is None else _checked_features(features),
        trace=_checked_trace(claimed.trace),
        cautions=_checked_cautions(claimed.cautions),
        trajectory=None if trajectory is None else _checked_trajectory(trajectory, pictures),
    )


def _dense(what: str, value: Any) -> Tensor:
    """Check that something is a tensor that can be stored as it is, and bring it to the CPU."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the attack returned {what} as {type(value).__name__}, not as a tensor")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"the attack returned {what} as a sparse or nested tensor, not as a dense one")
    return value.detach().cpu()


def _floats(what: str, value: Any) -> Tensor:
    tensor = _dense(what, value)
    if not tensor.is_floating_point():
        raise TypeError(f"the attack returned {what} as {_dtype(tensor)}, not as floats")
    return tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _checked_images(value: Any, image_shape: tuple[int, int, int]) -> Tensor:
    images = _floats("pictures", value)
    if images.ndim != 4:
        raise ValueError(
            f"the attack returned pictures as a tensor of shape {tuple(images.shape)}, not (number, channel, height, width)"
        )
    if tuple(images.shape[1:]) != image_shape:
        raise ValueError(f"the attack returned pictures of shape {tuple(images.shape[1:])}, not {image_shape}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the attack returned pixels that are not finite")
    return images.float().clamp(0, 1)


def _checked_labels(value: Any, num_classes: int) -> Tensor:
    labels = _dense("labels", value)
    is_soft = labels.ndim == 2 and labels.is_floating_point()
    is_hard = labels.ndim == 1 and labels.dtype in _INTEGERS
    if not is_soft and not is_hard:
        raise ValueError(
            f"the attack returned labels as {_dtype(labels)} of shape {tuple(labels.shape)}, not integers in one row, or "
            f"rows of {num_classes} probabilities"
        )
    if is_hard:
        labels = labels.long()
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"the attack returned labels from {int(labels.min())} to {int(labels.max())}; the classes are 0 to "
                f"{num_classes - 1}"
            )
        return labels
    if labels.shape[1] != num_classes:
        raise ValueError(f"the attack returned labels over {labels.shape[1]} classes, not {num_classes}")
    if not bool(torch.isfinite(labels).all()):
        raise ValueError("the attack returned labels that are not finite")
    if labels.numel() and float(labels.abs().max()) > _FARTHEST_PROBABILITY:
        raise ValueError(f"the attack returned probabilities of up to {float(labels.abs().max()):g} as labels")
    return labels


def _checked_features(value: Any) -> Tensor:
    features = _floats("features", value)
    if features.ndim != 2:
        raise ValueError(
            f"the attack returned features as a tensor of shape {tuple(features.shape)}, not one row a picture"
        )
    features = features.float()
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the attack returned features that are not finite")
    return features


def _checked_trace(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"the attack returned {type(value).__name__} as a trace, not a mapping")
    plain: dict[str, Any] = _plain(value, _DEEPEST_TRACE)
    length = len(json.dumps(plain))
    if length > _LONGEST_TRACE:
        raise ValueError(f"the attack returned a trace of {length:,} characters, of {_LONGEST_TRACE:,} allowed")
    return plain


def _checked_cautions(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError(f"the attack returned {type(value).__name__} as cautions, not a tuple of sentences")
    cautions = tuple(value)
    for caution in cautions:
        if not isinstance(caution, str):
            raise TypeError(f"the attack returned {type(caution).__name__} as a caution, not text")
    if len(cautions) > _MOST_CAUTIONS:
        raise ValueError(f"the attack returned {len(cautions):,} cautions, of {_MOST_CAUTIONS} allowed")
    return tuple(map(_text, cautions))


def _checked_trajectory(trajectory: Any, pictures: Tensor | None) -> Trajectory:
    """Check a trajectory beside the pictures of its finding; losses may be infinite, as an attack may have diverged."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"the attack returned {type(trajectory).__name__}, not a Trajectory")
    if pictures is None:
        raise ValueError("the attack returned a trajectory, but no pictures")
    steps, losses = [operator.index(step) for step in trajectory.steps], [float(loss) for loss in trajectory.losses]
    frames = _floats("frames", trajectory.images)
    if frames.shape[1:] != pictures.shape:
        raise ValueError(f"the attack returned frames of shape {tuple(frames.shape[1:])}, not {tuple(pictures.shape)}")
    if not 0 < len(steps) == len(frames) == len(losses):
        raise ValueError(
            f"the attack returned {len(steps)} steps, {len(frames)} frames and {len(losses)} losses as a trajectory"
        )
    if steps[0] < 0 or any(later <= step for step, later in pairwise(steps)):
        raise ValueError("the attack returned a trajectory whose steps do not increase from 0")
    if steps[-1].bit_length() > _WIDEST_NUMBER:
        raise ValueError(f"the attack returned a trajectory with a step of more than {_WIDEST_NUMBER} bits")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("the attack returned a trajectory whose pixels are not finite")
    kept = spread(len(steps), FRAMES)
    images = frames[kept].float().clamp(0, 1)
    return Trajectory(tuple(steps[i] for i in kept), images, tuple(losses[i] for i in kept))


def _plain(value: Any, levels: int) -> Any:
    """Return what JSON can hold: non-finite numbers, which a diverging attack may well report, become text."""
    if isinstance(value, Mapping | list | tuple) and levels == 0:
        raise ValueError(f"the attack returned a trace of more than {_DEEPEST_TRACE} levels, or one that holds itself")
    if isinstance(value, Mapping):
        return {_encodable(str(key)): _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int):
        if value.bit_length() > _WIDEST_NUMBER:
            raise ValueError(f"the attack returned a trace with a whole number of more than {_WIDEST_NUMBER} bits")
        return value
    return _encodable(str(value))


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
    return View(recorded.rounds, recorded.clients, recorded.scope, recorded.is_sum)


def _where(folder: RunFolder, view: View) -> dict[str, Any]:
    """Return what the header of a finding says of the view that it belongs to."""
    return {"run": folder.run, **recorded(view)}


def _content(planned: PlannedAttack, attempt: Attempt, where: Mapping[str, Any]) -> bytes:
    finding = attempt.finding
    trajectory = finding.trajectory
    tensors = {"images": finding.images, "labels": finding.labels, "features": finding.features}
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
    if not set(tensors) <= {"images", "labels", "features"} or (frames is None) != (header.trajectory is None):
        return None
    trajectory = None
    if frames is not None and header.trajectory is not None:
        trajectory = Trajectory(tuple(header.trajectory.steps), frames, tuple(header.trajectory.losses))
    finding = Finding(**tensors, trace=header.trace, cautions=tuple(header.cautions), trajectory=trajectory)
    return Attempt(header.status, finding, header.message, header.seconds, header.seed)
