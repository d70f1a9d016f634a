"""A strategy whose every aggregate is checked: a model that is missing or not finite stops the run, and names it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim import wire
from fedsim.errors import FedsimError, ScenarioError, printable, told, without_numbers
from fedsim.federation.training import NonFiniteUpdateError
from fedsim.federation.validity import tensors_fault
from fedsim.scenario import FederationPart
from fedsim.strategies.building import all_parameters, build_strategy
from fedsim.strategies.constraints import clients_fault
from fedsim.strategies.quiet import quiet_flower

_log = logging.getLogger(__name__)

# Flower warns of every strategy without client-side evaluation, which is ours by design.
_BY_DESIGN = "fraction_evaluate is set to 0.0"
_MOST = 20
_LONGEST = 300


class ClientsFailedError(FedsimError):
    """No client of a round delivered an update, so there is nothing to aggregate or audit."""


class Warnings:
    """What was warned of in a run, each once: sentences that differ in numbers alone are one."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[str] = []

    def add(self, text: str) -> None:
        """Log a warning and keep it, unless it is known or too many are."""
        line = printable(" ".join(text.split()), _LONGEST)
        pattern = without_numbers(line)
        if not line or line.startswith(_BY_DESIGN) or pattern in self._known or len(self._known) == _MOST:
            return
        self._known.add(pattern)
        self._new.append(line)
        _log.warning("%s", line)

    def take(self) -> list[str]:
        """Return what has come since the last call."""
        new, self._new = self._new, []
        return new


class CheckedStrategy(Strategy):
    """Flower's strategy of a scenario, with its aggregates checked, its exceptions named and its warnings kept.

    Args:
        part: the scenario's part.
        client_of: node id -> client number.

    Raises:
        ScenarioError: the strategy cannot be built.
    """

    def __init__(self, part: FederationPart, client_of: Mapping[int, int]) -> None:
        self.warnings = Warnings()
        heard: list[str] = []
        self._inner = build_strategy(part, heard)
        for text in heard:
            self.warnings.add(text)
        self._part, self._client_of = part, client_of
        self._sent = ArrayRecord()
        self._has_moved = False

    def summary(self) -> None:
        """See `Strategy.summary`."""
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `Strategy.configure_train`."""
        self._sent = arrays
        with self._heard_and_named(f"begin round {server_round}"):
            return list(self._inner.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `Strategy.aggregate_train`.

        Where clients have failed, a strategy may leave the model as it is for a round, which is a warning of the round.

        Raises:
            ClientsFailedError: no client has delivered an update.
            ScenarioError: the strategy raises; or returns nothing although every client has delivered, or in all rounds;
                or what it returns is no model, or not finite.
        """
        received = list(replies)
        failed = [reply for reply in received if reply.has_error()]
        if len(failed) == len(received):
            self._refuse_all(server_round, failed)
        delivered = len(received) - len(failed)
        with self._heard_and_named(f"aggregate round {server_round}"):
            arrays, metrics = self._inner.aggregate_train(server_round, received)
        if not arrays:
            self._check_standstill(server_round, delivered, len(failed))
            return None, metrics
        if failed:
            fault = clients_fault(self._part.strategy, all_parameters(self._part), delivered)
            # A wrapper that went on without a client has warned of it in Flower's words.
            if fault is not None and fault.parameter != "num_sampled_clients":
                self.warnings.add(f"federation.strategy_params.{fault.parameter}: {fault.message}")
        self._check_model(server_round, arrays)
        self._has_moved = True
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `Strategy.configure_evaluate`."""
        return self._inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """See `Strategy.aggregate_evaluate`."""
        return self._inner.aggregate_evaluate(server_round, replies)

    def _refuse(self, text: str) -> NoReturn:
        raise ScenarioError(
            "federation.strategy",
            f"{self._part.strategy} {text}. Change federation.strategy_params, or use another strategy.",
        )

    @contextlib.contextmanager
    def _heard_and_named(self, task: str) -> Iterator[None]:
        try:
            with quiet_flower() as heard:
                yield
        except FedsimError:
            raise
        except Exception as error:  # noqa: BLE001  (boundary: whatever a strategy of Flower's raises is told with its name)
            self._refuse(f"could not {task}: {told(error)}")
        finally:
            for text in heard:
                self.warnings.add(text)

    def _refuse_all(self, round: int, failed: list[Message]) -> NoReturn:
        said = {self._client_of[reply.metadata.src_node_id]: reply.error.reason or "" for reply in failed}
        if not said:
            raise ClientsFailedError(f"no client delivered an update in round {round}; none was asked.")
        client, reason = min(said.items())
        message = wire.failure_text(reason)
        text = f"no client delivered an update in round {round}; client {client} said: {message}."
        if NonFiniteUpdateError.advice in message:
            raise ScenarioError("training.learning_rate", text)
        raise ClientsFailedError(text)

    def _check_standstill(self, round: int, delivered: int, failed: int) -> None:
        clients = f"{delivered} replies" if delivered != 1 else "1 reply"
        if not failed:
            self._refuse(f"returned no model in round {round} from {clients}, so nothing would be trained")
        if round == self._part.rounds and not self._has_moved:
            self._refuse(
                f"returned no model in any round up to the last, {round}, so nothing was trained: it had {clients} and "
                f"{failed} failed there"
            )
        self.warnings.add(
            f"federation.strategy: {self._part.strategy} returned no model in round {round} from {clients} while {failed} "
            "failed; the model stays as it was."
        )

    def _check_model(self, round: int, arrays: ArrayRecord) -> None:
        found, sent = wire.to_tensors(arrays), wire.to_tensors(self._sent)
        # Some strategies compute in double precision.
        expected = {name: tensor.to(found[name].dtype) if name in found else tensor for name, tensor in sent.items()}
        fault = tensors_fault(found, expected)
        if fault is not None:
            self._refuse(f"made no model of the finite replies of round {round}: {fault}")
