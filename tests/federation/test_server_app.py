import logging
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian

import fedsim
from fedsim import cli, wire
from fedsim.errors import FedsimError, RunFolderError
from fedsim.federation import engine_inline
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import yaml_loader

START = {"slope": np.arange(6, dtype=np.float32).reshape(2, 3), "offset": np.float32([0.5])}


def step(weights, partition, round):
    """What a client of the foreign app makes of the weights; float32 throughout."""
    generator = np.random.default_rng([partition, round])
    return {name: w + generator.standard_normal(w.shape).astype(np.float32) for name, w in weights.items()}


def foreign_client():
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition, round = context.node_config["partition-id"], int(message.content["config"].get("server-round", 0))
        weights = {name: array.numpy() for name, array in message.content["arrays"].items()}
        arrays = ArrayRecord({name: Array(w) for name, w in step(weights, partition, round).items()})
        metrics = MetricRecord({"num-examples": 10 + partition, "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})}), reply_to=message)

    return app


def foreign_server(strategy, results, start=START):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        arrays = ArrayRecord({name: Array(w) for name, w in start.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=2, timeout=60.0)
        results.append({name: array.numpy() for name, array in result.arrays.items()})

    return app


def run(server, client=None, clients=3):
    engine_inline.run(server, client or foreign_client(), clients)


def equal(left, right):
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
def test_a_foreign_app_trains_bit_for_bit_as_without_the_observer(tmp_path, strategy, monkeypatch):
    # Strategies draw the order of their float sum from `random`, and so do the type checks that run under pytest.
    monkeypatch.setattr("random.sample", lambda nodes, count: sorted(nodes)[:count])
    results = []
    run(foreign_server(strategy(), results))
    run(fedsim.observe(foreign_server(strategy(), results), folder=tmp_path / "run"))
    assert equal(*results) and not equal(results[0], START)


def test_the_captured_updates_are_those_of_the_foreign_clients(tmp_path):
    results = []
    run(fedsim.observe(foreign_server(FedMedian(), results), folder=tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    assert folder.captured_rounds() == (1, 2)
    weights = START
    for round in (1, 2):
        assert folder.captured(round) == (0, 1, 2)
        new = [step(weights, client, round) for client in range(3)]
        for client in range(3):
            update = folder.read_update(round, client)
            assert (update.kind, update.num_examples) == ("delta", 10 + client)
            sent = folder.read_global(round, client)
            assert equal({n: t.numpy() for n, t in sent.items()}, weights)
            assert equal(
                {n: t.numpy() for n, t in update.tensors.items()}, {n: new[client][n] - weights[n] for n in weights}
            )
        weights = {name: np.median([one[name] for one in new], axis=0).astype(np.float32) for name in START}
    assert equal(results[0], weights)


def test_a_loop_of_its_own_that_states_no_rounds_is_observed_too(tmp_path):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        for factor in (1, 2, 3):
            arrays = ArrayRecord({name: Array(factor * w) for name, w in START.items()})
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})})
            list(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))

    run(fedsim.observe(app, folder=tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    assert folder.captured_rounds() == (1, 2, 3)
    assert torch.equal(folder.read_global(3, 1)["slope"], 3 * torch.from_numpy(START["slope"]))


def test_a_fault_of_the_observer_is_logged_and_the_foreign_training_goes_on(tmp_path, caplog):
    results = []
    run(foreign_server(FedMedian(), results))
    (tmp_path / "run").mkdir()
    app = ServerApp()
    inner = foreign_server(FedMedian(), results)

    @app.main()
    def main(grid, context):
        (tmp_path / "run" / "captures").write_text("in the way")
        inner(grid, context)

    with caplog.at_level(logging.ERROR, "fedsim"):
        run(fedsim.observe(app, folder=tmp_path / "run"))
    assert equal(*results)
    assert "could not record" in caplog.text


def test_an_exception_of_the_foreign_app_passes_and_what_was_seen_is_on_disk(tmp_path):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        foreign_server(FedMedian(), [])(grid, context)
        raise ZeroDivisionError("theirs")

    with pytest.raises(ZeroDivisionError, match="theirs"):
        run(fedsim.observe(app, folder=tmp_path / "run"))
    assert RunFolder(tmp_path / "run").captured(2) == (0, 1, 2)


def test_nobody_else_works_on_the_folder_of_an_app_that_is_running(tmp_path):
    app, path = ServerApp(), tmp_path / "run"

    @app.main()
    def main(grid, context):
        with pytest.raises(RunFolderError, match="another fedsim process"), RunFolder(path).locked():
            pass

    run(fedsim.observe(app, folder=path))
    with RunFolder(path).locked():
        pass


def test_wrapping_touches_nothing_and_a_used_folder_is_refused_at_the_start(tmp_path):
    results = []
    first, second = (fedsim.observe(foreign_server(FedMedian(), results), folder=tmp_path / "run") for _ in range(2))
    assert not (tmp_path / "run").exists()
    run(first)
    with pytest.raises(RunFolderError, match="already exists and is not empty"):
        run(second)
    assert len(results) == 1


def test_a_faulty_scenario_is_refused_when_wrapping(tmp_path):
    (tmp_path / "audit.yaml").write_text("atacks: []")
    with pytest.raises(FedsimError, match="atacks: unknown key"):
        fedsim.observe(ServerApp(), folder=tmp_path / "run", scenario=tmp_path / "audit.yaml")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scenario": "audit.yaml", "model": "vit_nano"}, "give a scenario, or model, training and image_size"),
        ({"training": {"batch_size": 1}}, "say nothing without model"),
        ({"model": "vit_nano", "training": {"batchsize": 1}}, "training.batchsize: unknown key"),
    ],
)
def test_what_is_said_of_a_foreign_app_is_checked_when_wrapping(given, says, tmp_path):
    with pytest.raises(FedsimError, match=says):
        fedsim.observe(ServerApp(), folder=tmp_path / "run", **given)


