"""The Flower app as a folder that `flwr run` takes, made from the fedsim that is installed.

The keys of its run configuration: `scenario` is the name of a shipped scenario, a file that all nodes can read, or a resolved
scenario as JSON text; `out` the absolute path of the run folder on the machine of the ServerApp; `node-timeout` the seconds
until a node for each client has to be there; `attended` is for `fedsim run`, which holds the folder, and `observed` for
benchmarks, which train without the observer.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

import fedsim
from fedsim import installation
from fedsim.deployment.options import NODE_TIMEOUT

_MODULES = ("server.py", "client.py")


def table() -> dict[str, Any]:
    """Return the table `[tool.flwr.app]`, which the repository's pyproject.toml has too."""
    return {
        "publisher": "fedsim",
        "fab-include": [f"fedsim/flower_app/{name}" for name in _MODULES],
        "components": {"serverapp": "fedsim.flower_app.server:app", "clientapp": "fedsim.flower_app.client:app"},
        "config": {"scenario": "smoke", "out": "", "node-timeout": NODE_TIMEOUT, "attended": False, "observed": True},
    }


def write(folder: Path) -> Path:
    """Write the app into a new folder, and return that."""
    package = folder / "fedsim" / "flower_app"
    package.mkdir(parents=True)
    source = Path(fedsim.__file__).parent / "flower_app"
    for name in _MODULES:
        (package / name).write_bytes((source / name).read_bytes())
    project = {
        "name": installation.NAME,
        "version": fedsim.__version__,
        "description": "A run of fedsim",
        "license": "Apache-2.0",
        "dependencies": [f"flwr>={version('flwr')}"],
    }
    content = {"project": project, "tool": {"flwr": {"app": table()}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(content), encoding="utf-8")
    return folder
