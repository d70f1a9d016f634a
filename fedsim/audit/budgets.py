"""Checks of the budgets that clients' defenses claim: one line of mechanisms.jsonl per client and defense.

Each is checked on the client's first update, which the auditor computes again up to the defense, since a capture holds the
protected one; or, of a defense that protects local steps, on one step at the global weights of that round. The claim is the one
for this update or step alone: what several add up to is a theorem about the one, and drawing cannot test it. Attacks see
nothing of this.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from fedsim.audit import mechanism, private_step, replay
from fedsim.audit.mechanism import CONFIDENCE, MechanismCheck, Release
from fedsim.audit.text import plain, shown
from fedsim.defense import ClientContext, PrivacyBudget
from fedsim.errors import told
from fedsim.federation import training
from fedsim.federation.training import LocalRun
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedDefense
from fedsim.recording.records import SCHEMA, Budget, MechanismRecord, PluginUse
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import derive


class _Claim(NamedTuple):
    """A defense of a client that claims a budget, and the client's first captured round."""

    client: int
    round: int
    planned: PlannedDefense


def check_budgets(
    plan: Plan, folder: RunFolder, draws: int, on_line: Callable[[MechanismRecord], None] | None = None
) -> list[MechanismRecord]:
    """Check all budgets that audited clients' defenses claim, each line stored at once; returns all lines, in order.

    The bounds hold together with the confidence of one: each has its share of the errors. Checks that have a line with as many
    draws, or more, are left alone, unless they failed or a "module:Class" was edited since.

    Args:
        plan: of a simulated run.
        folder: the run, locked.
        draws: of each of two neighbors, for each check.
        on_line: called with every new line.

    Raises:
        RunFolderError: a file of the run is missing or damaged.
    """
    claims = list(_claims(plan, folder))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(claims))
    known = {(line.client, line.position): line for line in folder.read_mechanisms()}
    lines = []
    for claim in claims:
        line = known.get((claim.client, claim.planned.index))
        if line is None or not _is_current(claim, line, draws, confidence):
            line = _check(plan, folder, claim, draws, confidence)
            folder.mechanisms.append(line.as_json())
            if on_line is not None:
                on_line(line)
        lines.append(line)
    wanted = [line.as_json() for line in lines]
    if wanted != folder.mechanisms.read():
        folder.mechanisms.rewrite(wanted)
    return lines


def _claims(plan: Plan, folder: RunFolder) -> Iterator[_Claim]:
    first: dict[int, int] = {}
    for round in folder.captured_rounds():
        for client in folder.captured(round):
            first.setdefault(client, round)
    for client in plan.audit_clients:
        for planned in plan.defenses_of(client) if client in first else ():
            if planned.defense.budget(plan.context_of(client, first[client], 1)) is not None:
                yield _Claim(client, first[client], planned)


def _is_current(claim: _Claim, line: MechanismRecord, draws: int, confidence: float) -> bool:
    """Return whether a line tells of a claim what would be found now."""
    use = _use(claim.planned)
    is_same = (line.defense.name, line.defense.params, line.defense.version) == (use.name, use.params, use.version)
    is_same = is_same and line.release == _release(claim.planned)
    is_enough = line.status == "not checked" or (line.draws >= draws and line.confidence == confidence)
    return is_same and is_enough and line.status != "failed"


def _check(plan: Plan, folder: RunFolder, claim: _Claim, draws: int, confidence: float) -> MechanismRecord:
    client, round, planned = claim
    weights, past = folder.read_global(round, client), replay.past(folder, client, round)
    seed = derive(plan.scenario.seed, "mechanism", planned.index, round, client)
    started = time.perf_counter()
    found: MechanismCheck | None = None
    message = None
    try:
        run = training.prepared(plan, client, round, weights, past)
        if _release(planned) == "step":
            found = private_step.check_step(run, planned, seed, draws, confidence)
        else:
            found = _checked_update(run, planned, seed, draws, confidence)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (boundary: a third party's code; its failure is a line)
        message = told(error)
    if found is None:
        message = message or "the defense claims a budget before the run, and none for the round"
    return _line(folder, claim, draws, seed, found, message, time.perf_counter() - started)


def _checked_update(
    run: LocalRun, planned: PlannedDefense, seed: int, draws: int, confidence: float
) -> MechanismCheck | None:
    """Check a defense on the update that the client makes before it; the model of `run` is trained."""
    kept = copy.deepcopy(dict(run.context(planned).state))
    update, _ = training.unprotected(run, training.proximal_mu(run.plan.scenario))
    for before in run.defenses[: run.defenses.index(planned)]:
        update = training.protected(run, before, update)

    def context() -> ClientContext:
        return replace(run.context(planned), participation=1, state=copy.deepcopy(kept))

    return mechanism.check_mechanism(planned.defense, update, context, seed, draws, confidence)


def _release(planned: PlannedDefense) -> Release:
    return "step" if private_step.computes_gradient(planned.defense) else "update"


def _line(
    folder: RunFolder,
    claim: _Claim,
    draws: int,
    seed: int,
    found: MechanismCheck | None,
    message: str | None,
    seconds: float,
) -> MechanismRecord:
    reason = message if found is None else found.reason
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "run": folder.run,
        "round": claim.round,
        "client": claim.client,
        "position": claim.planned.index,
        "defense": _use(claim.planned),
        "status": "failed" if found is None else found.status,
        "message": None if reason is None else shown(reason),
        "claimed": None if found is None else _budget(found.claimed),
        "lower_bound": None if found is None else found.lower_bound,
        "confidence": None if found is None else found.confidence,
        "draws": draws if found is None else found.draws,
        "statistic": None if found is None else found.statistic,
        "seconds": float(f"{seconds:.4g}"),
        "seed": seed,
        # Of an update a line is what it has always been.
        **({"release": "step"} if _release(claim.planned) == "step" else {}),
    }
    return MechanismRecord.model_validate(content)


def _budget(claimed: PrivacyBudget) -> Budget:
    epsilon = claimed.epsilon if math.isfinite(claimed.epsilon) else None
    return Budget(epsilon=epsilon, delta=claimed.delta, neighbors=shown(claimed.neighbors))


def _use(planned: PlannedDefense) -> PluginUse:
    return PluginUse(
        name=planned.info.name,
        params=plain(planned.params),
        version=planned.info.version,
        distribution=planned.info.distribution,
        citation=getattr(planned.defense, "citation", None),
    )