def test_what_is_said_of_a_foreign_app_is_its_scenario_and_the_run_configuration_names_the_folder(tmp_path):
    server = foreign_server(FedMedian(), [])
    app = fedsim.observe(server, folder="nowhere", model="my_app.task:Net", training={"batch_size": 4}, image_size=64)
    engine_inline.run(app, foreign_client(), 3, {"fedsim-folder": str(tmp_path / "run")})
    assert yaml_loader.read(tmp_path / "run" / "scenario.yaml") == {
        "model": {"name": "my_app.task:Net"},
        "training": {"batch_size": 4},
        "data": {"image_size": 64},
    }


# Legacy apps


def legacy_apps(results):
    from flwr.client import NumPyClient
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg as LegacyFedAvg

    class LegacyClient(NumPyClient):
        def __init__(self, partition):
            self.partition = partition

        def fit(self, parameters, config):
            return [w + np.float32(1 + self.partition) for w in parameters], 10 + self.partition, {"loss": 0.5}

    class Keeping(LegacyFedAvg):
        def aggregate_fit(self, server_round, answers, failures):
            parameters, metrics = super().aggregate_fit(server_round, answers, failures)
            results.append(parameters_to_ndarrays(parameters))
            return parameters, metrics

    def server_fn(context):
        start = ndarrays_to_parameters(list(START.values()))
        strategy = Keeping(
            fraction_evaluate=0.0, initial_parameters=start, fit_metrics_aggregation_fn=lambda metrics: {}
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    client = ClientApp(client_fn=lambda context: LegacyClient(context.node_config["partition-id"]).to_client())
    return ServerApp(server_fn=server_fn), client


def test_a_legacy_app_is_observed_too(tmp_path):
    plain, observed = [], []
    run(*legacy_apps(plain))
    server, client = legacy_apps(observed)
    run(fedsim.observe(server, folder=tmp_path / "run"), client)
    assert len(plain) == 2
    for left, right in zip(plain, observed, strict=True):
        assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(left, right, strict=True))
    folder = RunFolder(tmp_path / "run")
    assert folder.captured_rounds() == (1, 2) and folder.captured(2) == (0, 1, 2)
    for client in range(3):
        update = folder.read_update(1, client)
        assert update.num_examples == 10 + client
        assert all(torch.equal(tensor, torch.full_like(tensor, 1.0 + client)) for tensor in update.tensors.values())


