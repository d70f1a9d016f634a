"""fedsim as a Flower app: `flwr run .` in the repository, and what `--engine deployment` submits.

A bundle of the app holds the two modules that Flower looks for and none of fedsim: every node runs the fedsim that is
installed on it. The keys of its run configuration stand in `fedsim.deployment.app_folder`.
"""
