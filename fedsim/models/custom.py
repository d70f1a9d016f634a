"""Models of one's own: what a "module:factory" makes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fedsim.errors import ScenarioError, nearest, told
from fedsim.targets import imported
from fedsim.validation import shown

_FOLLOWING = ("num_classes", "in_chans", "img_size")


def create(target: str, given: Mapping[str, Any], num_classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """Call a factory; it is told the number of classes, the channels and the size of an image as far as it takes them.

    Args:
        target: "module:factory", a function or a class that returns a torch module.
        given: what the scenario says of its other arguments.
        num_classes: for its argument `num_classes`.
        channels: for its argument `in_chans`.
        size: for its argument `img_size`: the side of a square, else height and width.

    Raises:
        ScenarioError: it cannot be imported or called, takes other arguments, or returns something else.
    """
    factory = imported(target, "model.name", "a name, or 'module:factory'")
    taken = _arguments(factory)
    for key in given:
        if key in _FOLLOWING:
            raise ScenarioError(f"model.kwargs.{key}", "follows from the data; leave it out.")
        if taken is not None and key not in taken:
            allowed = ", ".join(name for name in taken if name not in _FOLLOWING) or "none"
            raise ScenarioError(f"model.kwargs.{key}", f"unknown kwarg.{nearest(key, taken)} Allowed: {allowed}.")
    told_sizes = {"num_classes": num_classes, "in_chans": channels, "img_size": size[0] if size[0] == size[1] else size}
    following = {key: value for key, value in told_sizes.items() if taken is None or key in taken}
    try:
        model: Any = factory(**following, **given)
    except Exception as error:  # noqa: BLE001  (boundary: whatever anybody's factory raises is a fault of the scenario)
        given_too = f" (with {shown(dict(given))})" if given else ""
        raise ScenarioError("model.name", f"{target} raised {told(error)}{given_too}.") from None
    if not isinstance(model, nn.Module):
        raise ScenarioError("model.name", f"{target} returned {type(model).__name__}, expected a torch module.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ScenarioError("model.name", f"{target} returned a model without a parameter that is trained.")
    return model


def _arguments(factory: Any) -> tuple[str, ...] | None:
    """Return the names that a factory takes; None where it takes any."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
