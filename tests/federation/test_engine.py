import logging
import socket
import subprocess
import sys

import engines
import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from processes import command, elsewhere

from fedsim import cli
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.federation.accuracy import evaluate
from fedsim.federation.aggregation import ClientsFailedError
from fedsim.federation.engine import train
from fedsim.federation.training import local_update
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader

DELTA = {"shares": "delta", "batch_size": 2, "local_steps": 2}
GRADIENT = {"shares": "gradient", "batch_size": 2}
SIX = {
    "FedAvg": {},
    "FedAdam": {"eta": 0.01},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.3},
    "Krum": {"num_malicious_nodes": 1},
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.01, "clipping_norm": 0.1},
}


def same(left, right):
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def captures_of(folder):
    """Return path -> bytes of everything that crossed the wire."""
    files = (folder.path / "captures").glob("round-*/*.safetensors")
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def lines_of(folder):
    return timeless(folder.rounds.read())


@pytest.mark.parametrize("recipe", [GRADIENT, DELTA], ids=["gradient", "delta"])
@pytest.mark.parametrize("strategy", SIX)
def test_the_final_model_is_bit_equal_with_and_without_the_observer(tiny_plan, run_folder, strategy, recipe):
    federation = {"clients": 5, "rounds": 2, "strategy": strategy, "strategy_params": SIX[strategy]}
    plan = tiny_plan(federation=federation, training=recipe)
    folder = run_folder(plan)
    observed = train(plan, folder)
    assert same(observed, train(plan, None))
    assert not same(observed, plan.initial_weights())
    assert [folder.captured(round) for round in (1, 2)] == [(0, 1, 2, 3, 4)] * 2


@pytest.mark.parametrize("recipe", [GRADIENT, DELTA], ids=["gradient", "delta"])
def test_captured_updates_are_what_the_clients_computed(tiny_plan, run_folder, recipe):
    plan = tiny_plan(training=recipe)
    folder = run_folder(plan)
    train(plan, folder)
    for round in (1, 2):
        for client in range(3):
            update = folder.read_update(round, client)
            weights = folder.read_global(round, client)
            expected = local_update(plan, client, round, weights).update
            assert (update.kind, update.num_examples) == (expected.kind, expected.num_examples)
            for name, tensor in expected.tensors.items():
                if recipe is GRADIENT:
                    assert torch.equal(update.tensors[name], tensor)
                else:
                    # Weights cross the wire, so the difference is rounded to their precision.
                    torch.testing.assert_close(update.tensors[name], tensor, rtol=0, atol=1e-6)
    assert same(folder.read_global(1, 0), plan.initial_weights())


def test_shared_gradients_and_fedavg_are_one_step_on_the_mean_gradient(tiny_plan, run_folder):
    plan = tiny_plan(training={**GRADIENT, "learning_rate": 0.5}, federation={"rounds": 1})
    folder = run_folder(plan)
    final = train(plan, folder)
    for name, weight in plan.initial_weights().items():
        mean = torch.stack([folder.read_update(1, client).tensors[name] for client in range(3)]).mean(0)
        torch.testing.assert_close(final[name], weight - 0.5 * mean, rtol=1e-5, atol=1e-6)


def test_every_round_is_evaluated_and_logged(tiny_plan, run_folder):
    # Type checks draw from `random`, as client sampling does: so many rounds that no luck picks the same two clients always.
    plan = tiny_plan(federation={"clients": 5, "rounds": 8, "fraction": 0.5})
    folder, heard = run_folder(plan), []
    final = train(plan, folder, heard.append)
    lines = folder.rounds.read()
    assert heard == lines and [line["round"] for line in lines] == list(range(9))
    assert [len(line["participants"]) for line in lines] == [0] + 8 * [2]
    assert len({tuple(line["participants"]) for line in lines[1:]}) > 1
    assert all(line["participants"] == list(folder.captured(line["round"])) for line in lines[1:])
    assert all(line["failed"] == {} and line["epsilon"] == {} and line["seconds"] >= 0 for line in lines)
    assert (lines[8]["accuracy"], lines[8]["loss"]) == evaluate(plan, final)
    assert (lines[0]["accuracy"], lines[0]["loss"]) == evaluate(plan, plan.initial_weights())
    assert folder.has_model()


# In a process of its own: the type checks that run under pytest draw from `random` in all threads, as client sampling does.
_TWICE = """
from pathlib import Path
import torch
from fedsim.federation.engine import train
from fedsim.planning import preparation
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse
plan = preparation.of(parse(resolved, "x"))
first, second = (train(plan, RunFolder.create(Path(place) / name, plan.scenario)) for name in ("first", "second"))
found = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
"""


def test_a_rerun_gives_the_same_bytes(tiny_scenario, tmp_path):
    federation = {"clients": 5, "rounds": 2, "fraction": 0.6}
    scenario = tiny_scenario(federation=federation, training=DELTA, attacks=[])
    assert elsewhere(_TWICE, resolved=scenario.resolved(), place=str(tmp_path))
    first, second = RunFolder.open(tmp_path / "first"), RunFolder.open(tmp_path / "second")
    assert captures_of(first) == captures_of(second) and len(captures_of(first)) == 8
    assert lines_of(first) == lines_of(second)


def test_another_seed_gives_another_run(tiny_plan):
    assert not same(train(tiny_plan(seed=1), None), train(tiny_plan(seed=2), None))


def test_flowers_log_is_quiet_inside_and_as_before_afterwards(tiny_plan, caplog):
    logger = logging.getLogger("flwr")
    before = logger.level
    with caplog.at_level(logging.INFO, "flwr"):
        train(tiny_plan(), None)
        assert logger.level == logging.INFO
    assert logger.level == before and not [r for r in caplog.records if r.name == "flwr"]


