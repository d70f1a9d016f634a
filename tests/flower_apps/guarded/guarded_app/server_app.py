"""The server, with the observer."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import fedsim
from guarded_app.task import LEARNING_RATE, MODEL, get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    rounds = context.run_config.get("num-server-rounds", 1)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(get_model().state_dict()), num_rounds=rounds, timeout=3600.0)


app = fedsim.observe(
    app,
    folder="runs/guarded",
    model=MODEL,
    training={"shares": "delta", "batch_size": 1, "local_steps": 1, "learning_rate": LEARNING_RATE},
)
