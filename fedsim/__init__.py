"""fedsim: train federated Vision Transformers, and audit what each client's update leaks.

Two lines put the observer into any Flower app:

    import fedsim
    app = fedsim.observe(app, folder="runs/my-app")

One makes a run, and another one reads it:

    run = fedsim.run("quickstart")
    fedsim.load("runs/quickstart").records
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Users' privacy and quiet logs: read by Flower and Ray when they are imported, so set before that; what the user has
# set stays.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from fedsim.api import Run as Run
    from fedsim.api import load as load
    from fedsim.api import run as run
    from fedsim.federation.server_app import observe as observe

__version__ = "0.1.0"
__all__ = ["Run", "load", "observe", "run", "__version__"]


_LAZY = {"observe": "fedsim.federation.server_app", **dict.fromkeys(("Run", "load", "run"), "fedsim.api")}


def __getattr__(name: str) -> Any:
    # Importing Flower and torch takes seconds, which `fedsim --help` should not.
    if name in _LAZY:
        from fedsim import installation

        installation.check()
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
