"""Flower's strategies by name, and the parameters of each that a scenario may set."""

from __future__ import annotations

import inspect

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

# XGBoost strategies aggregate trees, not tensors.
STRATEGIES: dict[str, type[Strategy]] = {
    name: cls
    for name, cls in sorted(vars(flower).items())
    if inspect.isclass(cls) and issubclass(cls, Strategy) and cls is not Strategy and "Xgb" not in name
}
# The scenario's own keys decide these; callables and record names are not the user's.
_OWN = ("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
_HIDDEN = {
    *_OWN, "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn", "accountant", "selection_rule", "train_loss_key", "self", "kwargs",
}  # fmt: skip


def strategy_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a strategy that `federation.strategy_params` may set."""
    signature = inspect.signature(STRATEGIES[name])
    return {key: value for key, value in signature.parameters.items() if key not in _HIDDEN}
