"""The client side of the Flower app: a thin shell around `fedsim.training`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import plan as planning
from fedsim import training
from fedsim.client_state import ClientState
from fedsim.federation import records
from fedsim.federation.limits import contained
from fedsim.federation.strategy import CLIENT_SIDE_MODS
from fedsim.scenario import Scenario, parse
from fedsim.seeds import torch_threads


class Client:
    """Answers `train` and `query.identify` for whichever partition the node holds.

    Pickles to Ray's workers by the scenario alone; each worker builds its own plan once.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._resolved = json.dumps(scenario.resolved())

    def _plan(self) -> planning.Plan:
        return planning.of(parse(json.loads(self._resolved), "scenario"))

    def train(self, message: Message, context: Context) -> Message:
        """Train on the partition's batches of the round and reply with the update.

        Raises:
            ClientTimeoutError: it takes longer than `federation.client_timeout`; see `limits.contained`.
        """
        plan = self._plan()
        return contained(lambda: self._train(plan, message, context), plan.scenario.federation.client_timeout)

    def _train(self, plan: planning.Plan, message: Message, context: Context) -> Message:
        client = int(context.node_config[records.PARTITION])
        config: Any = message.content[records.CONFIG]
        weights = records.to_tensors(message.content[records.ARRAYS])  # type: ignore[arg-type]
        past = self._past(message, context)
        with torch_threads(1):
            result = training.local_update(
                plan, client, int(config[records.ROUND]), weights, float(config.get("proximal-mu", 0.0)), past
            )
        update = result.update
        arrays = dict(update.tensors)
        if update.kind == "delta":
            arrays = {name: weights[name] + tensor for name, tensor in arrays.items()}
        arrays |= update.buffers
        stated: dict[str, Any] = {"kind": update.kind, **({"buffers": list(update.buffers)} if update.buffers else {})}
        content = RecordDict(
            {
                records.ARRAYS: records.to_arrays({name: arrays[name] for name in weights}),
                records.METRICS: MetricRecord({records.NUM_EXAMPLES: update.num_examples, records.LOSS: result.loss}),
                records.UPDATE: ConfigRecord(stated),
            }
        )
        if result.budget is not None:
            content[records.PRIVACY] = ConfigRecord(asdict(result.budget))
        context.state["privacy"] = ConfigRecord({"participations": past.participations + 1})
        context.state.pop(records.STATE, None)
        if result.state:
            content[records.STATE] = context.state[records.STATE] = ConfigRecord(result.state.to_wire())  # type: ignore[arg-type]
        return Message(content, reply_to=message)

    @staticmethod
    def _past(message: Message, context: Context) -> training.Past:
        """Return what the client brings from earlier rounds.

        That is what its node holds; after a restart the node holds nothing, and the server gives back what it has on record.
        """
        held: Any = context.state.get("privacy", {})
        config: Any = message.content[records.CONFIG]
        participations = max(int(held.get("participations", 0)), int(config.get(records.PARTICIPATIONS, 0)))
        if records.PARTICIPATIONS in config:
            kept: Any = message.content.get(records.STATE)
        else:
            kept = context.state.get(records.STATE)
        return training.Past(participations, ClientState() if kept is None else ClientState.from_wire(kept))

    @staticmethod
    def identify(message: Message, context: Context) -> Message:
        """Say which partition this node holds."""
        answer = ConfigRecord({records.PARTITION: int(context.node_config[records.PARTITION])})
        return Message(RecordDict({records.NODE: answer}), reply_to=message)


def client_app(scenario: Scenario) -> ClientApp:
    """Return the ClientApp of a scenario; it works for every partition."""
    client, app = Client(scenario), ClientApp()
    mod = CLIENT_SIDE_MODS.get(scenario.federation.strategy)
    app.train(mods=[mod] if mod else None)(client.train)
    app.query("identify")(client.identify)
    return app
