from collections import OrderedDict

import torch
from torch import nn
from vit_cases import tiny_model

from fedsim import models


class Tied(nn.Module):
    """Two names for one layer, one dictionary in two places, and a dictionary that is not empty."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = self.first
        self.shared = OrderedDict()
        self.alias = self.shared
        self.full = OrderedDict(layer=self.first)


def test_a_copy_is_the_model_and_shares_nothing_with_it():
    model = tiny_model()
    copy = models.copied(model)
    assert type(copy) is type(model) and copy is not model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    held = {id(part) for module in model.modules() for part in (module, *vars(module).values()) if _is_changeable(part)}
    assert held.isdisjoint({id(p) for module in copy.modules() for p in (module, *vars(module).values())})
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copy.parameters()}


def _is_changeable(part):
    return isinstance(part, dict | list | nn.Module | torch.Tensor)


def test_what_is_one_in_the_model_is_one_in_the_copy():
    model = Tied()
    copy = models.copied(model)
    assert copy.first is copy.second is copy.full["layer"] and copy.first is not model.first
    assert copy.shared is copy.alias and copy.shared is not model.shared and copy.shared == {}


def test_hooks_go_with_the_copy_and_no_later_one_reaches_the_other():
    model, calls = nn.Linear(2, 2), []
    model.register_forward_hook(lambda *seen: calls.append("before"))
    copy = models.copied(model)
    copy.register_forward_pre_hook(lambda *seen: calls.append("after"))
    model(torch.ones(1, 2))
    assert calls == ["before"]
    copy(torch.ones(1, 2))
    assert calls == ["before", "after", "before"]
