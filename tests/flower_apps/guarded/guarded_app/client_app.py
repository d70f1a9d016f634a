"""The client, with the guard."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.guarding import leak_guard
from guarded_app.task import LEARNING_RATE, MODEL, get_model, load_data
from guarded_app.task import train as train_locally

NOISE = {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 0.05}}

app = ClientApp()


def trained_on(message, context):
    return load_data(context.node_config["partition-id"])


def guard(message, context, call_next):
    policy, folder = context.run_config.get("policy", "warn"), context.run_config.get("guard-log", "")
    made = leak_guard(
        model=MODEL,
        data=trained_on,
        training={"shares": "delta", "batch_size": 1, "local_steps": 1, "learning_rate": LEARNING_RATE},
        policy=policy,
        defense=NOISE if policy == "add" else None,
        seconds=600.0,  # of wall time, and a machine that runs server and clients is busy
        log=Path(folder) / f"client-{context.node_config['partition-id']}.jsonl" if folder else None,
    )
    return made(message, context, call_next)


@app.train(mods=[guard])
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    model = get_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition = context.node_config["partition-id"]
    loss = train_locally(model, *load_data(partition))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"train_loss": loss, "num-examples": 1}),
        # For scores alone: which data this node holds. Flower's strategies ignore it.
        "fedsim": ConfigRecord({"partition-id": partition}),
    }
    return Message(RecordDict(content), reply_to=message)
