"""A private SuperLink with one SuperNode for each client, as processes of this machine that only it can reach."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from fedsim.deployment import commands
from fedsim.deployment.certificates import Credentials
from fedsim.deployment.processes import Processes
from fedsim.errors import FedsimError

_PAUSE = 0.1
_TRIES = 3  # another process may take a port between the choice and its use
_KNOWN = "already in use"  # of a public key
_TAKEN = ("address already in use", "errno 98", "errno 48", "already in use")


@dataclass(frozen=True)
class Network:
    """A SuperLink that has started.

    Args:
        address: its host and port.
        processes: where its processes are held.
    """

    address: str
    processes: Processes


def free_port() -> int:
    """Return a port on loopback that nobody uses now."""
    with socket.socket() as one:
        one.bind((commands.LOOPBACK, 0))
        return int(one.getsockname()[1])


def start(processes: Processes, clients: int, credentials: Credentials | None, seconds: float) -> Network:
    """Start a SuperLink, make the nodes' keys known to it, and start the SuperNodes.

    Args:
        processes: what holds them.
        clients: how many SuperNodes.
        credentials: for TLS and node authentication; None for neither.
        seconds: after which each of them has to be there.

    Raises:
        FedsimError: one of them does not start, or not in time; the message has its last lines.
    """
    port = _start(processes, ["superlink"], lambda _, port: commands.superlink(port, credentials), credentials, seconds)
    address = f"{commands.LOOPBACK}:{port[0]}"
    connect(processes, address, credentials)
    if credentials is not None:
        register(processes, credentials, clients, seconds)
    _start(
        processes,
        [node_name(client) for client in range(clients)],
        lambda client, port: commands.supernode(client, clients, address, port, credentials),
        None,
        seconds,
    )
    return Network(address, processes)


def node_name(client: int) -> str:
    """Return what the process of a client's SuperNode is called."""
    return f"supernode-{client}"


def connect(processes: Processes, address: str, credentials: Credentials | None) -> None:
    """Write the connection to a SuperLink into the FLWR home of the processes."""
    authority = None if credentials is None else credentials.authority
    # It names the certificates by their path alone, and Flower wants the file for its owner.
    path = processes.folder / "config.toml"
    path.write_text(commands.connection(address, authority), encoding="utf-8")


def register(processes: Processes, credentials: Credentials, clients: int, seconds: float) -> None:
    """Make the nodes' keys known to the SuperLink that is connected to; one that it knows stays as it is.

    Raises:
        FedsimError: it refuses one.
    """
    for client in range(clients):
        name = f"register-{client}"
        try:
            call(processes, name, commands.register(credentials.public_key(client)), seconds)
        except FedsimError:
            if _KNOWN not in processes.said(name).lower():
                raise


def call(processes: Processes, name: str, command: list[str], seconds: float) -> None:
    """Run a command to its end.

    Raises:
        FedsimError: it fails, or takes too long.
    """
    processes.start(name, command)
    end = time.monotonic() + seconds
    while (code := processes.ended().get(name)) is None:
        if time.monotonic() > end:
            raise FedsimError(f"{name}: not done within {seconds:g} s. It said:\n{processes.said(name)}")
        time.sleep(_PAUSE)
    if code:
        raise FedsimError(f"{name}: failed with exit code {code}. It said:\n{processes.said(name)}")


def _start(
    processes: Processes,
    names: list[str],
    command: Callable[[int, int], list[str]],
    credentials: Credentials | None,
    seconds: float,
) -> list[int]:
    """Start processes, each on a free port, and return the ports once all of them answer there."""
    ports = [free_port() for _ in names]
    tries = dict.fromkeys(names, 1)
    for number, name in enumerate(names):
        processes.start(name, command(number, ports[number]))
    end = time.monotonic() + seconds
    for number, name in enumerate(names):
        while not _answers(ports[number], credentials):
            code = processes.ended().get(name)
            said = processes.said(name)
            if code is not None and tries[name] < _TRIES and any(word in said.lower() for word in _TAKEN):
                tries[name] += 1
                ports[number] = free_port()
                processes.start(name, command(number, ports[number]))
            elif code is not None:
                raise FedsimError(f"{name}: ended with exit code {code} while it started. It said:\n{said}")
            elif time.monotonic() > end:
                raise FedsimError(
                    f"{name}: does not answer within {seconds:g} s. Give it more with --node-timeout, on a machine that is "
                    f"busy. It said:\n{said}"
                )
            time.sleep(_PAUSE)
    return ports


def _answers(port: int, credentials: Credentials | None) -> bool:
    context = None if credentials is None else ssl.create_default_context(cafile=str(credentials.authority))
    scheme = "http" if credentials is None else "https"
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(f"{scheme}://{commands.LOOPBACK}:{port}/health", timeout=2):
            return True
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FedsimError(
                f"--tls: the certificate of the SuperLink is refused: {reason.verify_message}. Make new ones with fedsim certs."
            ) from None
        return False
