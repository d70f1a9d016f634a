"""The command that shows what a scenario can name: list."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import click
import typer
from rich.table import Table
from rich.text import Text

from fedsim.cli.arguments import AsJson
from fedsim.cli.terminal import out, say, write_json
from fedsim.errors import PluginError, printable_line, printable_lines
from fedsim.planning import catalogue
from fedsim.planning.catalogue import Entry
from fedsim.validation import shown

# What an attack looks at where it is not one update.
_SCOPES = {"client": "all updates of a client", "round": "all updates of a round", "run": "all updates of the run"}


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in catalogue.sections() if kind.startswith(incomplete)]


def _names(context: click.Context, incomplete: str) -> list[str]:
    section = catalogue.sections().get(str(context.params.get("kind")))
    try:
        return [name for name in section.names() if name.startswith(incomplete)] if section else []
    except PluginError:
        return []


def list_(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", show_default=False, autocompletion=_kinds)] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False, autocompletion=_names)] = None,
    as_json: AsJson = False,
) -> None:
    """List what a scenario can name, with parameters and defaults; with a name, all that is known of it.

    KIND is data, models, strategies, defenses, attacks, evaluators, metrics or scenarios; NAME is one of them.
    """
    if kind is None:
        sections = catalogue.sections()
    else:
        sections = {kind: catalogue.find(kind)}
    if kind is not None and name is not None:
        entry = sections[kind].entry(name)
        if as_json:
            write_json({**entry.as_data(), "text": entry.text})
        else:
            _print_page(kind, entry)
        return
    found = {of: section.entries() for of, section in sections.items()}
    if as_json:
        data = {of: [entry.as_data() for entry in entries] for of, entries in found.items()}
        write_json(data if kind is None else data[kind])
        return
    for of, entries in found.items():
        _print_table(of, entries)


def _print_table(kind: str, entries: list[Entry]) -> None:
    table = Table(title=kind, title_justify="left", title_style="bold", show_lines=False, expand=False)
    columns = ("name", "what it is") if kind == "scenarios" else ("name", "what it is", "parameters")
    for column in columns:
        table.add_column(column, overflow="fold")
    for entry in entries:
        needs = f" Needs {', '.join(entry.facts['needs'])}." if entry.facts.get("needs") else ""
        row = (entry.name, entry.summary + needs, entry.listed)
        table.add_row(*(printable_line(cell) for cell in row[: len(columns)]))
    out.print(table)


def _print_page(kind: str, entry: Entry) -> None:
    if kind == "scenarios":
        # As it is, so that it may be written to a file and changed.
        sys.stdout.write(entry.text)
        return
    say(entry.name, "bold")
    if not entry.text.startswith(entry.summary):
        say(entry.summary)
    out.print()
    out.print(printable_lines(entry.text), highlight=False, soft_wrap=True)
    out.print()
    if entry.parameters:
        table = Table("parameter", "type", "default", box=None, pad_edge=False)
        for one in entry.parameters:
            default = Text("required", style="bold") if one.required else printable_line(_written(one.default))
            table.add_row(one.name, printable_line(one.type), default)
        out.print(table)
        out.print()
    for label, value in _facts(entry.facts):
        say(f"{label}: {value}")


def _written(default: Any) -> str:
    return shown(list(default) if isinstance(default, tuple) else default)


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return in words what is known of an entry; what there is nothing of is left out."""
    found = [
        ("citation", facts.get("citation")),
        ("needs the grants", ", ".join(facts.get("needs", ()))),
        ("recovers", ", ".join(facts.get("recovers", ()))),
        ("looks at", _SCOPES.get(facts.get("scope", ""), "")),
        ("made for", _made_for(facts["applies"]) if facts.get("applies") else ""),
        ("class", facts.get("target")),
        ("from", " ".join(str(facts[key]) for key in ("distribution", "version") if facts.get(key))),
        ("more leakage", facts.get("worse")),
        ("scores", facts.get("scores")),
    ]
    return [(label, str(value)) for label, value in found if value]


def _made_for(applies: Mapping[str, Any]) -> str:
    """Return in words the updates that an attack is made for."""
    most = [
        f"at most {applies[key]} {what}{'s' if applies[key] != 1 else ''} {where}"
        for key, what, where in (
            ("pictures", "image", "in an update"),
            ("batch_size", "image", "in a local step"),
            ("steps", "local step", "in an update"),
        )
        if applies[key] is not None
    ]
    kinds = f"a {' or a '.join(applies['kinds'])}, local {' or '.join(applies['optimizers'])}"
    labels = [] if applies["soft_labels"] else ["hard labels"]
    model = [f"a model with a {fact}" for fact in applies["model"]]
    return "; ".join([kinds, *most, *labels, *model])
