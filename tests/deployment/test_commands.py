import os
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from flower_cli import parsed

from fedsim.deployment import commands
from fedsim.deployment.certificates import Credentials

TLS = Credentials(Path("/keys"))


def flowers(command):
    """Return the command of Flower's program out of one that gives its processes time to start."""
    assert command[:3] == [sys.executable, "-m", "fedsim.deployment.patience"]
    return command[3:]


@pytest.mark.parametrize("credentials", [None, TLS], ids=["plain", "tls"])
def test_flower_takes_the_command_of_the_superlink(credentials):
    command = flowers(commands.superlink(1234, credentials))
    given = SimpleNamespace(**parsed(command))
    assert Path(command[0]).name == "flower-superlink" and Path(command[0]).is_absolute()
    assert (given.host, given.port) == ("127.0.0.1", 1234)
    assert not given.runtime_dependency_install, "it would look for packages on the network"
    assert given.insecure == (credentials is None) and given.enable_supernode_auth == (credentials is not None)
    if credentials:
        assert (given.ssl_ca_certfile, given.ssl_certfile, given.ssl_keyfile) == (
            "/keys/ca.crt",
            "/keys/server.crt",
            "/keys/server.key",
        )


@pytest.mark.parametrize("credentials", [None, TLS], ids=["plain", "tls"])
def test_flower_takes_the_command_of_a_supernode(credentials):
    given = SimpleNamespace(**parsed(flowers(commands.supernode(3, 5, "host:8000", 77, credentials))))
    assert (given.superlink, given.host, given.port) == ("host:8000", "127.0.0.1", 77)
    assert given.node_config == "partition-id=3 num-partitions=5"
    assert given.insecure == (credentials is None)
    assert given.auth_supernode_private_key == ("/keys/node-3" if credentials else None)
    assert given.root_certificates == ("/keys/ca.crt" if credentials else None)


@pytest.mark.parametrize(
    "command",
    [commands.run(Path("/app"), Path("/run.toml")), commands.register(Path("/keys/node-0.pub"))],
    ids="run register".split(),
)
def test_flower_takes_the_commands_of_its_command_line(command):
    assert commands.CONNECTION in parsed(command).values()


def test_the_environment_keeps_flower_quiet_offline_and_on_one_thread(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/first")
    monkeypatch.setenv("NO_PROXY", "intranet")
    given = commands.environment()
    assert given["FLWR_TELEMETRY_ENABLED"] == "0" and given["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert given["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert given["OMP_NUM_THREADS"] == given["MKL_NUM_THREADS"] == "1"
    assert given["NO_PROXY"] == given["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert given["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent), "the programs of this Python"
    path = given["PYTHONPATH"].split(os.pathsep)
    assert path[0] == "/first" and path[-1] == os.getcwd()
    assert str(Path(commands.fedsim.__file__).parent.parent) in path


def test_the_connection_is_toml_with_what_was_given():
    odd = '/keys of "me"/ca.crt'
    for authority, expected in ((None, {"insecure": True}), (Path(odd), {"root-certificates": odd})):
        content = tomllib.loads(commands.connection("127.0.0.1:99", authority))
        assert content["superlink"]["default"] == commands.CONNECTION
        assert content["superlink"][commands.CONNECTION] == {"address": "127.0.0.1:99", **expected}