# From the observed app to the audit


class Audit:
    """An app that trains the tiny scenario's model, observed, and the command line on its folder."""

    def __init__(self, tmp_path, tiny_scenario, tiny_plan, monkeypatch, capsys):
        self.folder, self.file = tmp_path / "run", tmp_path / "audit.yaml"
        self._scenario, self._plan = tiny_scenario, tiny_plan
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def observe(self, model=None, **parts):
        self.file.write_text(yaml_loader.dump(self._scenario(**parts).resolved()))
        trained = self._plan(**({"model": model} if model else {}))
        start = {name: weight.numpy() for name, weight in trained.initial_weights().items()}
        server = foreign_server(FedMedian(), [], start)
        run(fedsim.observe(server, folder=str(self.folder), scenario=str(self.file)))

    def command(self, *arguments):
        self._monkeypatch.setattr("sys.argv", ["fedsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capsys.readouterr()
        return ended.value.code or 0, captured.out + captured.err


@pytest.fixture
def audit(tmp_path, tiny_scenario, tiny_plan, monkeypatch, capsys):
    return Audit(tmp_path, tiny_scenario, tiny_plan, monkeypatch, capsys)


def test_an_observed_app_is_audited_without_scores_and_with_a_caution(audit):
    audit.observe()
    code, text = audit.command("audit", audit.folder)
    assert code == 0, text
    found = RunFolder.open(audit.folder).records.read()
    assert [(record["round"], record["client"]) for record in found] == [(r, c) for r in (1, 2) for c in range(3)]
    for record in found:
        assert record["status"] == "found" and record["scores"] == {} and record["controls"] == {}
        assert any(caution.startswith("no truth: the run was observed") for caution in record["cautions"])
    assert (audit.folder / "report.html").is_file()


def test_labels_of_an_observed_run_cannot_be_granted(audit):
    audit.observe(threat={"grants": ["batch_size", "labels"]})
    code, text = audit.command("audit", audit.folder)
    assert code == 2 and "threat.grants: labels" in text and "was observed" in text
    assert RunFolder.open(audit.folder).records.read() == []


def test_an_observed_run_of_another_model_is_refused_with_the_first_difference(audit):
    audit.observe(model={"name": "vit_nano", "kwargs": {"depth": 1, "embed_dim": 32}})
    code, text = audit.command("audit", audit.folder)
    assert (
        code == 2
        and "what was captured is not of model vit_nano: cls_token is of shape (1, 1, 64) in the model" in text
    )
    assert "and of shape (1, 1, 32) in the capture" in text


def test_an_observed_run_is_not_trained_on(audit):
    audit.observe()
    before = RunFolder.open(audit.folder).read_capture(2, 0).arrays
    code, text = audit.command("run", "--resume", audit.folder)
    assert code == 2 and "was observed" in text and "fedsim audit" in text
    after = RunFolder.open(audit.folder)
    assert after.rounds.read() == [] and torch.equal(after.read_capture(2, 0).arrays["head.bias"], before["head.bias"])


def test_the_wire_names_of_records_and_tensors_are_kept():
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(2.0)}
    back = wire.to_tensors(wire.to_arrays(tensors))
    assert list(back) == ["b", "a"] and all(torch.equal(back[name], tensors[name]) for name in tensors)
