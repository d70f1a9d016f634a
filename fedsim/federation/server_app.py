"""The server side of the Flower app, and the observer for anybody's ServerApp."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedsim import wire
from fedsim.defense import PrivacyBudget
from fedsim.deployment.options import NODE_TIMEOUT
from fedsim.errors import FedsimError, RunFolderError, ScenarioError
from fedsim.federation.accuracy import evaluate
from fedsim.federation.aggregation import CheckedStrategy, Warnings
from fedsim.federation.capture import Recorder, Replayer, keep_refused
from fedsim.federation.grid import (
    AppliedGradientsGrid,
    CheckingGrid,
    CompletingGrid,
    Exchange,
    ObservingGrid,
    OrderedGrid,
    ReplayingGrid,
    partitions,
)
from fedsim.federation.replies import ReplyCheck
from fedsim.planning.plan import Plan
from fedsim.recording import environment, observed
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import Scenario, load, parse
from fedsim.seeds import seeded
from fedsim.strategies import central_privacy
from fedsim.strategies.building import all_parameters
from fedsim.strategies.constraints import MEAN_ALONE

_log = logging.getLogger(__name__)

RoundLine = dict[str, Any]
# Flower's default time to live of a message: a client that has not answered by then never will.
_TIMEOUT = 43_200.0
# For workers to start and to read the data, which is no client's time.
_PREPARATION = 600.0
# Of an app's run configuration: `flwr run` works in a directory of its own, so that a relative folder is nowhere in particular.
_FOLDER_KEY = "fedsim-folder"


def server_app(
    plan: Plan,
    folder: RunFolder | None,
    on_round: Callable[[RoundLine], None] | None = None,
    on_model: Callable[[dict[str, Tensor]], None] | None = None,
    node_timeout: float = NODE_TIMEOUT,
) -> ServerApp:
    """Return the ServerApp of a plan; with a folder it observes, records, and resumes what the folder already holds.

    Args:
        plan: the run's plan.
        folder: where captures and rounds go; None trains and evaluates without an observer.
        on_round: called with each line of rounds.jsonl, new or found in the folder.
        on_model: called with the final global weights.
        node_timeout: seconds until a node for each client has to be there.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        scenario = plan.scenario
        client_of = partitions(grid, _wait_for_nodes(grid, scenario.federation.clients, node_timeout), _TIMEOUT)
        _check_clients(client_of, scenario.federation.clients)
        check = ReplyCheck(plan)
        strategy = CheckedStrategy(scenario.federation, client_of)
        log = _RoundLog(plan, strategy.warnings, on_round)

        def keep(exchange: Exchange, fault: str) -> None:
            if folder is not None:
                keep_refused(folder, client_of[exchange.request.metadata.dst_node_id], exchange, fault)

        def patience(count: int) -> float:
            # Clients keep their own time, and may have to wait for one another; this is for one that no longer can.
            return min(_TIMEOUT, scenario.federation.client_timeout * count + _PREPARATION)

        grid = CheckingGrid(grid, check.fault, keep, patience)
        if folder is not None:
            grid = log.recorded(grid, folder, client_of, check)
        grid = OrderedGrid(grid, client_of)
        if scenario.training.shares == "gradient":
            grid = AppliedGradientsGrid(grid, scenario.learning_rate)
        if plan.added and scenario.federation.strategy in MEAN_ALONE:
            grid = CompletingGrid(grid, lambda node, round: plan.untrained(client_of[node], round))
        # Strategies draw clients from `random` and noise from NumPy's global generator.
        try:
            with seeded(scenario.seed, "server"):
                result = strategy.start(
                    grid=grid,
                    initial_arrays=wire.to_arrays(plan.initial_weights()),
                    num_rounds=scenario.federation.rounds,
                    timeout=_TIMEOUT,
                    evaluate_fn=log,
                )
        finally:
            log.flush()
        weights = wire.to_tensors(result.arrays)
        if folder is not None:
            folder.write_model(weights)
        if on_model:
            on_model(weights)

    return app


def _wait_for_nodes(grid: Grid, count: int, seconds: float) -> list[int]:
    """Return the nodes once there are as many as clients.

    Raises:
        FedsimError: they do not come in time.
    """
    end = time.monotonic() + seconds
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > end:
            raise FedsimError(
                f"federation.clients: {len(nodes)} of {count} nodes have come within {seconds:g} s. Start a SuperNode for each "
                f'client, with --node-config "partition-id=I num-partitions={count}" for I from 0 to {count - 1}, and look '
                "into the logs of those that you have started."
            )
        time.sleep(0.1)
    return nodes


def _check_clients(client_of: Mapping[int, int], count: int) -> None:
    """Refuse nodes that are not one for each client.

    Raises:
        FedsimError: names the clients that have none, or several, or that the scenario does not have.
    """
    found = Counter(client_of.values())
    wrong = {
        "without a node": sorted(set(range(count)) - set(found)),
        "with several nodes": sorted(client for client, nodes in found.items() if nodes > 1),
        "beyond federation.clients": sorted(client for client in found if not 0 <= client < count),
    }
    said = [f"{', '.join(map(str, clients[:10]))} {what}" for what, clients in wrong.items() if clients]
    if said:
        raise FedsimError(
            f"federation.clients: {count}, from 0 to {count - 1}, and of the nodes' clients these are: {'; '.join(said)}. "
            'Start one SuperNode for each client: its number is the partition-id of --node-config "partition-id=I".'
        )


