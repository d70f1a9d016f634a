"""Plain and aware: each attack that could be told of a client's defenses is run without being told as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fedsim.attack import Attack
from fedsim.errors import PluginError, ScenarioError, told
from fedsim.planning.planned import PlannedAttack
from fedsim.scenario import Scenario
from fedsim.validation import shown


def with_variants(scenario: Scenario, attacks: Sequence[PlannedAttack]) -> tuple[PlannedAttack, ...]:
    """Return the attacks of a scenario, each followed by its plain variant where it has one.

    It has none where defenses are not granted or the attack cannot do without the grant, for controls, and where the attack
    models no defense as its parameters are.

    Args:
        scenario: states the grants and the variants.
        attacks: as the scenario lists them.

    Raises:
        ScenarioError: defenses are granted, and an attack is listed that is the plain variant of another one. As an attack of
            its own it could make up for the aware one, where that cannot tell.
    """
    if "defenses" not in scenario.threat.grants:
        return tuple(attacks)
    _refuse_listed_plain(attacks)
    if "plain" not in scenario.audit.variants:
        return tuple(attacks)
    found: list[PlannedAttack] = []
    for planned in attacks:
        stated = dataclasses.replace(planned, index=len(found), position=planned.index, variant="only")
        if _plain(planned) is None:
            found.append(stated)
            continue
        found.append(dataclasses.replace(stated, variant="aware"))
        found.append(dataclasses.replace(stated, index=len(found), variant="plain"))
    return tuple(found)


def _refuse_listed_plain(attacks: Sequence[PlannedAttack]) -> None:
    for planned in attacks:
        plain = _plain(planned)
        for other in attacks:
            if other is not planned and other.attack == plain:
                raise ScenarioError(
                    other.where,
                    f"{other.info.name} with these parameters is the plain variant of {planned.where}, which is not told of "
                    "defenses. Leave it out: with audit.variants: [aware, plain] both are run.",
                )


def _plain(planned: PlannedAttack) -> Attack | None:
    """Return the plain variant of an attack; None where it has none.

    Raises:
        PluginError: it raises, or returns anything but an attack.
    """
    if planned.attack.is_control or "defenses" in planned.attack.needs:
        return None
    name = f"{planned.where}: plain of {planned.info.name} ({planned.info.target})"
    try:
        found: Any = planned.attack.plain()
    except Exception as error:
        raise PluginError(f"{name} raised {told(error)}. Mend the plug-in, or leave it out.") from error
    if found is not None and not isinstance(found, Attack):
        raise PluginError(
            f"{name} returned {shown(found)}, expected an attack or None. Mend the plug-in, or leave it out."
        )
    return found
