"""The ServerApp that a SuperLink starts."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make the run that the run configuration names; see `fedsim.deployment.app_folder`."""
    from fedsim.flower_app import serving

    serving.serve(grid, context.run_config)
