"""Which installed attacks an audit of somebody else's app runs where its scenario lists none, and why it leaves others out.

Chosen by what attacks declare of themselves: cheap ones wherever they apply, expensive ones on the updates that they state in
`Attack.chosen_for`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim import applicability, plugins
from fedsim.applicability import Setting
from fedsim.attack import Attack
from fedsim.errors import ScenarioError
from fedsim.planning import preparation
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import AttackPart, Scenario

_STATED_BY = {
    "batch_size": "state training.batch_size",
    "normalization": "grant normalization",
    "training": "state training.learning_rate and grant training",
    "auxiliary_data": "name data with the app's classes and grant auxiliary_data",
}


@dataclass(frozen=True)
class Choice:
    """What an audit runs, and what it does not.

    Args:
        chosen: names of attacks, in alphabetical order.
        left_out: name of an attack and why it is left out, in alphabetical order.
    """

    chosen: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    def notes(self) -> tuple[str, ...]:
        """Return the choice in words, one sentence each."""
        said = f"attacks: the scenario lists none; chosen by what applies: {', '.join(self.chosen) or 'none'}."
        alike: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            alike.setdefault(reason, []).append(name)
        return (said, *(f"attacks: left out {', '.join(names)}: {reason}." for reason, names in alike.items()))


def chosen(folder: RunFolder, scenario: Scenario) -> tuple[Scenario, Choice]:
    """Return the scenario of an observed app with the attacks that apply to what was captured.

    Args:
        folder: the observed run.
        scenario: what is stated about the app; its attacks are replaced.

    Raises:
        ScenarioError: no attack applies; the message says why, attack by attack.
        RunFolderError: see `preparation.of_folder`.
    """
    plan = preparation.of_folder(folder, _with(scenario, []))
    choice = choose(plan, _settings(plan, folder))
    if not choice.chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.left_out)
        raise ScenarioError(
            "attacks", f"none of those installed applies by itself ({reasons}). Name one with --attack."
        )
    return _with(scenario, choice.chosen), choice


def choose(plan: Plan, settings: Sequence[Setting]) -> Choice:
    """Return which installed attacks apply, with their default parameters, to at least one update.

    Args:
        plan: of the audit; its grants count.
        settings: how each update was made, as far as anybody has told.
    """
    found, left_out = list[str](), list[tuple[str, str]]()
    for name in plugins.installed("attacks"):
        reason = _against(plan, name, settings)
        if reason is None:
            found.append(name)
        else:
            left_out.append((name, reason))
    return Choice(tuple(found), tuple(left_out))


def default(name: str) -> Attack | None:
    """Return an installed attack with its defaults; None where it has none or is broken, which `fedsim list` tells."""
    try:
        attack: Attack = plugins.build("attacks", Attack, name, {}, "attacks")
        is_sound = applicability.fault(attack.applicability) is None and applicability.fault(attack.chosen_for) is None
    except Exception:  # noqa: BLE001  (a third party's code, which this scenario does not name)
        return None
    return attack if is_sound else None


def _against(plan: Plan, name: str, settings: Sequence[Setting]) -> str | None:
    """Return why an attack is left out; None where it is not."""
    attack = default(name)
    if attack is None:
        return "it has no default parameters, or is broken (fedsim list attacks)"
    if attack.is_control:
        return "it is a control, which looks at no update"
    if attack.scope != "update":
        return "it looks at several updates at once"
    made_for = attack.applicability
    if made_for is None:
        return "it does not say what it is made for"
    lacking = sorted(attack.needs - set(plan.scenario.threat.grants))
    if lacking:
        advice = ", ".join(_STATED_BY.get(one, "nobody can grant it for an observed app") for one in lacking)
        return f"it needs the grant {', '.join(lacking)}: {advice}"
    obstacles = [made_for.obstacles(setting) for setting in settings]
    if all(obstacles):
        return "; ".join(obstacles[0])
    if attack.is_cheap:
        return None
    by_itself = attack.chosen_for
    if by_itself is None:
        return "it takes minutes an update; --attack NAME adds it"
    expected = [
        by_itself.obstacles(setting) for setting, against in zip(settings, obstacles, strict=True) if not against
    ]
    if all(expected):
        return f"little is to be expected of it here ({'; '.join(expected[0])}); --attack NAME adds it"
    return None


def _settings(plan: Plan, folder: RunFolder) -> list[Setting]:
    """Return how the updates that are audited were made; equal ones once."""
    rounds, clients = set(plan.audit_rounds), set(plan.audit_clients)
    headers = [
        folder.read_header(round, client)
        for round in folder.captured_rounds()
        for client in folder.captured(round)
        if round in rounds and client in clients
    ]
    return list(dict.fromkeys(plan.setting_reported(one["kind"], folder.reported_examples(one)) for one in headers))


def _with(scenario: Scenario, names: Sequence[str]) -> Scenario:
    return scenario.model_copy(update={"attacks": [AttackPart(name=name) for name in names]})
