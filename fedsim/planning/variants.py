"""Plain and aware: each attack that could be told of a client's defenses is run without being told as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fedsim.attack import Attack
from fedsim.errors import PluginError, told
from fedsim.planning.planned import PlannedAttack
from fedsim.scenario import Scenario
from fedsim.validation import shown


def with_variants(scenario: Scenario, attacks: Sequence[PlannedAttack]) -> tuple[PlannedAttack, ...]:
    """Return the attacks of a scenario, each followed by its plain variant where it has one.

    It has none where defenses are not granted or the attack cannot do without the grant, for controls, where the attack models
    no defense as its parameters are, and where the scenario lists the same attack with the parameters of the plain one.

    Args:
        scenario: states the grants and the variants.
        attacks: as the scenario lists them.
    """
    if "plain" not in scenario.audit.variants or "defenses" not in scenario.threat.grants:
        return tuple(attacks)
    found: list[PlannedAttack] = []
    for planned in attacks:
        stated = dataclasses.replace(planned, index=len(found), position=planned.index, variant="only")
        if not _has_plain(planned, attacks):
            found.append(stated)
            continue
        found.append(dataclasses.replace(stated, variant="aware"))
        found.append(dataclasses.replace(stated, index=len(found), variant="plain"))
    return tuple(found)


def _has_plain(planned: PlannedAttack, attacks: Sequence[PlannedAttack]) -> bool:
    attack = planned.attack
    if attack.is_control or "defenses" in attack.needs:
        return False
    plain = _plain(planned)
    return plain is not None and all(other is planned or other.attack != plain for other in attacks)


def _plain(planned: PlannedAttack) -> Attack | None:
    """Return the plain variant of an attack.

    Raises:
        PluginError: it raises, or returns anything but an attack.
    """
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
