"""The client."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart_app.task import Net, load_data, test
from quickstart_app.task import train as train_locally

app = ClientApp()


def _given(message: Message, context: Context):
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition = context.node_config["partition-id"]
    return net, partition, *load_data(partition, context.run_config.get("images", 8))


@app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    net, partition, images, labels = _given(message, context)
    config = context.run_config
    loss = train_locally(
        net,
        images,
        labels,
        config.get("local-epochs", 1),
        config.get("batch-size", 8),
        config.get("learning-rate", 0.01),
    )
    content = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"train_loss": loss, "num-examples": len(images)}),
        # For scores alone: which data this node holds. Flower's strategies ignore it.
        "fedsim": ConfigRecord({"partition-id": partition}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    net, _, images, labels = _given(message, context)
    loss, accuracy = test(net, images, labels)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(images)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
