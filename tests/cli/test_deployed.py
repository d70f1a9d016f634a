import re

import pytest
from typer.testing import CliRunner

from fedsim.cli import app, deployed
from fedsim.deployment.certificates import Credentials
from fedsim.deployment.options import NODE_TIMEOUT, Options
from fedsim.errors import FedsimError


@pytest.mark.parametrize("option", [["--superlink", "a:1"], ["--tls", "."], ["--node-timeout", "9"]])
def test_options_of_a_deployment_are_refused_with_another_engine(fedsim, tmp_path, option):
    code, message, _ = fedsim("run", "smoke", "--out", tmp_path / "run", *option)
    assert code == 2 and f"run {option[0]}: belongs to the engine deployment" in message
    assert "the scenario's is inline" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["superlink", "http://a:8000", "a:", "a:0", "a:99999", ":8000", "a:http"])
def test_what_is_no_address_is_refused(fedsim, tmp_path, address):
    code, message, _ = fedsim(
        "run", "smoke", "--engine", "deployment", "--superlink", address, "--out", tmp_path / "run"
    )
    assert code == 2 and "is no address. Expected HOST:PORT" in message and not (tmp_path / "run").exists()


def test_a_folder_without_certificates_is_refused_before_the_run_begins(fedsim, tmp_path):
    code, message, _ = fedsim("run", "smoke", "--engine", "deployment", "--tls", tmp_path, "--out", tmp_path / "run")
    assert code == 2 and "ca.crt: no such file" in message and not (tmp_path / "run").exists()


def test_the_options_reach_the_engine(tiny_scenario, tmp_path):
    scenario = tiny_scenario(engine="deployment")
    assert deployed.trainer(scenario, None, None, None) is None
    given = deployed.trainer(scenario, "[::1]:8000", None, 7.0)
    assert given.keywords == {"options": Options("[::1]:8000", None, 7.0)}
    assert deployed.trainer(scenario, "a:8000", None, None).keywords["options"].node_timeout == NODE_TIMEOUT


def test_phases_have_no_options_of_a_deployment():
    deployed.refuse_for_phases(None, None, None)
    with pytest.raises(FedsimError, match="run --superlink: a scenario with phases has none"):
        deployed.refuse_for_phases("a:1", None, None)


def test_certs_writes_what_a_deployment_needs_and_overwrites_nothing(fedsim, tmp_path):
    code, _, output = fedsim("certs", tmp_path / "keys", "--clients", "2", "--name", "superlink")
    assert code == 0 and "2 node keys" in output
    Credentials(tmp_path / "keys").check(2)
    code, message, _ = fedsim("certs", tmp_path / "keys")
    assert code == 2 and "something is in it" in message


def test_the_help_names_the_options_and_the_command():
    shown = re.sub(r"\s+", " ", CliRunner().invoke(app, ["run", "-h"], env={"COLUMNS": "200"}).output)
    assert all(option in shown for option in ("--superlink", "--tls", "--node-timeout", "deployment"))
    assert "certs" in CliRunner().invoke(app, ["-h"]).output
