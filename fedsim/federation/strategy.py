"""Flower's strategies by name, with their parameters checked before the run."""

from __future__ import annotations

import inspect
import math
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.errors import ScenarioError, nearest
from fedsim.federation.quiet import quiet_flower
from fedsim.scenario import FederationPart

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
    "evaluate_metrics_aggr_fn", "accountant", "self", "kwargs",
}  # fmt: skip


def strategy_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a strategy that `federation.strategy_params` may set."""
    signature = inspect.signature(STRATEGIES[name])
    return {key: value for key, value in signature.parameters.items() if key not in _HIDDEN}


def build_strategy(part: FederationPart) -> Strategy:
    """Build the scenario's strategy; wrappers take the inner one as `strategy: NAME` or `{name, params}`.

    Raises:
        ScenarioError: unknown name, unknown or missing parameter, or a value that Flower refuses.
    """
    # Flower warns of every strategy without client-side evaluation, which is ours by design.
    with quiet_flower():
        return _build(part.strategy, part.strategy_params, part, "federation.strategy", "federation.strategy_params")


def _build(name: str, params: dict[str, Any], part: FederationPart, name_path: str, path: str) -> Strategy:
    if name not in STRATEGIES:
        raise ScenarioError(
            name_path, f"no strategy {name!r}.{nearest(name, STRATEGIES)} Known: {', '.join(STRATEGIES)}."
        )
    allowed = strategy_parameters(name)
    for key in params:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise ScenarioError(
                f"{path}.{key}", f"unknown parameter of {name}.{nearest(key, allowed)} Allowed: {listed}."
            )
    values = dict(params)
    if "strategy" in allowed:
        values["strategy"] = _inner(values.get("strategy", "FedAvg"), part, f"{path}.strategy")
        values.setdefault("num_sampled_clients", participants(part))
    missing = [k for k, p in allowed.items() if p.default is inspect.Parameter.empty and k not in values]
    if missing:
        raise ScenarioError(f"{path}.{missing[0]}", f"missing; {name} has no default for it.")
    accepted = inspect.signature(STRATEGIES[name]).parameters
    values.update({key: value for key, value in _own(part).items() if key in accepted})
    try:
        return STRATEGIES[name](**values)
    except (TypeError, ValueError) as error:
        raise ScenarioError(path, f"{name} refuses these: {error}") from None


def _inner(given: Any, part: FederationPart, path: str) -> Strategy:
    spec = {"name": given} if isinstance(given, str) else given
    if not isinstance(spec, dict) or "name" not in spec or set(spec) - {"name", "params"}:
        raise ScenarioError(path, f"expected a strategy's name or {{name: ..., params: ...}}, got {given!r}.")
    return _build(str(spec["name"]), dict(spec.get("params", {})), part, f"{path}.name", f"{path}.params")


def participants(part: FederationPart) -> int:
    """Return how many clients take part in a round: the fraction rounded down, at least one."""
    return max(1, math.floor(part.clients * part.fraction + 1e-9))


def _own(part: FederationPart) -> dict[str, Any]:
    # Evaluation is central, so no client evaluates; Flower rounds the fraction down and takes the minimum if larger.
    return {
        "fraction_train": part.fraction,
        "fraction_evaluate": 0.0,
        "min_train_nodes": participants(part),
        "min_evaluate_nodes": 0,
        "min_available_nodes": part.clients,
    }
