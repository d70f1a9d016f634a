import os
import sys

import engines
import pytest
import torch
from processes import command, elsewhere, is_running, wait_until

from fedsim import process_tree, simulation
from fedsim.deployment import certificates, commands, network
from fedsim.deployment.options import Options
from fedsim.errors import FedsimError, ScenarioError
from fedsim.federation import engine, engine_deployment
from fedsim.federation.grid import GridProxy
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def captures_of(folder):
    files = (folder.path / "captures").glob("round-*/*.safetensors")
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


class Watched:
    """What a real deployment does beside its run: its processes, and a node that nobody has registered."""

    def __init__(self, monkeypatch, key):
        self.key, self.family, self.intruder = key, [], ""
        self._start = network.start
        monkeypatch.setattr(network, "start", self.start)

    def start(self, processes, clients, credentials, seconds):
        made = self._start(processes, clients, credentials, seconds)
        self.processes = processes
        port = network.free_port()
        processes.start("intruder", commands.supernode(1, clients, made.address, port, credentials, self.key))
        return made

    def look(self, line):
        """Look at the processes while they run."""
        self.family = process_tree.descendants(self.processes._keeper.pid)
        self.intruder = self.processes.said("intruder")


@pytest.mark.slow
@pytest.mark.skipif(not process_tree.tells_memory(), reason="this system does not list processes")
def test_a_deployment_with_tls_records_what_the_inline_engine_does_and_leaves_no_process(
    tiny_plan, run_folder, tmp_path, monkeypatch, without_report
):
    keys = certificates.make(tmp_path / "keys", 3)
    foreign = certificates.make(tmp_path / "foreign", 1)
    plan = tiny_plan(engine="deployment", **engines.PARTS)
    deployed, inline = run_folder(plan, "deployed"), RunFolder(tmp_path / "inline")
    # In a process of its own: the type checks that run under pytest draw from `random`, as client sampling does.
    (tmp_path / "scenario.yaml").write_text(yaml_loader.dump(plan.scenario.resolved()))
    beside = command("run", tmp_path / "scenario.yaml", "--engine", "inline", "--out", inline.path)
    watched = Watched(monkeypatch, foreign.node_key(0))

    def train(plan, folder, on_round):
        def look(line):
            watched.look(line)
            on_round(line)

        return engine_deployment.train(plan, folder, look, Options(tls=keys.folder))

    records = simulation.simulate(plan, deployed, simulation.Progress(), train_with=train)
    assert len(watched.family) >= 6, "a SuperLink, three SuperNodes and what they start"
    assert not any(map(is_running, watched.family)) and not watched.processes.folder.exists()
    assert "2004" in watched.intruder or "not registered" in watched.intruder.lower(), watched.intruder
    assert not (deployed.path / "deployment.jsonl").exists()

    beside.join(900)
    assert beside.exitcode == 1, "a client has failed"
    assert timeless(record.as_json() for record in records) == timeless(inline.records.read()) and len(records) == 3
    assert captures_of(deployed) == captures_of(inline) and len(captures_of(inline)) == 5
    assert timeless(deployed.rounds.read()) == timeless(inline.rounds.read())
    assert deployed.model_digest() == inline.model_digest()


_HELD = """
from pathlib import Path
from fedsim.errors import RunFolderError
from fedsim.recording.run_folder import RunFolder
try:
    with RunFolder.open(Path(path)).locked():
        found = False
except RunFolderError:
    found = True
"""

# What follows a run, with plain processes in the place of Flower's.

_TELLING = """
import json, sys, time

def tell(name, value):
    with open(sys.argv[1] + "/deployment.jsonl", "a") as file:
        file.write(json.dumps({name: value}) + "\\n")

exec(sys.argv[2])
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def stand_in(monkeypatch, run_folder):
    """Return a function: what the ServerApp does, how long `flwr run` goes on -> what `train` makes of it."""

    def start(processes, clients, credentials, seconds):
        for client in range(clients):
            processes.start(network.node_name(client), [sys.executable, "-S", "-c", "import time; time.sleep(99)"])

    def train(plan, told, seconds=99.0, nodes=start, on_round=None, options=None, name="run"):
        folder = run_folder(plan, name)
        # As a run that is resumed: what is there has been read before another process goes on.
        assert not folder.has_model()
        monkeypatch.setattr(network, "start", nodes)

        def run(app, config):
            assert (app / "pyproject.toml").is_file() and str(folder.path) in config.read_text()
            return [sys.executable, "-S", "-c", _TELLING, str(folder.path), told, str(seconds)]

        monkeypatch.setattr(commands, "run", run)
        return engine_deployment.train(plan, folder, on_round, options)

    return train


def test_what_the_server_app_says_reaches_the_caller(stand_in, tiny_plan):
    said = "tell('error', {'where': 'training.learning_rate', 'message': 'too large'})"
    with pytest.raises(ScenarioError, match=r"^training\.learning_rate: too large"):
        stand_in(tiny_plan(), said)


def test_the_final_model_of_a_resumed_run_is_read_though_another_process_has_written_it(
    stand_in, tiny_plan, run_folder
):
    plan = tiny_plan(federation={"clients": 1, "rounds": 1}, attacks=[])
    whole = run_folder(plan, "whole")
    expected = engine.train(plan, whole)
    told = f"""import shutil
