"""The client: it sends the head alone."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from vit_head_app.task import get_model, load_data
from vit_head_app.task import train as train_locally

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    model, config = get_model(), context.run_config
    model.head.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition = context.node_config["partition-id"]
    images, labels = load_data(partition, config.get("images", 8))
    loss = train_locally(
        model,
        images,
        labels,
        config.get("local-epochs", 1),
        config.get("batch-size", 8),
        config.get("learning-rate", 0.05),
    )
    content = {
        "arrays": ArrayRecord(model.head.state_dict()),
        "metrics": MetricRecord({"train_loss": loss, "num-examples": len(images)}),
        # For scores alone: which data this node holds. Flower's strategies ignore it.
        "fedsim": ConfigRecord({"partition-id": partition}),
    }
    return Message(RecordDict(content), reply_to=message)
