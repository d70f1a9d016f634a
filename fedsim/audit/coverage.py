"""Before training: on which clients an attack that finds nothing will prove nothing, and which attacks to add instead."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedsim import plugins
from fedsim.applicability import Setting
from fedsim.attack import Attack
from fedsim.audit import noise
from fedsim.defense import MEANINGFUL_DELTA, MEANINGFUL_EPSILON
from fedsim.federation.training import privacy_budget
from fedsim.findings.kinds import gravest
from fedsim.planning import choice
from fedsim.planning.memory import per_plan
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack

_TRIAL_SECONDS = 30.0  # for the trials of a defense in one round


@dataclass(frozen=True)
class Gap:
    """Clients on which one attack, or any, will be inconclusive where it finds nothing.

    Args:
        attack: what reports call it; None for all attacks.
        clients: ascending.
        reason: why, without a full stop.
        instead: installed attacks that are made for these clients and recover the same, with the grants they lack.
    """

    attack: str | None
    clients: tuple[int, ...]
    reason: str
    instead: tuple[str, ...] = ()


def gaps(plan: Plan) -> list[Gap]:
    """Return what a scenario's audit will not be able to tell, in the order of its attacks."""
    stated = [planned for planned in plan.attacks if not planned.attack.is_control and not planned.is_plain]
    found = [gap for planned in stated for gap in _of_attack(plan, planned)]
    return [*found, *_under_noise(plan)]


def _of_attack(plan: Plan, planned: PlannedAttack) -> list[Gap]:
    made_for = planned.attack.applicability
    if plan.scope_of(planned.attack) != "update":
        reason = (
            "it looks at several updates at once, which is not calibrated: where it finds nothing it is inconclusive"
        )
        return [Gap(planned.title, plan.audit_clients, reason)]
    if made_for is None:
        reason = "it does not say what it is made for, so that only a calibration shows that it works"
        return [Gap(planned.title, plan.audit_clients, reason)]
    reasons: dict[str, list[int]] = {}
    for client in plan.audit_clients:
        obstacles = made_for.obstacles(_setting(plan, client))
        if obstacles:
            reasons.setdefault("; ".join(obstacles), []).append(client)
    return [
        Gap(planned.title, tuple(clients), reason, _instead(plan, planned, clients[0]))
        for reason, clients in reasons.items()
    ]


def _setting(plan: Plan, client: int) -> Setting:
    """Return how the first audited update of a client is made, with the weights of its own that it has by the last one."""
    first, last = (plan.setting_of(client, plan.audit_rounds[place]) for place in (0, -1))
    return replace(first, has_own_weights=last.has_own_weights, carries_over=last.carries_over)


def _instead(plan: Plan, planned: PlannedAttack, client: int) -> tuple[str, ...]:
    setting = _setting(plan, client)
    present = {other.info.name for other in plan.attacks}
    found = []
    for name in plugins.installed("attacks"):
        attack = choice.default(name) if name not in present else None
        if attack is not None and _could_stand_in(attack, planned.attack, setting):
            lacking = sorted(attack.needs - set(plan.scenario.threat.grants))
            found.append(f"{name} (grant {', '.join(lacking)})" if lacking else name)
    return tuple(found)


def _could_stand_in(attack: Attack, other: Attack, setting: Setting) -> bool:
    """Return whether an attack is made for an update, and recovers the gravest of what another one does."""
    lost, made_for = gravest(other.recovers), attack.applicability
    if attack.is_control or lost is None or lost.field.name not in attack.recovers or made_for is None:
        return False
    return not made_for.obstacles(setting)


def _under_noise(plan: Plan) -> list[Gap]:
    """Return the clients whose noise guarantees nothing, so that no failure of an attack will count as resistance."""
    reasons: dict[str, list[int]] = {}
    for client in plan.audit_clients:
        carried = plan.defenses_of(client)
        noisy = [planned.info.name for planned in carried if _adds_noise(plan, plan.defenses.index(planned))]
        rounds = plan.scenario.federation.rounds
        budget = privacy_budget((planned, plan.context_of(client, rounds, rounds)) for planned in carried)
        if noisy and not (budget is not None and budget.is_meaningful):
            stated = "no finite epsilon"
            if budget is not None:
                stated = f"epsilon {budget.epsilon:.3g} and delta {budget.delta:.3g} after the last round"
            reason = (
                f"{' + '.join(noisy)} randomizes the update with {stated}, which is no guarantee (epsilon at most "
                f"{MEANINGFUL_EPSILON:g} with delta at most {MEANINGFUL_DELTA:g} is)"
            )
            reasons.setdefault(reason, []).append(client)
    return [Gap(None, tuple(clients), reason) for reason, clients in reasons.items()]


@per_plan(most=32)
def _adds_noise(plan: Plan, index: int) -> bool:
    """Return whether a defense randomizes its first client's update, in the first or the last of the rounds."""
    planned, rounds = plan.defenses[index], {plan.audit_rounds[0], plan.audit_rounds[-1]}
    client = min(planned.clients)
    return any(noise.adds_noise(plan, planned, client, round, seconds=_TRIAL_SECONDS) for round in sorted(rounds))
