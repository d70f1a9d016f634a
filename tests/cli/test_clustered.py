import os
import re
import socket

import pytest
from typer.testing import CliRunner

from fedsim.cli import app, clustered
from fedsim.cli.clustered import Executor
from fedsim.errors import FedsimError


@pytest.fixture
def free_address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_an_address_is_refused_where_nothing_runs_on_ray(tiny_scenario):
    with pytest.raises(
        FedsimError, match=r"^run --ray-address: nothing runs on Ray here\. Add --executor ray or --engine ray"
    ):
        clustered.use("run", "a:1", tiny_scenario(), trains=True)
    with pytest.raises(FedsimError, match=r"^audit --ray-address: .* Add --executor ray, or leave it out"):
        clustered.use("audit", "a:1", tiny_scenario(engine="ray"), trains=False)


def test_a_cluster_that_does_not_answer_is_refused_before_the_run_begins(tiny_scenario, free_address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    scenario = clustered.audited_on(tiny_scenario(), Executor.ray)
    with pytest.raises(FedsimError, match=rf"^audit --ray-address: {free_address} does not answer"):
        clustered.use("audit", free_address, scenario, trains=False)
    assert "RAY_ADDRESS" not in os.environ


def test_a_cluster_that_answers_is_used_by_all_of_the_command(tiny_scenario, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        clustered.use("run", address, tiny_scenario(engine="ray"), trains=True)
    assert os.environ["RAY_ADDRESS"] == address


def test_the_executor_is_a_setting_of_the_scenario_and_changes_nothing_else(tiny_scenario):
    scenario = tiny_scenario()
    assert clustered.audited_on(scenario, None) is scenario
    chosen = clustered.audited_on(scenario, Executor.ray).resolved()
    assert chosen["audit"].pop("executor") == "ray"
    expected = scenario.resolved()
    del expected["audit"]["executor"]
    assert chosen == expected
    assert clustered.settings_with(["seed=1"], Executor.ray) == ["seed=1", "audit.executor=ray"]
    assert clustered.settings_with(None, None) is None


def test_phases_take_no_options_of_ray_where_they_go_on():
    clustered.refuse_for_phases("run", None, None)
    with pytest.raises(FedsimError, match="run --resume --executor: not for a scenario with phases"):
        clustered.refuse_for_phases("run --resume", Executor.ray, None)


@pytest.mark.parametrize("command", ["run", "audit"])
def test_the_help_names_the_options(command):
    shown = re.sub(r"\s+", " ", CliRunner().invoke(app, [command, "-h"], env={"COLUMNS": "200"}).output)
    assert "--executor" in shown and "--ray-address" in shown
