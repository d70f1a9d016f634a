"""The server, with the observer."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import fedsim
from quickstart_app.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    rounds = context.run_config.get("num-server-rounds", 1)
    arrays = ArrayRecord(Net().state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, timeout=3600.0)


app = fedsim.observe(
    app,
    folder="runs/quickstart",
    model="quickstart_app.task:Net",
    training={"shares": "delta", "batch_size": 8, "local_epochs": 1, "learning_rate": 0.01},
)
