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


def _one(result: object) -> int:
    return 1


def per_plan(
    most: int, size: Callable[[Any], int] = _one
) -> Callable[[_OfPlan[_Args, _Result]], _OfPlan[_Args, _Result]]:
    """Return a decorator by which a function of a plan keeps its latest results, which must not refer to the plan.

    Args:
        most: the results that are kept for each plan are this large together; the latest is kept however large it is.
        size: of a result; 1 unless given, so that `most` is their number.
    """

    def decorate(work: _OfPlan[_Args, _Result]) -> _OfPlan[_Args, _Result]:
        known: WeakKeyDictionary[Plan, OrderedDict[Any, _Result]] = WeakKeyDictionary()

        @functools.wraps(work)
        def remembering(plan: Plan, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
            results, key = known.setdefault(plan, OrderedDict()), (args, tuple(kwargs.items()))
            if key not in results:
                results[key] = work(plan, *args, **kwargs)
                while len(results) > 1 and sum(map(size, results.values())) > most:
                    results.popitem(last=False)
            results.move_to_end(key)
            return results[key]

        return remembering

    return decorate
