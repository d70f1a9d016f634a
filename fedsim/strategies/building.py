"""Strategies by name, with their parameters checked before the run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any

from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy

from fedsim import wire
from fedsim.coercion import Parameters
from fedsim.errors import ScenarioError, nearest
from fedsim.scenario import FederationPart, Scenario
from fedsim.strategies.constraints import MEAN_ALONE, clients_fault, range_fault
from fedsim.strategies.listing import STRATEGIES, strategy_parameters
from fedsim.strategies.quiet import quiet_flower
from fedsim.strategies.weighted import WeightedMean

# Flower clips in these on the client, by a mod without which their noise would be calibrated to updates that nobody has
# clipped.
CLIENT_SIDE_MODS: dict[str, Mod] = {
    "DifferentialPrivacyClientSideFixedClipping": fixedclipping_mod,
    "DifferentialPrivacyClientSideAdaptiveClipping": adaptiveclipping_mod,
}


def client_metrics(name: str) -> frozenset[str]:
    """Return the metrics that each reply to a strategy must hold: it averages those of all clients."""
    clips_adaptively = name == "DifferentialPrivacyClientSideAdaptiveClipping"
    return frozenset({wire.NUM_EXAMPLES, wire.LOSS, *(["norm_bit"] if clips_adaptively else [])})


def check_strategy(scenario: Scenario) -> None:
    """Build the scenario's strategy once, to see that it can be built and fits what clients share.

    Raises:
        ScenarioError: see `build_strategy`; also clipping on the client together with shared gradients, and a strategy that
            looks at single updates where the server sees none.
    """
    name = scenario.federation.strategy
    build_strategy(scenario.federation)
    if name in CLIENT_SIDE_MODS and scenario.training.shares == "gradient":
        raise ScenarioError(
            "training.shares",
            f"{name} clips the difference of new and old weights on the client, which a gradient is not. "
            "Use shares: delta, or the server-side wrapper.",
        )
    if scenario.threat.sees == "aggregate":
        _check_needs_the_mean_alone(scenario.federation)


def check_shared(part: FederationPart, names: Collection[str]) -> None:
    """Refuse a strategy that looks at arrays which clients do not send.

    Args:
        part: the scenario's part.
        names: of the arrays that clients send.

    Raises:
        ScenarioError: names the parameter.
    """
    built: Any = build_strategy(part)
    for strategy, path in ((built, ""), (getattr(built, "strategy", None), "strategy.params.")):
        if isinstance(strategy, WeightedMean):
            try:
                strategy.check_names(names)
            except ValueError as error:
                parameter, _, message = str(error).partition(": ")
                raise ScenarioError(f"federation.strategy_params.{path}{parameter}", message) from None


def _check_needs_the_mean_alone(part: FederationPart) -> None:
    """Refuse a strategy that needs single updates, where the server sees the weighted sum of a round alone."""
    name, where = part.strategy, "federation.strategy"
    if name in CLIENT_SIDE_MODS:
        inner = part.strategy_params.get("strategy", "FedAvg")
        name, where = inner if isinstance(inner, str) else inner["name"], "federation.strategy_params.strategy"
    if name not in MEAN_ALONE:
        raise ScenarioError(
            where,
            f"{name} looks at each client's update, and with threat.sees: aggregate the server sees the weighted sum of a "
            f"round alone. Use one of {', '.join(sorted(MEAN_ALONE))}, or set threat.sees: updates.",
        )


def all_parameters(part: FederationPart) -> dict[str, Any]:
    """Return the parameters of the scenario's strategy, given and default; an inner strategy stays as it is written."""
    name, path = part.strategy, "federation.strategy_params"
    return _with_defaults(name, _coerced(name, part.strategy_params, path), part)


def _coerced(name: str, params: dict[str, Any], path: str) -> dict[str, Any]:
    allowed = strategy_parameters(name)
    annotations = {key: Any if key == "strategy" else allowed[key].annotation for key in params}
    return Parameters(annotations).read(params, path)


def _with_defaults(name: str, values: dict[str, Any], part: FederationPart) -> dict[str, Any]:
    defaults = {key: parameter.default for key, parameter in strategy_parameters(name).items()}
    if "num_sampled_clients" in defaults:
        defaults["num_sampled_clients"] = participants(part)
    return {**defaults, **values}


def build_strategy(part: FederationPart, heard: list[str] | None = None) -> Strategy:
    """Build the scenario's strategy; wrappers take the inner one as `strategy: NAME` or `{name, params}`.

    Args:
        part: the scenario's part.
        heard: gets what Flower warns of.

    Raises:
        ScenarioError: unknown name, unknown or missing parameter, a value outside its range, one that does not fit the
            number of clients, or one that Flower refuses.
    """
    with quiet_flower() as said:
        built = _build(part.strategy, part.strategy_params, part, "federation.strategy", "federation.strategy_params")
    if heard is not None:
        heard += said
    return built


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
    values = _coerced(name, params, path)
    if "strategy" in allowed:
        values["strategy"] = _inner(values.get("strategy", "FedAvg"), part, f"{path}.strategy")
        values.setdefault("num_sampled_clients", participants(part))
    missing = [k for k, p in allowed.items() if p.default is inspect.Parameter.empty and k not in values]
    if missing:
        raise ScenarioError(f"{path}.{missing[0]}", f"missing; {name} has no default for it.")
    fault = range_fault(name, values) or clients_fault(name, _with_defaults(name, values, part), participants(part))
    if fault is not None:
        raise ScenarioError(f"{path}.{fault.parameter}", fault.message)
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
