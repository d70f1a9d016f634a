"""What can be reached from an object: whether a plug-in could get at something through what it is given."""

import gc
import types
from collections.abc import Iterator


def reachable(root: object) -> Iterator[object]:
    """Yield every object that can be reached from `root` through values: fields, items, closures, bound objects.

    Modules, classes and the globals of functions are left out: through these anything reaches anything in Python.
    """
    seen, waiting = set[int](), [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, types.ModuleType | type):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, types.FunctionType):
            waiting += [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
        else:
            waiting += gc.get_referents(item)
