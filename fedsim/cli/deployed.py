"""Deployments on the command line: the options of `fedsim run`, and the command certs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli.terminal import say
from fedsim.errors import FedsimError
from fedsim.scenario import Scenario


def trainer(scenario: Scenario, superlink: str | None, tls: Path | None, node_timeout: float | None) -> Any:
    """Return what trains where these options say; None for the scenario's engine as it is.

    Raises:
        FedsimError: another engine has none of them, or the address is none.
    """
    given = _given(superlink, tls, node_timeout)
    if not given:
        return None
    if scenario.engine != "deployment":
        raise FedsimError(
            f"run {given[0]}: belongs to the engine deployment, and the scenario's is {scenario.engine}. Add --engine "
            f"deployment, or leave {given[0]} out."
        )
    from fedsim.deployment.certificates import Credentials
    from fedsim.deployment.options import NODE_TIMEOUT, Options
    from fedsim.federation import engine_deployment

    if superlink is not None:
        host, _, port = superlink.rpartition(":")
        if not host or "/" in host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise FedsimError(
                f"run --superlink: {superlink!r:.80} is no address. Expected HOST:PORT, as in superlink:8000, without http://."
            )
    if tls is not None:
        Credentials(tls).check(scenario.federation.clients if superlink is None else None)
    options = Options(superlink, tls, NODE_TIMEOUT if node_timeout is None else node_timeout)
    return functools.partial(engine_deployment.train, options=options)


def refuse_for_phases(superlink: str | None, tls: Path | None, node_timeout: float | None) -> None:
    """Refuse options of a deployment for a scenario with phases, each of which starts processes of its own.

    Raises:
        FedsimError: one is given.
    """
    for option in _given(superlink, tls, node_timeout):
        raise FedsimError(
            f"run {option}: a scenario with phases has none. Leave it out; each phase then starts its own SuperLink."
        )


def _given(superlink: str | None, tls: Path | None, node_timeout: float | None) -> list[str]:
    options = {"--superlink": superlink, "--tls": tls, "--node-timeout": node_timeout}
    return [name for name, value in options.items() if value is not None]


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    clients: Annotated[int, typer.Option(min=1, max=10_000, help="How many SuperNodes get a key.")] = 4,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address of the SuperLink, beside localhost and 127.0.0.1; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates hold.")] = 365,
) -> None:
    """Write certificates and keys for a deployment with TLS and node authentication into a new DIR.

    ca.crt is for everyone; server.crt and server.key are the SuperLink's; node-I is the key of client I's SuperNode, and
    node-I.pub what the SuperLink has to know of it. The key of the authority is not kept.
    """
    from fedsim.deployment import certificates

    made = certificates.make(folder, clients, name or (), days)
    say(f"Certificates and {clients} node keys: {made.folder}")