# Clients that fail


def failing(round=1, clients=(1,), **params):
    return {"name": "stubs:FailsIn", "clients": list(clients), "params": {"round": round, **params}}


@pytest.mark.parametrize("strategy", ["FedAvg", "FedMedian", "Krum", "DifferentialPrivacyServerSideFixedClipping"])
def test_a_client_that_raises_is_recorded_and_the_round_goes_on(tiny_plan, run_folder, strategy):
    federation = {"clients": 5, "strategy": strategy, "strategy_params": SIX[strategy]}
    plan = tiny_plan(federation=federation, defenses=[failing(round=1)])
    folder = run_folder(plan)
    final = train(plan, folder)
    first, second = folder.rounds.read()[1:]
    assert first["participants"] == [0, 2, 3, 4] and first["failed"] == {"1": "out of battery"}
    assert second["participants"] == [0, 1, 2, 3, 4] and second["failed"] == {}
    assert same(final, train(plan, None))


def test_an_update_that_overflows_counts_as_a_failure_with_advice(tiny_plan, run_folder):
    plan = tiny_plan(training={**DELTA, "learning_rate": 1e30})
    with pytest.raises(
        ScenarioError, match=r"^training\.learning_rate: no client delivered an update in round 1"
    ) as caught:
        train(plan, run_folder(plan))
    assert "not finite" in str(caught.value)


def test_when_all_clients_fail_the_run_stops_and_says_why(tiny_plan, run_folder):
    plan = tiny_plan(defenses=[failing(round=2, clients=(0, 1, 2))])
    folder = run_folder(plan)
    with pytest.raises(ClientsFailedError, match=r"no client delivered an update in round 2; client \d said: out of"):
        train(plan, folder)
    assert [line["round"] for line in folder.rounds.read()] == [0, 1] and not folder.has_model()
    assert folder.captured(1) == (0, 1, 2) and set(folder.failures(2)) == {0, 1, 2}


def test_an_update_that_cannot_be_stored_stops_the_run(tiny_plan, run_folder):
    plan = tiny_plan()
    folder = run_folder(plan)
    (folder.path / "captures").mkdir()
    (folder.path / "captures" / "round-0001").write_text("in the way")
    with pytest.raises(RunFolderError, match="could not be stored"):
        train(plan, folder)


def invoke(monkeypatch, capsys, *arguments):
    """Run the command line in this process; returns exit code and output."""
    monkeypatch.setattr("sys.argv", ["fedsim", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out + captured.err


@pytest.fixture
def scenario_file(tiny_scenario, tmp_path):
    def write(**parts):
        path = tmp_path / "scenario.yaml"
        path.write_text(yaml_loader.dump(tiny_scenario(**parts).resolved()))
        return path

    return write


def test_the_exit_code_is_1_when_a_client_failed_and_all_else_is_done(scenario_file, tmp_path, monkeypatch, capsys):
    scenario = scenario_file(defenses=[failing(round=1)])
    code, text = invoke(monkeypatch, capsys, "run", scenario, "--out", tmp_path / "run")
    assert code == 1 and "Clients failed in some rounds: 1" in text
    folder = RunFolder.open(tmp_path / "run")
    assert [(r["round"], r["client"]) for r in folder.records.read()] == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_exit_code_is_2_when_all_clients_failed_and_what_was_captured_is_audited(
    scenario_file, tmp_path, monkeypatch, capsys
):
    scenario = scenario_file(defenses=[failing(round=2, clients=(0, 1, 2))])
    code, text = invoke(monkeypatch, capsys, "run", scenario, "--out", tmp_path / "run")
    assert code == 2 and "no client delivered an update in round 2" in text and "Traceback" not in text
    assert len(RunFolder.open(tmp_path / "run").records.read()) == 3
    assert (tmp_path / "run" / "report.html").is_file()


# Ray


@pytest.mark.slow
def test_ray_trains_and_audits_to_the_same_bytes_as_the_inline_engine(scenario_file, tmp_path):
    # In processes of their own: the type checks that run under pytest draw from `random`, as client sampling does.
    scenario = scenario_file(**engines.PARTS)
    log = tmp_path / "log"
    process = command("run", scenario, "--engine", "inline", "--out", tmp_path / "inline", log=log)
    process.join(900)
    assert process.exitcode == 1, log.read_text()
    # Ray trains, and Ray audits; half a processor a task.
    arguments = ["run", scenario, "--engine", "ray", "--executor", "ray", "--set", "audit.task_cpus=0.5"]
    arguments += ["--out", tmp_path / "ray"]
    ended = subprocess.run([sys.executable, "-m", "fedsim", *arguments], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    inline, ray = RunFolder.open(tmp_path / "inline"), RunFolder.open(tmp_path / "ray")
    assert captures_of(ray) == captures_of(inline) and lines_of(ray) == lines_of(inline)
    assert timeless(ray.records.read()) == timeless(inline.records.read())
    assert (ray.path / "model.safetensors").read_bytes() == (inline.path / "model.safetensors").read_bytes()
    lines = inline.rounds.read()
    assert any(line["failed"] for line in lines) and any(line["epsilon"] for line in lines)
    assert len(ray.records.read()) == 3 and {len(line["participants"]) for line in lines[1:]} == {1, 2}


@pytest.mark.slow
def test_a_ray_cluster_that_does_not_answer_is_refused_at_once(monkeypatch):
    from fedsim.federation import engine_ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(FedsimError, match=rf"RAY_ADDRESS: {address} does not answer"):
        engine_ray.run(ServerApp(), ClientApp(), 1)
