"""Type checks of calls, at a price that tests can pay.

jaxtyping's import hook wraps each function of the packages, to compare the shapes of its tensors with one another. That takes
longer than most functions do. Those without a tensor in their signature have no shapes to compare: beartype alone checks them.
A function inside of another one is made, and would be wrapped, anew with each call of that: some are enough. The first calls of
a function in each test are checked; an attack that iterates makes thousands of the same kind. What checks a function is made
when it is called: making all that a process imports takes seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping

by_shape = jaxtyping.jaxtyped
ENOUGH = 3
CALLS = 20
made: Counter[CodeType] = Counter()
tests_begun = 0


def checked(target: Any, typechecker: Callable[[Any], Any]) -> Any:
    """Return a function, method, property or dataclass that checks the types of what it is given and returns."""
    if isinstance(target, classmethod | staticmethod):
        return type(target)(checked(target.__func__, typechecker))
    if isinstance(target, property):
        return property(*(part and checked(part, typechecker) for part in (target.fget, target.fset, target.fdel)))
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__, typechecker)
        return target
    if "<locals>" in target.__qualname__:
        if made[target.__code__] == ENOUGH:
            return target
        made[target.__code__] += 1
    return first_calls(target, typechecker)


def first_calls(target: Callable[..., Any], typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function whose first calls in each test are checked. What checks them is made for the first of all."""
    test, left = -1, 0
    checking: Callable[..., Any] | None = None

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal test, left, checking
        if test != tests_begun:
            test, left = tests_begun, CALLS
        if not left:
            return target(*args, **kwargs)
        left -= 1
        if checking is None:
            checking = by_shape(target, typechecker=typechecker) if has_shapes(target) else typechecker(target)
        return checking(*args, **kwargs)

    return call


def begin_test() -> None:
    """Check the first calls of each function once more."""
    global tests_begun
    tests_begun += 1


def has_shapes(function: Callable[..., Any]) -> bool:
    """Return whether an annotation names a tensor with its shape, or beartype alone cannot read it."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        return True
    return any(map(_has_shape, hints.values()))


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, typing.ParamSpecArgs | typing.ParamSpecKwargs):
        return True  # beartype refuses these beside other parameters
    if isinstance(hint, list | tuple):  # the parameters of a Callable
        return any(map(_has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(hint)))


def install() -> None:
    """Let the import hook wrap with `checked`."""
    jaxtyping.jaxtyped = lambda *, typechecker: lambda target: checked(target, typechecker)
