"""The server, with the observer."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import fedsim
from vit_head_app.task import get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    rounds = context.run_config.get("num-server-rounds", 1)
    arrays = ArrayRecord(get_model().head.state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, timeout=3600.0)


app = fedsim.observe(
    app,
    folder="runs/vit-head",
    model="vit_head_app.task:get_model",
    training={"shares": "delta", "batch_size": 8, "local_epochs": 1, "learning_rate": 0.05},
    image_size=224,
)
