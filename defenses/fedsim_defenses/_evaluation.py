"""A model looked at on the side: in evaluation mode, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation, in which it draws nothing and keeps its buffers, and back to what each module was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
