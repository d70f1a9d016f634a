"""Flower's strategies by name, with their parameters checked before the run."""

from __future__ import annotations

import inspect
import math
from typing import Any

from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import Mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedsim.coercion import coerce
from fedsim.errors import ScenarioError, nearest
from fedsim.federation.quiet import quiet_flower
from fedsim.scenario import FederationPart, Scenario

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


# Flower clips in these on the client, by a mod without which their noise would be calibrated to updates that nobody has
# clipped.
CLIENT_SIDE_MODS: dict[str, Mod] = {
    "DifferentialPrivacyClientSideFixedClipping": fixedclipping_mod,
    "DifferentialPrivacyClientSideAdaptiveClipping": adaptiveclipping_mod,
}


def check_strategy(scenario: Scenario) -> None:
    """Build the scenario's strategy once, to see that it can be built and fits what clients share.

    Raises:
        ScenarioError: see `build_strategy`; also clipping on the client together with shared gradients.
    """
    name = scenario.federation.strategy
    _check_values(build_strategy(scenario.federation), participants(scenario.federation), "federation.strategy_params")
    if name in CLIENT_SIDE_MODS and scenario.training.shares == "gradient":
        raise ScenarioError(
            "training.shares",
            f"{name} clips the difference of new and old weights on the client, which a gradient is not. "
            "Use shares: delta, or the server-side wrapper.",
        )


def _check_values(strategy: Strategy, clients: int, path: str) -> None:
    """Refuse values that Flower takes without a word and that break or empty the aggregation later.

    Raises:
        ScenarioError: with the path of the value.
    """
    inner = getattr(strategy, "strategy", None)
    if isinstance(inner, Strategy):
        _check_values(inner, clients, f"{path}.strategy.params")
    malicious = getattr(strategy, "num_malicious_nodes", 0)
    if not 0 <= malicious < clients:
        raise ScenarioError(
            f"{path}.num_malicious_nodes",
            f"expected at least 0 and less than the {clients} clients of a round, got {malicious}.",
        )
    proximal = getattr(strategy, "proximal_mu", 0.0)
    if not (math.isfinite(proximal) and proximal >= 0):
        raise ScenarioError(f"{path}.proximal_mu", f"expected a finite number, at least 0, got {proximal}.")
    rate = getattr(strategy, "client_learning_rate", 1.0)
    if not rate > 0:
        raise ScenarioError(f"{path}.client_learning_rate", f"expected a number above 0, got {rate}.")


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
    values = {k: v if k == "strategy" else coerce(v, allowed[k].annotation, f"{path}.{k}") for k, v in params.items()}
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
    params = spec.get("params", {}) if isinstance(spec, dict) else None
    if not isinstance(params, dict) or "name" not in spec or set(spec) - {"name", "params"}:
        raise ScenarioError(path, f"expected a strategy's name or {{name: ..., params: ...}}, got {given!r}.")
    if str(spec["name"]).startswith("DifferentialPrivacy"):
        raise ScenarioError(f"{path}.name", f"{spec['name']} is a wrapper itself; name the strategy that aggregates.")
    return _build(str(spec["name"]), params, part, f"{path}.name", f"{path}.params")


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
