"""The client side of the Flower app: a thin shell around `fedsim.federation.training`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import wire
from fedsim.federation import training
from fedsim.federation.limits import contained
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.recording.client_state import ClientState
from fedsim.scenario import Scenario, parse
from fedsim.seeds import torch_threads
from fedsim.strategies.building import CLIENT_SIDE_MODS


class Client:
    """Answers `train` and `query.identify` for whichever partition the node holds.

    Pickles to Ray's workers by the scenario alone; each worker builds its own plan once.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._resolved = json.dumps(scenario.resolved())

    def _plan(self) -> Plan:
        return planning.of(parse(json.loads(self._resolved), "scenario"))

    def train(self, message: Message, context: Context) -> Message:
        """Train on the partition's batches of the round and reply with the update.

        Raises:
            ClientTimeoutError: it takes longer than `federation.client_timeout`; see `limits.contained`.
        """
        plan = self._plan()
        return contained(lambda: self._train(plan, message, context), plan.scenario.federation.client_timeout)

    def _train(self, plan: Plan, message: Message, context: Context) -> Message:
        client = int(context.node_config[wire.PARTITION])
        config: Any = message.content[wire.CONFIG]
        weights = wire.to_tensors(message.content[wire.ARRAYS])  # type: ignore[arg-type]
        past = self._past(message, context)
        with torch_threads(1):
            result = training.local_update(
                plan, client, int(config[wire.ROUND]), weights, float(config.get("proximal-mu", 0.0)), past
            )
        update = result.update
        arrays = dict(update.tensors)
        if update.kind == "delta":
            arrays = {name: weights[name] + tensor for name, tensor in arrays.items()}
        arrays |= update.buffers
        stated: dict[str, Any] = {"kind": update.kind, **({"buffers": list(update.buffers)} if update.buffers else {})}
        content = RecordDict(
            {
                wire.ARRAYS: wire.to_arrays({name: arrays[name] for name in weights}),
                wire.METRICS: MetricRecord({wire.NUM_EXAMPLES: update.num_examples, wire.LOSS: result.loss}),
                wire.UPDATE: ConfigRecord(stated),
            }
        )
        if result.budget is not None:
            content[wire.PRIVACY] = ConfigRecord(asdict(result.budget))
        if result.logged:
            content[wire.LOGGED] = ConfigRecord(dict(result.logged))
        context.state["privacy"] = ConfigRecord({"participations": past.participations + 1})
        context.state.pop(wire.STATE, None)
        if result.state:
            content[wire.STATE] = context.state[wire.STATE] = ConfigRecord(result.state.to_wire())  # type: ignore[arg-type]
        return Message(content, reply_to=message)

    @staticmethod
    def _past(message: Message, context: Context) -> training.Past:
        """Return what the client brings from earlier rounds.

        That is what its node holds; after a restart the node holds nothing, and the server gives back what it has on record.
        """
        held: Any = context.state.get("privacy", {})
        config: Any = message.content[wire.CONFIG]
        participations = max(int(held.get("participations", 0)), int(config.get(wire.PARTICIPATIONS, 0)))
        if wire.PARTICIPATIONS in config:
            kept: Any = message.content.get(wire.STATE)
        else:
            kept = context.state.get(wire.STATE)
        return training.Past(participations, ClientState() if kept is None else ClientState.from_wire(kept))

    @staticmethod
    def identify(message: Message, context: Context) -> Message:
        """Say which partition this node holds."""
        answer = ConfigRecord({wire.PARTITION: int(context.node_config[wire.PARTITION])})
        return Message(RecordDict({wire.NODE: answer}), reply_to=message)


def client_app(scenario: Scenario) -> ClientApp:
    """Return the ClientApp of a scenario; it works for every partition."""
    client, app = Client(scenario), ClientApp()
    mod = CLIENT_SIDE_MODS.get(scenario.federation.strategy)
    app.train(mods=[mod] if mod else None)(client.train)
    app.query("identify")(client.identify)
    return app
