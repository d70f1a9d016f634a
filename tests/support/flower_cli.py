"""Flower's own parsers of its command lines, private ones among them: what they take, the installed version takes."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

_PARSERS = {
    "flower-superlink": ("flwr.superlink.cli.flower_superlink", "_parse_args_run_superlink"),
    "flower-supernode": ("flwr.supernode.cli.flower_supernode", "_parse_args_run_supernode"),
    "flower-superexec": ("flwr.supercore.cli.flower_superexec", "_parse_args"),
}


def parsed(command: Sequence[str]) -> dict[str, Any]:
    """Return what the parser of a program makes of its command line; fails where that refuses it.

    Args:
        command: the program's name, with its path or without, and its arguments.
    """
    name, arguments = command[0].rpartition("/")[2], list(command[1:])
    if name == "flwr":
        return _parsed_by_flwr(arguments)
    place, parser = _PARSERS[name]
    # The packages export functions by the names of these modules.
    return vars(getattr(importlib.import_module(place), parser)().parse_args(arguments))


def _parsed_by_flwr(arguments: list[str]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # typer, as Flower pins it, uses what click deprecates
        import click
        import typer
        from flwr.cli.app import app

        found = typer.main.get_command(app)
        with click.Context(found) as context:
            while isinstance(found, click.Group):
                name, found, arguments = found.resolve_command(context, arguments)
                assert found is not None, name
            return dict(found.make_context("flwr", arguments).params)