class _RoundLog:
    """Central evaluation after each round; with a folder, written to rounds.jsonl together with who took part."""

    def __init__(self, plan: Plan, warnings: Warnings, on_round: Callable[[RoundLine], None] | None) -> None:
        self._plan, self._warnings, self._on_round = plan, warnings, on_round
        self._folder: RunFolder | None = None
        self._observing: ObservingGrid | None = None
        self._recorder: Recorder | None = None
        self._replayer: Replayer | None = None
        self._known: dict[int, RoundLine] = {}
        self._released: dict[int, dict[int, int]] = {}
        self._started = time.monotonic()

    def recorded(self, grid: Grid, folder: RunFolder, client_of: Mapping[int, int], check: ReplyCheck) -> Grid:
        """Return the grid with the observer and the replay of `folder` in it, and log rounds there."""
        self._folder = folder
        self._known = {line["round"]: line for line in folder.rounds.read()}
        self._recorder = Recorder(folder, client_of.__getitem__)
        self._observing = ObservingGrid(grid, self._recorder)
        self._replayer = Replayer(folder, client_of.__getitem__, check.fault)
        return ReplayingGrid(self._observing, self._replayer.replay, self._replayer.prepare)

    def __call__(self, round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global weights after a round: Flower's `evaluate_fn`."""
        if self._folder is not None:
            self._check_stored(self._folder)
        line, warnings = self._known.get(round), self._warnings.take()
        is_trained_again = self._replayer is not None and round in self._replayer.asked
        if line is None or is_trained_again:
            accuracy, loss = evaluate(self._plan, wire.to_tensors(arrays))
            if not math.isfinite(loss):
                self._refuse_loss(round, loss)
            made: RoundLine = {"schema": SCHEMA, "round": round, "accuracy": accuracy, "loss": loss}
            if self._folder is not None:
                made.update(self._exchanged(self._folder, round))
                # Only where there are some: a round without looks as it always has.
                made.update({"warnings": warnings} if warnings else {})
                if line is None:
                    self._folder.rounds.append(made)
                else:
                    _compare(self._folder, line, made)
            line = line or made
        if self._on_round:
            self._on_round(line)
        return MetricRecord({"accuracy": line["accuracy"], "loss": line["loss"]})

    def _refuse_loss(self, round: int, loss: float) -> NoReturn:
        strategy = self._plan.scenario.federation.strategy
        raise ScenarioError(
            "training.learning_rate" if strategy == "FedAvg" else "federation.strategy",
            f"the loss of the global model after round {round} is {loss}: its weights, which {strategy} aggregated, are too "
            "large to compute with. Lower training.learning_rate, the rates and the noise in federation.strategy_params, or "
            "the noise of a defense.",
        )

    def flush(self) -> None:
        """Wait until what crossed the wire is on disk, however the training has ended."""
        if self._recorder is not None and self._observing is not None:
            _flush(self._recorder, self._observing)

    def _check_stored(self, folder: RunFolder) -> None:
        """Stop a run whose captures cannot be stored."""
        self.flush()
        if self._observing is not None and self._observing.errors:
            first = self._observing.errors[0]
            raise RunFolderError(f"{folder.path}: an update could not be stored: {first}") from first

    def _exchanged(self, folder: RunFolder, round: int) -> RoundLine:
        now = time.monotonic()
        seconds, self._started = now - self._started, now
        participants = list(folder.captured(round))
        sides = {client: folder.read_side(round, client) for client in participants}
        exchanged: RoundLine = {
            "participants": participants,
            "failed": {str(client): text for client, text in sorted(folder.failures(round).items())},
            "epsilon": {str(c): side[wire.PRIVACY] for c, side in sides.items() if wire.PRIVACY in side},
        }
        logged = {str(c): side[wire.LOGGED] for c, side in sides.items() if wire.LOGGED in side}
        exchanged.update({"logged": logged} if logged else {})
        released = self._global_models_budget(folder, round)
        if released is not None:
            finite = released.epsilon if math.isfinite(released.epsilon) else None
            exchanged["global_model_epsilon"] = {**asdict(released), "epsilon": finite}
        return {**exchanged, "seconds": float(f"{seconds:.4g}")}

    def _global_models_budget(self, folder: RunFolder, round: int) -> PrivacyBudget | None:
        """Return what the strategy's noise promises against observers of the global models alone; None where nothing."""
        part = self._plan.scenario.federation
        if not central_privacy.is_central(part.strategy) or round == 0:
            return None
        # Flower clips no parameter that is a single number.
        has_bare = any(tensor.ndim == 0 for tensor in self._plan.initial_weights().values())
        if has_bare or central_privacy.unaccounted(part.strategy, part.strategy_params) is not None:
            return None
        for one in range(1, round + 1):
            if one not in self._released:
                # A wrapper releases no average of a round in which a client failed.
                clients = () if folder.failures(one) else folder.captured(one)
                self._released[one] = {c: folder.reported_examples(folder.read_header(one, c)) for c in clients}
        params = all_parameters(part)
        sampled, multiplier = int(params["num_sampled_clients"]), float(params["noise_multiplier"])
        rounds = (self._released[one] for one in range(1, round + 1))
        return central_privacy.global_models_budget(multiplier, sampled, rounds)


def _compare(folder: RunFolder, known: RoundLine, made: RoundLine) -> None:
    """Refuse to go on from a round of which a lost reply came out in another way than before.

    Raises:
        RunFolderError: names the round and the first difference.
    """
    for name in ("participants", "failed", "epsilon", "accuracy", "loss"):
        if known.get(name, made[name]) != made[name]:
            raise RunFolderError(
                f"{folder.rounds.path}: round {made['round']} was trained again, since captures of it were missing, and its "
                f"{name} is now {made[name]}, not {known.get(name)}. Restore the captures, or what made them (environment.json "
                "names the versions), or start another run."
            )


def observe(
    inner: ServerApp,
    *,
    folder: str | Path,
    scenario: str | Path | None = None,
    model: str | Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> ServerApp:
    """Put an honest-but-curious observer into anybody's Flower app: every client's update is captured to disk.

    The wrapped app trains exactly as before: the observer sits between the strategy and the wire, only reads, and a
    fault of its own is logged and never reaches the training.

        app = fedsim.observe(app, folder="runs/my-app", model="my_app.task:Net", training={"batch_size": 32})

    Args:
        inner: the app's ServerApp, with any strategy, in simulation or deployment.
        folder: run folder to write; the app refuses to start when something is in it. The key `fedsim-folder` of the app's run
            configuration, where it is set, names another one.
        scenario: a file with what `fedsim audit FOLDER` needs to know (model, threat, attacks), in the place of the arguments
            below; with neither, `fedsim audit FOLDER --scenario FILE` names it later.
        model: what the clients train, as under `model` of a scenario: a model of timm, a "module:factory", or a mapping.
        training: what the clients do, as under `training` of a scenario; state what is known and no more.
        image_size: side of the model's input; 32 otherwise.

    Returns:
        A ServerApp to use in the inner one's place.

    Raises:
        FedsimError: the scenario is refused, or is given twice.
    """
    loaded = _observed_scenario(scenario, model, training, image_size)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # Not before the app runs: clients' processes may import the module that calls `observe`, too.
        path = Path(str(context.run_config.get(_FOLDER_KEY) or folder)).absolute()
        run_folder = RunFolder.create(path, None)
        numbers: dict[int, int] = {}

        def client_of(node: int) -> int:
            if node not in numbers:
                for known in sorted({*grid.get_node_ids(), node}):
                    numbers.setdefault(known, len(numbers))
            return numbers[node]

        with run_folder.locked():
            run_folder.write(path / "environment.json", environment.as_json("observed"))
            if loaded is not None:
                run_folder.write_scenario(loaded)
            recorder = Recorder(run_folder, client_of, names_nodes=True)
            observing = ObservingGrid(grid, recorder)
            try:
                inner(observing, context)
            finally:
                _flush(recorder, observing)
                _tell(run_folder, recorder, observing)

    return app


def _observed_scenario(
    scenario: str | Path | None,
    model: str | Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
    image_size: int | None,
) -> Scenario | None:
    """Return what `observe` was told of the app; None where it was told nothing.

    Raises:
        ScenarioError: it is refused, or is given twice.
    """
    parts = {
        "model": model if model is None or isinstance(model, str) else dict(model),
        "training": None if training is None else dict(training),
        "data": None if image_size is None else {"image_size": image_size},
    }
    given = {name: part for name, part in parts.items() if part is not None}
    if scenario is not None:
        if given:
            raise ScenarioError("observe", "give a scenario, or model, training and image_size, and not both.")
        return load(Path(scenario))[0]
    if given and model is None:
        raise ScenarioError("observe", "training and image_size say nothing without model. Name the app's model.")
    return parse(given, "observe") if given else None


def _tell(folder: RunFolder, recorder: Recorder, observing: ObservingGrid) -> None:
    """Store what was seen, and log what is missing: the last thing that the observer does, and no fault of the app."""
    try:
        observed.write_log(folder, recorder.seen, recorder.skipped, observing.errors)
        for reason, count in recorder.skipped.items():
            _log.error("fedsim left %d replies out: %s", count, reason)
        if not folder.captured_rounds():
            observed.read(folder)
    except (OSError, FedsimError) as error:
        _log.error("fedsim: %s", error)


def _flush(recorder: Recorder, observing: ObservingGrid) -> None:
    """Wait for the disk; a fault is the observer's own, so it is logged and kept, never raised into the training."""
    for error in recorder.flush():
        _log.error("fedsim could not record an exchange: %s", error)
        observing.errors.append(error)
