"""Results that are worked out once for a plan, and live no longer than it does: a sweep makes many plans in one process."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from fedsim.planning.plan import Plan

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_OfPlan = Callable[Concatenate[Plan, _Args], _Result]


def per_plan(most: int) -> Callable[[_OfPlan[_Args, _Result]], _OfPlan[_Args, _Result]]:
    """Return a decorator by which a function of a plan keeps its latest results, which must not refer to the plan.

    Args:
        most: so many results are kept for each plan.
    """

    def decorate(work: _OfPlan[_Args, _Result]) -> _OfPlan[_Args, _Result]:
        known: WeakKeyDictionary[Plan, OrderedDict[Any, _Result]] = WeakKeyDictionary()

        @functools.wraps(work)
        def remembering(plan: Plan, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
            results, key = known.setdefault(plan, OrderedDict()), (args, tuple(kwargs.items()))
            if key not in results:
                results[key] = work(plan, *args, **kwargs)
                while len(results) > most:
                    results.popitem(last=False)
            results.move_to_end(key)
            return results[key]

        return remembering

    return decorate
