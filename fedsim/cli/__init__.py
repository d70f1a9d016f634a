"""The command line: run, audit, report, records, sweep, compare, check, init, certs, list, schema.

Exit codes: 0, all done; 1, all done and saved, but an attack, a client or a cell failed; 2, the user can mend it, and the
message says how; 3, all done and saved, and the verdict is as bad as --fail-on says, or worse; 130, interrupted from the
keyboard, and what was done is saved.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fedsim import __version__, installation
from fedsim.cli import deployed, listing, runs, scenarios, sweeps
from fedsim.cli.terminal import complain, say
from fedsim.errors import FedsimError

app = typer.Typer(
    name="fedsim",
    help="Train federated Vision Transformers, and audit what each client's update leaks.",
    no_args_is_help=True,
    suggest_commands=False,  # click does, and both would
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> bool:
    if asked:
        say(f"fedsim {__version__}")
        raise typer.Exit
    return asked  # which is what the option becomes


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train federated Vision Transformers, and audit what each client's update leaks."""


for _command in (
    runs.run,
    runs.audit,
    runs.report,
    runs.records,
    sweeps.sweep,
    sweeps.compare,
    scenarios.check,
    scenarios.init,
    deployed.certs,
):
    app.command()(_command)
app.command("list")(listing.list_)
app.command()(scenarios.schema)


def main() -> None:
    """Run the command line; errors that the user can mend are printed without a traceback."""
    # A console script does not see the working directory, where a "module:Class" under development lives. Appended: what
    # is installed comes first.
    sys.path.append(os.getcwd())
    try:
        installation.check()
        app()
    except FedsimError as error:
        complain(f"fedsim: {error}")
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full disk, missing rights, a folder where a file should be: the user's to mend, and no fault of the code.
        where = f"{error.filename}: " if error.filename else ""
        complain(f"fedsim: {where}{error.strerror or error}.")
        sys.exit(2)
