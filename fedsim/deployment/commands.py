"""Command lines of Flower's programs, and the environment that they get."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import tomli_w

import fedsim
from fedsim.deployment.certificates import Credentials
from fedsim.errors import FedsimError

CONNECTION = "fedsim"
"""What the connection is called in the FLWR home of a run."""
LOOPBACK = "127.0.0.1"

# Processes share the processors, and the order of a float sum depends on the number of threads.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def environment() -> dict[str, str]:
    """Return what Flower's processes need beyond this one's environment.

    No telemetry, no look for updates, no installation of packages, one thread, no proxy on loopback; this very fedsim, and
    the working directory, where a "module:Class" under development lives.
    """
    package = str(Path(fedsim.__file__).parent.parent)
    path = os.pathsep.join(dict.fromkeys(filter(None, [os.environ.get("PYTHONPATH"), package, os.getcwd()])))
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    proxied = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK, "localhost"]))
    return {
        **dict.fromkeys(_THREADS, "1"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": proxied,
        "no_proxy": proxied,
        "PATH": programs,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }


def program(name: str) -> str:
    """Return the path of one of Flower's programs, that of this Python before any other.

    Raises:
        FedsimError: it is not installed.
    """
    found = shutil.which(name, path=environment()["PATH"])
    if found is None:
        raise FedsimError(f"{name}: not found. It comes with Flower: install fedsim-audit again.")
    return found


def patient(name: str) -> list[str]:
    """Return the start of a command that runs one of Flower's programs and gives its processes time to start."""
    return [sys.executable, "-m", "fedsim.deployment.patience", program(name)]


def superlink(port: int, credentials: Credentials | None) -> list[str]:
    """Return the command that starts a SuperLink on loopback, with TLS and node authentication given credentials."""
    return [
        *patient("flower-superlink"),
        *("--host", LOOPBACK, "--port", str(port)),
        "--disable-runtime-dependency-installation",
        *(["--insecure"] if credentials is None else _served(credentials)),
    ]


def _served(credentials: Credentials) -> list[str]:
    return [
        *("--ssl-ca-certfile", str(credentials.authority)),
        *("--ssl-certfile", str(credentials.certificate)),
        *("--ssl-keyfile", str(credentials.key)),
        "--enable-supernode-auth",
    ]


def supernode(
    client: int, clients: int, superlink: str, port: int, credentials: Credentials | None, key: Path | None = None
) -> list[str]:
    """Return the command that starts the SuperNode of a client.

    Args:
        client: its number.
        clients: how many there are.
        superlink: address of the SuperLink.
        port: where its own ClientApp reaches it, on loopback.
        credentials: None for no TLS.
        key: its private key; that of the client, otherwise.
    """
    security = ["--insecure"]
    if credentials is not None:
        held = key or credentials.node_key(client)
        security = ["--root-certificates", str(credentials.authority), "--auth-supernode-private-key", str(held)]
    return [
        *patient("flower-supernode"),
        *("--superlink", superlink),
        *("--host", LOOPBACK, "--port", str(port)),
        *("--node-config", f"partition-id={client} num-partitions={clients}"),
        *security,
    ]


def register(public_key: Path) -> list[str]:
    """Return the command that registers a SuperNode's public key."""
    return [program("flwr"), "supernode", "register", str(public_key), CONNECTION]


def run(app: Path, config: Path) -> list[str]:
    """Return the command that submits an app and prints its log until the run ends."""
    return [program("flwr"), "run", str(app), CONNECTION, "--stream", "--run-config", str(config)]


def connection(address: str, authority: Path | None) -> str:
    """Return the text of config.toml in the FLWR home: one connection, with TLS given the certificate of an authority."""
    secured = {"insecure": True} if authority is None else {"root-certificates": str(authority)}
    return tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: {"address": address, **secured}}})
