import json
import subprocess
import sys

import pytest
from flwr.app import Context, Message, RecordDict

from fedsim import wire
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.federation import engine
from fedsim.federation.aggregation import ClientsFailedError
from fedsim.federation.engine_inline import InlineGrid
from fedsim.federation.events import Events, error_of
from fedsim.flower_app import client, server
from fedsim.flower_app.scenarios import named
from fedsim.recording.run_folder import RunFolder


@pytest.fixture(autouse=True)
def global_draws(monkeypatch):
    """Leave Flower's modules as they are: all tests of a worker share them."""
    monkeypatch.setattr("fedsim.flower_app.serving.keep_draws_apart", lambda: None)


def config_of(scenario, out, attended=False):
    text = json.dumps(scenario.resolved()) if not isinstance(scenario, str) else scenario
    return {"scenario": text, "out": str(out), "node-timeout": 60.0, "attended": attended, "observed": True}


class NodesGrid(InlineGrid):
    """The app's own ClientApp on nodes that have its run configuration."""

    def __init__(self, clients, config):
        super().__init__(client.app, clients)
        for context in self._contexts.values():
            context.run_config.update(config)


def start(clients, config):
    grid = NodesGrid(clients, config)
    server.app(grid, Context(1, 1, {}, RecordDict(), dict(config)))


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_app_captures_what_the_inline_engine_does_and_tells_of_each_round(tiny_plan, run_folder):
    plan = tiny_plan(training={"shares": "delta", "batch_size": 2, "local_steps": 2})
    ours, inline = run_folder(plan, "ours"), run_folder(plan, "inline")
    events = Events(ours.path)
    with ours.locked():
        start(3, config_of(plan.scenario, ours.path, attended=True))
    told = list(events.new())
    assert [name for name, _ in told] == ["started", "round", "round", "round", "finished"]
    assert list(events.new()) == [], "told once"
    final = engine.train(plan, inline)
    assert [value for name, value in told if name == "round"] == ours.rounds.read()
    assert timeless(ours.rounds.read()) == timeless(inline.rounds.read())
    assert all(tensor.equal(ours.read_model()[name]) for name, tensor in final.items())
    for round, number in ((1, 0), (2, 2)):
        mine, other = ours.read_update(round, number), inline.read_update(round, number)
        assert all(tensor.equal(mine.tensors[name]) for name, tensor in other.tensors.items())
    events.clear()
    assert not (ours.path / "deployment.jsonl").exists()


def test_alone_the_app_makes_a_whole_run_and_completes_it(tiny_scenario, tmp_path, without_report):
    scenario = tiny_scenario(federation={"rounds": 1})
    config = config_of(scenario, tmp_path / "run")
    start(3, config)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.scenario() == scenario and folder.has_model() and len(folder.records.read()) == 3
    (tmp_path / "run" / "records.jsonl").unlink()
    start(3, config)
    assert len(folder.records.read()) == 3
    other = tiny_scenario(federation={"rounds": 1}, seed=4)
    with pytest.raises(RunFolderError, match="holds a run of another scenario"):
        start(3, config_of(other, tmp_path / "run"))


@pytest.mark.parametrize("out", ["", "run", "./run"])
def test_a_relative_folder_is_refused(tiny_scenario, out):
    with pytest.raises(RunFolderError, match="absolute path of a run folder"):
        start(3, config_of(tiny_scenario(), out))


def test_a_folder_that_the_server_does_not_have_is_refused(tiny_scenario, tmp_path):
    with pytest.raises(RunFolderError, match="not there on the machine of the ServerApp"):
        start(3, config_of(tiny_scenario(), tmp_path / "elsewhere", attended=True))


