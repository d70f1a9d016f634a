"""The same app in Flower's legacy style: a NumPyClient and a strategy of `flwr.server`."""

from collections import OrderedDict

import torch
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp

import fedsim
from quickstart_app.task import Net, load_data, train


def _weights(net):
    return [tensor.numpy() for tensor in net.state_dict().values()]


class Client(NumPyClient):
    def __init__(self, partition):
        self.partition = partition

    def fit(self, parameters, config):
        net = Net()
        names = net.state_dict()
        net.load_state_dict(OrderedDict((n, torch.tensor(p)) for n, p in zip(names, parameters, strict=True)))
        images, labels = load_data(self.partition, 8)
        loss = train(net, images, labels, 1, 8, 0.01)
        return _weights(net), len(images), {"train_loss": loss, "partition-id": self.partition}


def _server(context):
    torch.manual_seed(0)
    strategy = FedAvg(fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters(_weights(Net())))
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))


client_app = ClientApp(client_fn=lambda context: Client(context.node_config["partition-id"]).to_client())
server_app = fedsim.observe(
    ServerApp(server_fn=_server),
    folder="runs/legacy",
    model="quickstart_app.task:Net",
    training={"shares": "delta", "batch_size": 8, "local_epochs": 1, "learning_rate": 0.01},
)
