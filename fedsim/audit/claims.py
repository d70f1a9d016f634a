"""What an attack claims to have found, checked field by field before it is stored."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fedsim.audit.text import cut, encodable
from fedsim.exchange import FRAMES, Finding, Observation, Trajectory
from fedsim.findings.checks import floats
from fedsim.findings.kinds import IMAGES, fields
from fedsim.strips import spread

# What a plug-in may hand over beside its tensors: more of it is a fault of the attack.
_LONGEST_TRACE = 1_000_000  # characters of JSON
_DEEPEST_TRACE = 64  # levels; JSON itself is read by recursion
_MOST_CAUTIONS = 100
_WIDEST_NUMBER = 64  # bits of a whole number


def checked(claimed: Any, seen: Observation) -> Finding:
    """Check what the plug-in claims and bring it to the CPU in float32, pixels clamped, the trace to plain JSON.

    Every field is read once, so that a subclass with properties cannot show two things.

    Args:
        claimed: what the attack returned.
        seen: what it was shown.

    Raises:
        TypeError: something is of another type than a finding holds.
        ValueError: something cannot be.
    """
    if not isinstance(claimed, Finding):
        raise TypeError(f"the attack returned {type(claimed).__name__}, not a Finding")
    handed_over = {field: getattr(claimed, field.name) for field in fields()}
    trajectory = claimed.trajectory
    tensors = {field.name: field.checked(value, seen) for field, value in handed_over.items() if value is not None}
    return Finding(
        **tensors,
        trace=_checked_trace(claimed.trace),
        cautions=_checked_cautions(claimed.cautions),
        trajectory=None if trajectory is None else _checked_trajectory(trajectory, tensors.get(IMAGES.field.name)),
    )


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
    return tuple(map(cut, cautions))


def _checked_trajectory(trajectory: Any, pictures: Tensor | None) -> Trajectory:
    """Check a trajectory beside the images of its finding; losses may be infinite, as an attack may have diverged."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"the attack returned {type(trajectory).__name__}, not a Trajectory")
    if pictures is None:
        raise ValueError("the attack returned a trajectory, but no images")
    steps, losses = [operator.index(step) for step in trajectory.steps], [float(loss) for loss in trajectory.losses]
    frames = floats("frames", trajectory.images)
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
        return {encodable(str(key)): _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int):
        if value.bit_length() > _WIDEST_NUMBER:
            raise ValueError(f"the attack returned a trace with a whole number of more than {_WIDEST_NUMBER} bits")
        return value
    return encodable(str(value))
