"""What a train reply of fedsim's own clients must hold; asked where it arrives, before the strategy or an attack sees it.

A foreign app that is merely observed is not judged: see `fedsim.observe`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedsim import wire
from fedsim.errors import told
from fedsim.exchange import UpdateKind
from fedsim.federation.grid import Exchange
from fedsim.federation.training import NonFiniteUpdateError, most_examples
from fedsim.federation.validity import examples_fault, tensors_fault
from fedsim.planning.plan import Plan
from fedsim.recording.client_state import ClientState
from fedsim.strategies.building import client_metrics
from fedsim.validation import shown

_LONGEST_NAME = 300  # characters: what a client states stands in headers and on the lines of rounds
_MOST_LOGGED = 1000


class ReplyCheck:
    """Says what is wrong with a train reply to a plan's server."""

    def __init__(self, plan: Plan) -> None:
        self._kind: UpdateKind = plan.scenario.training.shares
        self._rate = plan.scenario.learning_rate
        self._initial = plan.initial_weights()
        self._buffers = plan.buffers
        self._strategy = plan.scenario.federation.strategy
        self._metrics = client_metrics(self._strategy)
        self._most_examples = most_examples(plan)
        self._sent: tuple[ArrayRecord, dict[str, Tensor]] | None = None

    def fault(self, exchange: Exchange) -> str | None:
        """Return the first fault of a train reply, in one line, or None; other messages have none."""
        if exchange.request.metadata.message_type != "train":
            return None
        content = exchange.reply.content
        for found, expected in ((content.array_records, wire.ARRAYS), (content.metric_records, wire.METRICS)):
            if list(found) != [expected]:
                return f"expected {expected} as its only record of that type, got {shown(list(found))}"
        return (
            self._metrics_fault(content.metric_records[wire.METRICS])
            or self._kind_fault(content)
            or _privacy_fault(content)
            or _state_fault(content)
            or _logged_fault(content)
            or self._arrays_fault(exchange.request.content, content)
        )

    def _metrics_fault(self, metrics: Mapping[str, Any]) -> str | None:
        if set(metrics) != self._metrics:
            return f"expected the metrics {', '.join(sorted(self._metrics))}, got {shown(sorted(metrics))}"
        for name, value in metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                return f"the metric {name} is {shown(value)}, expected a finite number"
        return examples_fault(metrics[wire.NUM_EXAMPLES], self._most_examples)

    def _kind_fault(self, content: RecordDict) -> str | None:
        record = content.config_records.get(wire.UPDATE)
        stated = None if record is None else record.get("kind")
        if stated != self._kind:
            return f"it states to hold {shown(stated)}, expected a {self._kind}"
        buffers = [] if record is None else record.get("buffers", [])
        if buffers != list(self._buffers):
            return f"it states to hold the buffers {shown(buffers)}, expected {shown(list(self._buffers))}"
        return None

    def _arrays_fault(self, request: RecordDict, reply: RecordDict) -> str | None:
        weights = self._weights(request.array_records[wire.ARRAYS])
        config: Any = request.config_records[wire.CONFIG]
        try:
            arrays = wire.to_tensors(reply.array_records[wire.ARRAYS])
        except Exception as error:  # noqa: BLE001  (boundary: whatever its bytes make a decoder raise is the client's fault)
            return f"its arrays cannot be read: {told(error)}"
        # A gradient is in the parameters' own format, also where a strategy sends out weights in another.
        fault = tensors_fault(arrays, self._initial if self._kind == "gradient" else weights)
        return fault or self._step_fault(weights, arrays, self._rate(int(config[wire.ROUND])))

    def _step_fault(self, weights: Mapping[str, Tensor], arrays: Mapping[str, Tensor], rate: float) -> str | None:
        """Return why the strategy cannot aggregate the weights that the update leads to, or None."""
        has_moved = False
        for name, weight in weights.items():
            is_step = self._kind == "gradient" and name not in self._buffers
            new = weight - rate * arrays[name] if is_step else arrays[name]
            if not bool(torch.isfinite(new).all()):
                return f"{name} overflows in a step on its gradient; {NonFiniteUpdateError.advice}"
            has_moved = has_moved or not torch.equal(new, weight)
        if not has_moved and self._strategy.startswith("DifferentialPrivacyServerSide"):
            return f"its update leaves the model as it is, and {self._strategy} divides by its norm"
        return None

    def _weights(self, sent: ArrayRecord) -> dict[str, Tensor]:
        # Strategies put one shared record into all messages of a round: it is decoded once.
        if self._sent is None or self._sent[0] is not sent:
            self._sent = (sent, wire.to_tensors(sent))
        return self._sent[1]


def _privacy_fault(content: RecordDict) -> str | None:
    stated = content.config_records.get(wire.PRIVACY)
    if stated is None:
        return None
    numbers, relation = [stated.get(name) for name in ("epsilon", "delta")], stated.get("neighbors")
    fits = all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers)
    is_named = isinstance(relation, str) and len(relation) <= _LONGEST_NAME
    if not fits or not is_named or len(stated) != 3:
        return f"it states the privacy budget {shown(dict(stated))}, expected epsilon, delta and neighbors"
    return None


def _logged_fault(content: RecordDict) -> str | None:
    logged: Mapping[str, Any] = content.config_records.get(wire.LOGGED, {})
    if len(logged) > _MOST_LOGGED:
        return f"it logs {len(logged)} numbers, expected at most {_MOST_LOGGED}"
    for name, value in logged.items():
        if len(name) > _LONGEST_NAME:
            return f"it logs a number under a name of {len(name)} characters, expected at most {_LONGEST_NAME}"
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"it logs {shown(value)} as {shown(name)}, expected a finite number"
    return None


def _state_fault(content: RecordDict) -> str | None:
    kept = content.config_records.get(wire.STATE)
    try:
        if kept is not None:
            ClientState.from_wire(kept)
    except ValueError as error:
        return str(error)
    return None
