"""The conformance check of an attack."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from fedsim import applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import SCOPES, Finding, Observation, Trajectory, UpdateKind
from fedsim.findings.kinds import fields
from fedsim.findings.promises import described
from fedsim.progress import Step, listening
from fedsim.seeds import seeded, torch_generator
from fedsim.testing.contract import check_contract
from fedsim.testing.fixtures import ALL_GRANTS, observation, random_images
from fedsim.testing.isolation import (
    Fault,
    Faults,
    check_cautions,
    equal,
    expect,
    no_change,
    no_global_effect,
    told_at_once,
)
from fedsim.views import observation_of

_BUDGET = re.compile(r"(^|_)(steps|iterations|restarts|multi_start|trials|epochs)$")
_BRIEF = 3


def check_attack(
    plugin: type[Any] | Attack, /, *, observations: Sequence[Observation] | None = None, **params: Any
) -> None:
    """Check that an attack keeps the contract of `fedsim.attack.Attack`.

    It is run several times on a small model, where it may refuse an observation but not all of them. Budgets (integer
    fields called or ending in steps, iterations, restarts, trials or epochs) are cut down to 3, except those in
    `params`; those of an instance are left as they are.

    Args:
        plugin: the class, or an instance.
        observations: what to run it on, for an attack that refuses the usual: one or three images, gradient or delta,
            with the grants that it needs or with all.
        params: parameters that differ from the defaults.

    Raises:
        AssertionError: says all that is wrong and what the simulator relies on.
    """
    with told_at_once() as faults:
        attack: Attack = check_contract(plugin, Attack, params, faults)
        _check_facts(attack, faults)
        keep = {f.name for f in dataclasses.fields(attack)} if isinstance(plugin, Attack) else set(params)
        _check_runs(attack, keep, _usual(attack) if observations is None else observations, faults)


def _check_runs(attack: Attack, keep: Collection[str], observations: Sequence[Observation], faults: Faults) -> None:
    who = type(attack).__qualname__
    brief = _with_budgets(attack, _BRIEF, keep)
    answered: list[Observation] = []
    held: set[Recovers] = set()
    for seen in observations:
        _check_granted(attack, seen)
        finding = None
        with faults.of("running"):
            finding = _check_run(brief, seen, faults)
        if finding is not None:
            answered.append(seen)
            held |= _held(finding)
    if faults and not answered:
        return
    expect(
        bool(answered), f"{who} refuses every observation it was given. Pass observations=[...] that it should answer."
    )
    with faults.of("promises"):
        missing = ", ".join(sorted(attack.recovers - held))
        expect(not missing, f"{who}.recovers promises {missing}, but no finding holds it.")
    smallest = _with_budgets(attack, 0)
    if smallest != brief:
        with faults.of("smallest budget"):
            expect(
                _check_run(smallest, answered[0], faults) is not None,
                f"{who} refuses with its smallest budget {smallest} what it answers otherwise; return the best so far.",
            )


def _check_facts(attack: Attack, faults: Faults) -> None:
    who = type(attack).__qualname__
    facts: Mapping[str, tuple[object, tuple[str, ...]]] = {
        "needs": (attack.needs, get_args(Need)),
        "recovers": (attack.recovers, get_args(Recovers)),
    }
    with faults.of("scope"):
        expect(attack.scope in SCOPES, f"{who}.scope must be one of {', '.join(SCOPES)}; got {attack.scope!r}.")
    sound = []
    for name, (value, allowed) in facts.items():
        with faults.of(name):
            expect(
                isinstance(value, frozenset) and value <= set(allowed),
                f"{who}.{name} must be a frozenset out of {', '.join(allowed)}; got {value!r}.",
            )
            sound.append(name)
    with faults.of("recovers"):
        expect(bool(attack.recovers), f"{who}.recovers is empty, so no metric would apply.")
    with faults.of("applicability"):
        found = applicability.fault(attack.applicability)
        expect(found is None, f"{who}.applicability is faulty: {found}.")
    with faults.of("plain"):
        plain: object = attack.plain()
        expect(
            plain is None
            or (isinstance(plain, Attack) and plain.scope == attack.scope and plain.needs <= attack.needs),
            f"{who}.plain() must return None or an attack of the same scope that needs no other grants; got {plain!r}.",
        )
    # What an attack is shown and how its findings are checked rests on both.
    if len(sound) < len(facts):
        raise Fault(f"{who} was not run: its class facts are wrong.")


def _check_granted(attack: Attack, seen: Observation) -> None:
    missing = sorted(need for need in attack.needs if getattr(seen, need) is None)
    expect(
        not missing,
        f"{type(attack).__qualname__} needs {', '.join(missing)}, which this observation does not grant; the simulator "
        "would refuse the scenario.",
    )


def _with_budgets(attack: Attack, at_least: int, keep: Collection[str] = ()) -> Attack:
    """Return the attack with each budget at the least allowed value from `at_least` on, and never above its own."""
    hints = typing.get_type_hints(type(attack))
    for field in dataclasses.fields(attack):
        own = getattr(attack, field.name)
        if not (_BUDGET.search(field.name) and hints[field.name] is int) or field.name in keep:
            continue
        for value in range(min(at_least, own), own):
            try:
                attack = dataclasses.replace(attack, **{field.name: value})
            except ValueError:
                continue
            break
    return attack


def _usual(attack: Attack) -> list[Observation]:
    usual: list[tuple[UpdateKind, int, frozenset[Need]]] = [
        ("gradient", 1, attack.needs),
        ("gradient", 1, ALL_GRANTS),
        ("gradient", 3, attack.needs),
        ("delta", 1, attack.needs),
    ]
    generator = torch_generator(0, "testing", "attack")

    def seen(kind: UpdateKind, count: int, grants: frozenset[Need]) -> Observation:
        return observation(random_images(generator, count), kind, grants)

    if attack.scope == "update":
        return [seen(*one) for one in usual]
    shown = [observation_of([seen(*one), seen(*one)]) for one in usual]
    # Under secure aggregation the sum alone is seen.
    return [*shown, observation_of(shown[0].members, is_sum=True)]


def _check_run(attack: Attack, seen: Observation, faults: Faults) -> Finding | None:
    """Run twice, the second time a pickled copy under another global seed and overheard; None where the attack refuses."""
    who = type(attack).__qualname__
    told: list[Step] = []
    finding = _run(attack, seen, global_seed=0)
    with listening(told.append, interval=0.0):
        again = _run(pickle.loads(pickle.dumps(attack)), seen, global_seed=1)
    for step in told:
        with faults.of("steps told"):
            expect(
                0 <= step.done <= step.total, f"{who} tells that {step.done} of {step.total} iterations lie behind it."
            )
    if finding is None or again is None:
        expect(finding is again, f"{who} refuses an observation in one run and answers it in the next.")
        return None
    _check_finding(attack, finding, seen, faults)
    for name in (field.name for field in fields()):
        if not all(_is_dense(getattr(one, name)) for one in (finding, again)):
            continue  # told above
        with faults.of(f"{name} of equal runs"):
            expect(
                equal(getattr(finding, name), getattr(again, name)),
                f"{who}: same observation, same generator state, but other {name}. Draw from the generator alone.",
            )
    with faults.of("trajectories of equal runs"):
        alike = _same_trajectory(finding.trajectory, again.trajectory)
        expect(alike, f"{who}: same observation, same generator state, but another trajectory.")
    with faults.of("trace of equal runs"):
        expect(
            (finding.trace, finding.cautions) == (again.trace, again.cautions),
            f"{who}: trace or cautions differ between two equal runs: {finding.trace} and {again.trace}, "
            f"{finding.cautions} and {again.cautions}.",
        )
    return finding


def _run(attack: Attack, seen: Observation, global_seed: int) -> Finding | None:
    who = f"{type(attack).__qualname__}.run"
    with (
        seeded(global_seed, "testing"),
        no_global_effect(who),
        no_change(who, seen.update.tensors),
        no_change(who, _granted_tensors(seen)),
    ):
        try:
            finding = attack.run(seen, torch_generator(0, "testing", "run"))
        except AttackRefusedError as refusal:
            expect(bool(str(refusal).strip()), f"{who} refuses without saying why.")
            return None
    expect(isinstance(finding, Finding), f"{who} must return a Finding, got {type(finding).__name__}.")
    return finding


def _same_trajectory(first: object, second: object) -> bool:
    if not (isinstance(first, Trajectory) and isinstance(second, Trajectory)):
        return type(first) is type(second)
    return (first.steps, first.losses) == (second.steps, second.losses) and equal(first.images, second.images)


def _granted_tensors(seen: Observation) -> dict[str, Tensor]:
    found = {} if seen.labels is None else {"the labels": seen.labels}
    if seen.auxiliary_data is not None:
        found["the auxiliary images"] = seen.auxiliary_data.images
        found["the auxiliary labels"] = seen.auxiliary_data.labels
    if seen.candidates is not None:
        found["the candidates"] = seen.candidates.images
        found["the labels of the candidates"] = seen.candidates.labels
    return found


def _held(finding: Finding) -> set[Recovers]:
    return {field.name for field in fields() if getattr(finding, field.name) is not None}


def _check_finding(attack: Attack, finding: Finding, seen: Observation, faults: Faults) -> None:
    who = type(attack).__qualname__
    with faults.of("what was found"):
        excess = ", ".join(sorted(_held(finding) - attack.recovers))
        expect(not excess, f"{who} found {excess}, which {who}.recovers does not name, so it would not be scored.")
    for field in fields():
        found = getattr(finding, field.name)
        with faults.of(field.name):
            if found is not None:
                _check_dense(who, field.name, found)
                fault = field.fault(found, seen)
                expect(fault is None, f"{who}: {fault}")
    with faults.of("trajectory"):
        if finding.trajectory is not None:
            _check_trajectory(who, finding.trajectory, finding.images)
    with faults.of("trace"):
        expect(
            isinstance(finding.trace, Mapping) and _is_json(dict(finding.trace)),
            f"{who}: the trace must be a mapping that JSON can express, without nan or infinity; got {finding.trace!r}.",
        )
    with faults.of("cautions"):
        check_cautions(who, finding.cautions)


def _is_dense(value: object) -> bool:
    return value is None or (isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested)


def _check_dense(who: str, name: str, value: object) -> None:
    expect(isinstance(value, Tensor), f"{who}: {name} must be a tensor, got {type(value).__name__}.")
    assert isinstance(value, Tensor)
    is_dense = value.layout is torch.strided and not value.is_nested
    expect(is_dense, f"{who}: {name} must be a dense tensor, got a sparse or nested one.")
    expect(not value.is_complex(), f"{who}: {name} must be real, got {str(value.dtype).removeprefix('torch.')}.")


def _check_trajectory(who: str, trajectory: object, pictures: Tensor | None) -> None:
    expect(
        isinstance(trajectory, Trajectory),
        f"{who}: the trajectory must be a Trajectory, got {type(trajectory).__name__}.",
    )
    assert isinstance(trajectory, Trajectory)
    expect(pictures is not None, f"{who} returns a trajectory without images, of which it would show nothing.")
    assert pictures is not None
    _check_dense(who, "frames", trajectory.images)
    frames = trajectory.images
    expect(
        frames.ndim == 5
        and frames.shape[1:] == pictures.shape
        and frames.is_floating_point()
        and not frames.requires_grad,
        f"{who}: a trajectory must be detached floats of shape (frames, {', '.join(map(str, pictures.shape))}), the finding's "
        f"images in each frame; got {described(frames)}.",
    )
    inside = bool(((frames >= 0) & (frames <= 1)).all())
    expect(inside, f"{who}: pixels of a trajectory must be finite and in [0, 1]; got {described(frames)}.")
    steps = trajectory.steps
    expect(
        0 < len(steps) == len(frames) == len(trajectory.losses),
        f"{who}: a trajectory needs a step and a loss for each frame; "
        f"got {len(steps)} and {len(trajectory.losses)} for {len(frames)}.",
    )
    rises = all(isinstance(step, int) and step >= 0 for step in steps) and all(a < b for a, b in pairwise(steps))
    expect(rises, f"{who}: steps of a trajectory must be iterations that increase, from 0; got {steps}.")
    known = all(isinstance(loss, float) and math.isfinite(loss) for loss in trajectory.losses)
    expect(known, f"{who}: losses of a trajectory must be finite numbers; got {trajectory.losses}.")


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return False
