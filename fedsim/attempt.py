"""One attack on one update: the finding, stored before anybody scores it.

A finding file (safetensors) is complete or absent, and its header names the attack with all parameters, so a resumed
audit knows whether it may be used again.
"""

from __future__ import annotations

import json
import math
import operator
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from fedsim import files, lines
from fedsim.errors import AttackRefusedError, RunFolderError
from fedsim.exchange import FRAMES, Film, Finding
from fedsim.pictures import spread
from fedsim.plan import Plan, PlannedAttack
from fedsim.recording import RunFolder
from fedsim.seeds import derive, seeded
from fedsim.threat import ThreatModel

Status = Literal["found", "failed", "refused"]


@dataclass(frozen=True)
class Attempt:
    """What came of one attack on one update.

    Args:
        status: `found`; `refused` when the attack's precondition does not hold; `failed` when it raised or its process died.
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
        "distribution": planned.info.distribution,
    }


def finding_path(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Path:
    """Return where the finding of an attempt is stored."""
    return folder.artifact(round, client, f"{planned.slug}.safetensors")


def run(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Attempt:
    """Return the attempt, from the folder when it is there, else by running the attack and storing the finding.

    Raises:
        RunFolderError: the capture is missing or corrupted, or the stored finding belongs to another update.
    """
    stored = _read(folder, round, client, planned)
    if stored is not None and stored.seed != _seed(plan, planned, round, client):
        raise RunFolderError(
            f"{finding_path(folder, round, client, planned)}: made with the seed {stored.seed}, which this attack on "
            f"client {client} in round {round} does not have. Delete the file to attack again."
        )
    if stored is None:
        stored = _run(plan, folder, round, client, planned)
        _write(folder, round, client, planned, stored)
    return stored


def forget_failure(folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> bool:
    """Remove a stored attempt if it failed; returns whether it did."""
    stored = _read(folder, round, client, planned)
    if stored is None or stored.status != "failed":
        return False
    finding_path(folder, round, client, planned).unlink()
    return True


def store_failure(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack, message: str) -> None:
    """Store that an attempt failed in a way that it could not survive to tell."""
    failed = Attempt("failed", Finding(), message, 0.0, _seed(plan, planned, round, client))
    _write(folder, round, client, planned, failed)


def _seed(plan: Plan, planned: PlannedAttack, round: int, client: int) -> int:
    params = json.dumps(planned.params, sort_keys=True, default=str)
    return derive(plan.scenario.seed, "attack", planned.info.name, params, round, client)


def _run(plan: Plan, folder: RunFolder, round: int, client: int, planned: PlannedAttack) -> Attempt:
    update, weights = folder.read_update(round, client), folder.read_global(round, client)
    seed = _seed(plan, planned, round, client)
    empty = Finding()
    if not update.is_finite():
        return Attempt("refused", empty, "the update is not finite", 0.0, seed)
    observation = ThreatModel(plan).observe(update, weights)
    started = time.perf_counter()
    try:
        with seeded(seed):
            finding = planned.attack.run(observation, torch.Generator().manual_seed(seed))
        status: Status = "found"
        message = None
        finding = _checked(finding, observation.image_shape, observation.num_classes)
    except AttackRefusedError as error:
        finding, status, message = empty, "refused", str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (boundary: a failed attack is a record, the audit goes on)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        finding, status, message = empty, "failed", f"{type(error).__name__}: {error} ({where})"
    return Attempt(status, finding, message, float(f"{time.perf_counter() - started:.4g}"), seed)


def _checked(finding: Any, image_shape: tuple[int, int, int], num_classes: int) -> Finding:
    """Check what the plug-in claims and bring it to the CPU in float32, pixels clamped, the trace to plain JSON."""
    if not isinstance(finding, Finding):
        raise TypeError(f"the attack returned {type(finding).__name__}, not a Finding")
    images = finding.images
    if images is not None:
        if tuple(images.shape[1:]) != image_shape:
            raise ValueError(f"the attack returned pictures of shape {tuple(images.shape[1:])}, not {image_shape}")
        if not bool(torch.isfinite(images).all()):
            raise ValueError("the attack returned pixels that are not finite")
        images = images.detach().cpu().float().clamp(0, 1)
    labels = finding.labels if finding.labels is None else finding.labels.detach().cpu()
    if labels is not None and not bool(torch.isfinite(labels).all()):
        raise ValueError("the attack returned labels that are not finite")
    if labels is not None and labels.ndim == 2 and labels.shape[1] != num_classes:
        raise ValueError(f"the attack returned labels over {labels.shape[1]} classes, not {num_classes}")
    features = finding.features if finding.features is None else finding.features.detach().cpu().float()
    if features is not None and not bool(torch.isfinite(features).all()):
        raise ValueError("the attack returned features that are not finite")
    film = finding.film if finding.film is None else _checked_film(finding.film, images)
    plain = _plain(dict(finding.trace))
    return replace(finding, images=images, labels=labels, features=features, trace=plain, film=film)


def _checked_film(film: Any, pictures: Tensor | None) -> Film:
    """Check a film beside the pictures of its finding; losses may be infinite, as an attack may have diverged on its way."""
    if not isinstance(film, Film):
        raise TypeError(f"the attack returned {type(film).__name__}, not a Film")
    if pictures is None:
        raise ValueError("the attack returned a film, but no pictures")
    steps, frames = [operator.index(step) for step in film.steps], film.images
    if frames.shape[1:] != pictures.shape:
        raise ValueError(f"the attack returned frames of shape {tuple(frames.shape[1:])}, not {tuple(pictures.shape)}")
    if not 0 < len(steps) == len(frames) == len(film.losses):
        raise ValueError(
            f"the attack returned {len(steps)} steps, {len(frames)} frames and {len(film.losses)} losses as a film"
        )
    if steps[0] < 0 or any(later <= step for step, later in pairwise(steps)):
        raise ValueError("the attack returned a film whose steps do not increase from 0")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("the attack returned a film whose pixels are not finite")
    kept = spread(len(steps), FRAMES)
    images = frames[kept].detach().cpu().float().clamp(0, 1)
    return Film(tuple(steps[i] for i in kept), images, tuple(float(film.losses[i]) for i in kept))


def _plain(value: Any) -> Any:
    """Return what JSON can hold: non-finite numbers, which a diverging attack may well report, become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _write(folder: RunFolder, round: int, client: int, planned: PlannedAttack, attempt: Attempt) -> None:
    finding = attempt.finding
    film = finding.film
    tensors = {"images": finding.images, "labels": finding.labels, "features": finding.features}
    if film is not None:
        tensors["film"] = film.images
    header = {
        "schema": lines.SCHEMA,
        "run": folder.run,
        "round": round,
        "client": client,
        "attack": identity(planned),
        "status": attempt.status,
        "message": attempt.message,
        "trace": dict(finding.trace),
        "cautions": list(finding.cautions),
        "seconds": attempt.seconds,
        "seed": attempt.seed,
        "film": None if film is None else {"steps": film.steps, "losses": film.losses},
    }
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None},
        files.header(header),
    )
    folder.write(finding_path(folder, round, client, planned), content)


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
        tensors, header = read[0], lines.check_header(path, read[1], lines.FindingHeader, "a finding")
    except files.DamagedFileError:
        return None
    if header.attack != json.loads(json.dumps(identity(planned), default=str)):
        return None
    folder.check_place(path, (header.round, header.client, header.run), (round, client))
    frames = tensors.pop("film", None)
    if not set(tensors) <= {"images", "labels", "features"} or (frames is None) != (header.film is None):
        return None
    film = None
    if frames is not None and header.film is not None:
        film = Film(tuple(header.film.steps), frames, tuple(header.film.losses))
    finding = Finding(**tensors, trace=header.trace, cautions=tuple(header.cautions), film=film)
    return Attempt(header.status, finding, header.message, header.seconds, header.seed)