def test_what_stops_the_training_is_told(tiny_plan, run_folder):
    everyone = {"name": "stubs:FailsIn", "clients": [0, 1, 2], "params": {"round": 1}}
    plan = tiny_plan(defenses=[everyone])
    folder = run_folder(plan)
    with folder.locked(), pytest.raises(ClientsFailedError):
        start(3, config_of(plan.scenario, folder.path, attended=True))
    *_, (name, value) = Events(folder.path).new()
    assert name == "error"
    error = error_of(value)
    assert isinstance(error, ClientsFailedError) and "no client delivered an update in round 1" in str(error)


def test_a_training_whose_driver_is_gone_stops(tiny_plan, run_folder):
    plan = tiny_plan()
    folder = run_folder(plan)
    with pytest.raises(FedsimError, match=r"fedsim run has ended\. Go on with fedsim run --resume"):
        start(3, config_of(plan.scenario, folder.path, attended=True))
    assert len(folder.rounds.read()) == 1 and not folder.has_model()


def test_a_fault_of_the_code_is_told_with_its_traceback(tiny_plan, run_folder, monkeypatch):
    plan = tiny_plan()
    folder = run_folder(plan)
    monkeypatch.setattr("fedsim.flower_app.serving.preparation.of", lambda scenario: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(3, config_of(plan.scenario, folder.path, attended=True))
    *_, (name, value) = Events(folder.path).new()
    assert name == "fault" and "Traceback" in value and "ZeroDivisionError" in value


@pytest.mark.parametrize(
    "error",
    [
        FedsimError("one"),
        RunFolderError("/run: two"),
        ClientsFailedError("three"),
        ScenarioError("training.learning_rate", "four"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_as_they_were(tmp_path, error):
    events = Events(tmp_path)
    events.add_error(error)
    ((name, value),) = events.new()
    found = error_of(value)
    assert name == "error" and type(found) is type(error) and str(found) == str(error)


def test_an_error_of_an_unknown_kind_is_one_of_fedsim():
    assert type(error_of({"kind": "SystemExit", "message": "x"})) is FedsimError


def test_a_scenario_is_named_in_three_ways(tiny_scenario, tmp_path):
    scenario = tiny_scenario()
    assert named(json.dumps(scenario.resolved())) == scenario
    assert named("smoke").name == "smoke"
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n")
    assert named(str(file)).name == "mine"
    with pytest.raises(ScenarioError, match="neither a scenario that ships with fedsim nor an absolute path"):
        named("mine.yaml")
    with pytest.raises(ScenarioError, match="no JSON"):
        named("{")
    with pytest.raises(ScenarioError, match="no such file"):
        named(str(tmp_path / "other.yaml"))


def test_a_node_says_which_client_it_is():
    grid = NodesGrid(3, {})
    answers = grid.send_and_receive([Message(RecordDict(), node, "query.identify") for node in grid.get_node_ids()])
    assert [answer.content[wire.NODE][wire.PARTITION] for answer in answers] == [0, 1, 2]


# In a process of its own: it changes Flower's modules.
_APART = """
import random, threading
from flwr.supercore import heartbeat
from flwr.supercore.retry.retry_invoker import full_jitter
from fedsim.federation._flwr_private import keep_draws_apart

def drawn(apart):
    random.seed(1)
    if apart:
        keep_draws_apart()
    waits = []
    sender = heartbeat.HeartbeatSender(lambda: True)
    sender._stop_event.wait = lambda seconds: waits.append(seconds) or sender._stop_event.set()
    sender._run()
    jitter = full_jitter(2.0)
    assert 0 < waits[0] < 60 and 0 <= jitter <= 2
    return random.random()

random.seed(1)
untouched = random.random()
print(drawn(False) != untouched, drawn(True) == untouched)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_flowers_threads_draw_from_a_generator_of_their_own():
    assert run(_APART) == "True True", "without it, a heartbeat changes which clients are drawn; with it, not"


def test_the_modules_of_the_app_import_no_torch():
    code = "import sys, fedsim.flower_app.client, fedsim.flower_app.server; print('torch' in sys.modules)"
    assert run(code) == "False"
