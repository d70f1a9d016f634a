"""Copies of models, made more often than anything else: each attempt of an attack works on some of its own."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def copied(model: _Model) -> _Model:
    """Return a deep copy of a model.

    A module has about a dozen ordered dictionaries of hooks, nearly all of them empty. `copy.deepcopy` takes each apart by its
    general protocol, which is half of its time on a small model; here they are new ones from the start.
    """
    known: dict[int, object] = {}
    for module in model.modules():
        for part in vars(module).values():
            if type(part) is OrderedDict and not part:
                known[id(part)] = OrderedDict()
    return copy.deepcopy(model, known)