shutil.copytree({str(whole.path / "captures")!r}, sys.argv[1] + "/captures")
shutil.copy({str(whole.path / "model.safetensors")!r}, sys.argv[1])
tell("finished", True)"""
    found = stand_in(plan, told)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("is_observed", [True, False])
def test_the_folder_is_held_while_the_server_app_works_also_where_nothing_is_observed(
    monkeypatch, tiny_plan, run_folder, is_observed
):
    plan, held = tiny_plan(federation={"clients": 1, "rounds": 1}, attacks=[]), []

    def submit(processes, plan, folder, options, is_observed):
        held.append(elsewhere(_HELD, path=str(folder.path)))
        folder.write_model(plan.initial_weights())

    monkeypatch.setattr(network, "start", lambda *_: None)
    monkeypatch.setattr(engine_deployment, "_submit", submit)
    monkeypatch.setattr(engine_deployment, "_follow", lambda *_: None)
    engine_deployment.train(plan, run_folder(plan) if is_observed else None)
    assert held == [True]


def test_a_fault_of_the_server_app_is_no_error_of_the_user(stand_in, tiny_plan):
    with pytest.raises(RuntimeError, match="the ServerApp failed:\nTraceback: a fault"):
        stand_in(tiny_plan(), "tell('fault', 'Traceback: a fault')")


def test_a_run_that_ends_before_its_training_is_done_is_told_with_its_last_lines(stand_in, tiny_plan):
    heard = []
    with pytest.raises(
        FedsimError, match=r"(?s)run ended with exit code 0 before the training was done.*  no capacity"
    ):
        stand_in(
            tiny_plan(),
            "tell('round', {'round': 0}); print('no capacity', flush=True)",
            0.0,
            on_round=heard.append,
        )
    assert heard == [{"round": 0}]


def test_a_node_that_ends_before_the_training_is_told(stand_in, tiny_plan):
    def start(processes, clients, credentials, seconds):
        processes.start("supernode-1", [sys.executable, "-S", "-c", "print('bad key'); raise SystemExit(4)"])

    with pytest.raises(FedsimError, match=r"supernode-1 ended with exit code 4 .*\n  bad key"):
        stand_in(tiny_plan(), "tell('started', True)", nodes=start)


def test_a_server_app_that_never_starts_is_given_up_with_advice(stand_in, tiny_plan, monkeypatch):
    monkeypatch.setattr(engine_deployment, "_START", 0.5)
    with pytest.raises(FedsimError, match=r"has not started the ServerApp within 1 s.*folder has to be there"):
        stand_in(tiny_plan(), "pass", options=Options(node_timeout=0.5))


def test_nothing_runs_after_an_interruption(stand_in, tiny_plan):
    family = []
    others = {*process_tree.descendants(os.getpid())}  # of tests before

    def interrupt(line):
        family.extend({*process_tree.descendants(os.getpid())} - others)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stand_in(tiny_plan(), "tell('round', {'round': 0})", on_round=interrupt)
    assert len(family) >= 5
    wait_until(lambda: not any(map(is_running, family)))


def test_another_superlink_is_used_as_it_is(stand_in, tiny_plan, monkeypatch):
    def never(*given):
        raise AssertionError("a SuperLink was started")

    seen = []
    connect = network.connect
    monkeypatch.setattr(network, "connect", lambda *given: seen.append(given[1:]) or connect(*given))
    plan = tiny_plan()
    with pytest.raises(FedsimError, match="exit code 0"):
        stand_in(plan, "tell('started', True)", 0.0, nodes=never, options=Options(superlink="far:8000"))
    assert seen == [("far:8000", None)]


def test_the_engine_of_the_scenario_leads_here(tiny_plan, monkeypatch):
    monkeypatch.setattr(engine_deployment, "train", lambda plan, folder, on_round: {"w": torch.ones(1)})
    assert engine.train(tiny_plan(engine="deployment"), None) == {"w": torch.ones(1)}


# Nodes


class Nodes(GridProxy):
    def __init__(self, count):
        self.count = count

    def get_node_ids(self):
        return range(self.count)


def test_waiting_for_nodes_has_an_end_and_a_message_that_says_what_to_do():
    from fedsim.federation.server_app import _wait_for_nodes

    assert _wait_for_nodes(Nodes(3), 3, 0.0) == [0, 1, 2]
    with pytest.raises(
        FedsimError, match=r"1 of 3 nodes have come within 0\.2 s\. Start a SuperNode for each .* 0 to 2"
    ):
        _wait_for_nodes(Nodes(1), 3, 0.2)


@pytest.mark.parametrize(
    ("client_of", "said"),
    [
        ({10: 0, 11: 0, 12: 1}, r"these are: 2 without a node; 0 with several nodes"),
        ({10: 0, 11: 1, 12: 2, 13: 3}, r"these are: 3 beyond federation\.clients"),
        ({10: 0, 11: 1, 12: -1}, r"2 without a node; -1 beyond"),
    ],
)
def test_nodes_that_are_not_one_for_each_client_are_refused(client_of, said):
    from fedsim.federation.server_app import _check_clients

    _check_clients({7: 2, 8: 1, 9: 0}, 3)
    with pytest.raises(FedsimError, match=said):
        _check_clients(client_of, 3)
