"""Strategies by name, Flower's and fedsim's own, and the parameters of each that a scenario may set."""

from __future__ import annotations

import inspect

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.strategies.fedwavg import FedWAvg
from fedsim.strategies.sfat import SFAT

OWN: dict[str, type[Strategy]] = {"FedWAvg": FedWAvg, "SFAT": SFAT}
"""Strategies of fedsim."""

# XGBoost strategies aggregate trees, not tensors.
_OF_FLOWER: dict[str, type[Strategy]] = {
    name: cls
    for name, cls in vars(flower).items()
    if inspect.isclass(cls) and issubclass(cls, Strategy) and cls is not Strategy and "Xgb" not in name
}
STRATEGIES: dict[str, type[Strategy]] = dict(sorted((_OF_FLOWER | OWN).items()))
# The scenario's own keys decide these; callables and record names are not the user's.
_DECIDED = ("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
_HIDDEN = {
    *_DECIDED, "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn", "accountant", "selection_rule", "train_loss_key", "self", "kwargs",
}  # fmt: skip


def strategy_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a strategy that `federation.strategy_params` may set."""
    signature = inspect.signature(STRATEGIES[name])
    return {key: value for key, value in signature.parameters.items() if key not in _HIDDEN}
