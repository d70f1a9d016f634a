"""The ClientApp that a SuperNode starts anew for each message."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

# As in `fedsim.wire`, whose import takes seconds of processor time: a node says which client it is without them.
NODE, PARTITION = "node", "partition-id"

app = ClientApp()


@app.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Say which client this node is."""
    answer = ConfigRecord({PARTITION: int(context.node_config[PARTITION])})
    return Message(RecordDict({NODE: answer}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train as the scenario of the run configuration says."""
    from fedsim.federation.client_app import client_app
    from fedsim.flower_app.scenarios import named

    return client_app(named(str(context.run_config["scenario"])))(message, context)
