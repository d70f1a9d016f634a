"""What the labels of the example CNN app leak, by batch size and local epochs: `python benchmarks/flower_apps.py`.

Runs tests/flower_apps/quickstart in this process, observes it, and scores `label_count` against the clients' labels.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedsim import api, simulation
from fedsim.federation import engine_inline
from fedsim.planning import preparation
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import load

APP = Path(__file__).parents[1] / "tests" / "flower_apps" / "quickstart"


def recalls(images: int, batch_size: int, epochs: int, clients: int, folder: Path) -> tuple[float, float]:
    """Return mean label recall and the mean of its control over the clients of one round."""
    from quickstart_app import client_app, server_app  # type: ignore[import-not-found]

    os.environ["APP_IMAGES"] = str(images)
    sys.modules.pop("quickstart_app.truth", None)
    config = {"images": images, "batch-size": batch_size, "local-epochs": epochs, "fedsim-folder": str(folder)}
    logging.getLogger("flwr").setLevel(logging.WARNING)
    engine_inline.run(server_app.app, client_app.app, clients, config)
    settings = [
        "attacks=[label_count]",
        "audit.processes=0",
        "audit.truth=quickstart_app.truth:batches",
        f"training.batch_size={batch_size}",
        f"training.local_epochs={epochs}",
    ]
    scenario, _ = load(folder / "scenario.yaml", settings)
    opened = RunFolder.open(folder)
    simulation.audit(preparation.of_folder(opened, scenario), opened, simulation.Progress())
    found: Any = api.load(folder).records
    found = found[found.metric == "label_recall"]
    return float(found.value.mean()), float(found.control_value.mean())


def main() -> None:
    """Print one row a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    clients = parser.parse_args().clients
    sys.path.insert(0, str(APP))
    print("| images | batch size | local epochs | label recall | control |\n|---|---|---|---|---|")
    for images, batch_size, epochs in ((8, 8, 1), (32, 32, 1), (32, 32, 5), (128, 32, 5)):
        with tempfile.TemporaryDirectory() as folder:
            value, control = recalls(images, batch_size, epochs, clients, Path(folder) / "run")
        print(f"| {images} | {batch_size} | {epochs} | {value:.2f} | {control:.2f} |", flush=True)


if __name__ == "__main__":
    main()
