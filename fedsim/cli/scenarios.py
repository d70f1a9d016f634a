"""Commands about scenario files: check, init, schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedsim.cli import phased, starter
from fedsim.cli.arguments import AsJson, Engine, Overrides, ScenarioName
from fedsim.cli.preparation import load, prepared
from fedsim.cli.terminal import note, out, say, write_json
from fedsim.errors import printable, printable_line
from fedsim.scenario import Scenario

_FIRST_NAMES = 10  # of the classes, shown by check
_NAME_WIDTH = 40


def check(scenario: ScenarioName, engine: Engine = None, settings: Overrides = None, as_json: AsJson = False) -> None:
    """Check a scenario without training: names, parameters, grants, data, partition, model.

    SCENARIO is a YAML file, or a name that "fedsim list scenarios" shows.
    """
    if phased.is_stated(scenario):
        _check_phases(scenario, engine, settings, as_json)
        return
    loaded, notes = load(scenario, settings, engine)
    plan, seen = prepared(loaded, trains=False)
    notes = [*notes, *seen.notes]
    if as_json:
        write_json({**_as_data(loaded, plan), "notes": notes})
        return
    note(notes)
    out.print(_table(loaded, plan))
    say(f"{scenario}: fine", "green")


def _check_phases(named: str, engine: str | None, settings: Sequence[str] | None, as_json: bool) -> None:
    phases, found = phased.checked(named, settings, engine)
    if as_json:
        told = [
            {
                "phase": phase.name,
                "continues": phase.continues,
                **_as_data(phase.scenario, plan),
                "notes": list(seen.notes),
            }
            for phase, (plan, seen) in zip(phases, found, strict=True)
        ]
        write_json({"phases": told})
        return
    for phase, (plan, seen) in zip(phases, found, strict=True):
        start = " (starts from the global model of the phase before)" if phase.continues else ""
        say(f"Phase {phase.name}{start}", "bold")
        note(seen.notes)
        out.print(_table(phase.scenario, plan))
    say(f"{named}: fine, {len(phases)} phases", "green")


def _splits(plan: Any) -> dict[str, int]:
    pools = plan.data.pools
    return {"training": len(pools.train), "test": len(pools.test), "auxiliary": len(pools.auxiliary)}


def _table(loaded: Scenario, plan: Any) -> Table:
    from fedsim.audit import coverage

    table = Table(show_header=False, box=None, pad_edge=False)
    sizes = [len(samples) for samples in plan.data.partition]
    table.add_row(
        "data", f"{loaded.data.name}, {plan.num_classes} classes, {min(sizes)} to {max(sizes)} samples a client"
    )
    table.add_row("classes", Text(_first_names(plan.data.pools.class_names)))
    table.add_row("images", ", ".join(f"{count} {split}" for split, count in _splits(plan).items()))
    size = f"{plan.sharing.size / 1e6:.1f} M parameters"
    table.add_row("model", f"{loaded.model.name}, {size}, input {plan.image_shape}")
    table.add_row("travels", Text(str(plan.sharing)))
    table.add_row("federation", f"{loaded.federation.clients} clients, {loaded.federation.rounds} rounds")
    if plan.sees_sums:
        table.add_row("server sees", "the weighted sum of all updates of a round, and no single one")
    table.add_row("server knows", ", ".join(loaded.threat.grants) or "the update and the model")
    for planned in plan.defenses:
        clients = ", ".join(map(str, sorted(planned.clients)))
        table.add_row("defense", printable_line(f"{planned.info.name}{_given(planned.changed)} on clients {clients}"))
    for planned in plan.attacks:
        called = f"{planned.label}: " if planned.label else ""
        table.add_row("attack", printable_line(f"{called}{planned.info.name}{_given(planned.changed)}"))
    carriers: dict[str, list[int]] = {}
    for client in range(loaded.federation.clients):
        for text in plan.cautions_of(client):
            carriers.setdefault(text, []).append(client)
    for text, carrying in carriers.items():
        table.add_row("caution", printable_line(f"{_clients(carrying)}: {text}"))
    for gap in coverage.gaps(plan):
        table.add_row("inconclusive", printable_line(_in_words(gap)))
    return table


def _as_data(loaded: Scenario, plan: Any) -> dict[str, Any]:
    """Return what the table shows as JSON holds it, with every parameter and every class name."""
    from fedsim.audit import coverage

    return {
        "name": loaded.name,
        "engine": loaded.engine,
        "data": {
            "name": loaded.data.name,
            "class_names": list(plan.data.pools.class_names),
            "samples": [len(samples) for samples in plan.data.partition],
            **_splits(plan),
        },
        "model": {"name": loaded.model.name, "parameters": plan.sharing.size, "input": list(plan.image_shape)},
        "travels": {
            "parameters": dict(plan.sharing.parameters),
            "buffers": dict(plan.sharing.buffers),
            "frozen": dict(plan.sharing.frozen),
        },
        "federation": {
            "clients": loaded.federation.clients,
            "rounds": loaded.federation.rounds,
            "strategy": loaded.federation.strategy,
        },
        "sees": loaded.threat.sees,
        "grants": list(loaded.threat.grants),
        "defenses": [
            {"name": planned.info.name, "params": planned.params, "clients": sorted(planned.clients)}
            for planned in plan.defenses
        ],
        "attacks": [
            {"name": planned.info.name, "label": planned.label, "params": planned.params} for planned in plan.attacks
        ],
        "cautions": [
            {"client": client, "text": text}
            for client in range(loaded.federation.clients)
            for text in plan.cautions_of(client)
        ],
        "inconclusive": [
            {"attack": gap.attack, "clients": list(gap.clients), "reason": gap.reason, "instead": list(gap.instead)}
            for gap in coverage.gaps(plan)
        ],
    }


def _first_names(names: Sequence[str]) -> str:
    """Return the first ten class names; a name is cut where it is long."""
    shown = [printable(name, _NAME_WIDTH) for name in names[:_FIRST_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _FIRST_NAMES} more" if len(names) > _FIRST_NAMES else "")


def _given(params: dict[str, Any]) -> str:
    """Return in words how a plug-in differs from its defaults, which `fedsim list` shows."""
    return f" ({', '.join(f'{name}: {value}' for name, value in params.items())})" if params else ""


def _in_words(gap: Any) -> str:
    """Return what an audit will not be able to tell, as one row of `fedsim check`."""
    instead = f" Add instead: {', '.join(gap.instead)}." if gap.instead else ""
    return f"{gap.attack or 'every attack'} on {_clients(gap.clients)}, where it finds nothing: {gap.reason}.{instead}"


def _clients(numbers: Sequence[int]) -> str:
    """Return clients in words, neighbors as a range: client 4; clients 0-3, 6."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    told = [f"{one[0]}-{one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in ranges]
    return f"client{'s' if len(numbers) != 1 else ''} {', '.join(told)}"


def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]")] = "scenario",
) -> None:
    """Write a scenario to start from, with comments, into a new file NAME.yaml."""
    path = starter.write(Path(name))
    say(f"Wrote {path}. Check it with: fedsim check {path}; run it with: fedsim run {path}")


def schema() -> None:
    """Print the JSON Schema of a scenario, with which editors complete and check it."""
    from fedsim.planning import schema as schemas

    write_json(schemas.of())
