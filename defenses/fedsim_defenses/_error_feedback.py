"""Error feedback: what a compressed update leaves out is kept on the client and added to its next update.

Source: Stich, Cordonnier, Jaggi. "Sparsified SGD with Memory". NeurIPS 2018. https://arxiv.org/abs/1809.07599; Karimireddy,
Rebjock, Stich, Jaggi. "Error Feedback Fixes SignSGD and other Gradient Compression Schemes". ICML 2019.
https://arxiv.org/abs/1901.09847
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedsim.defense import State
from fedsim.exchange import Update

_RESIDUAL = "residual"

Tensors = Mapping[str, Tensor]


def compressed(update: Update, compress: Callable[[Tensors], Tensors], state: State | None) -> Update:
    """Return an update with its tensors compressed.

    Args:
        update: of this round.
        compress: returns tensors of the same names, shapes and types.
        state: of the client, in which what is left out is kept; None for no error feedback.
    """
    if state is None:
        return dataclasses.replace(update, tensors=compress(update.tensors))
    residual = state.get(_RESIDUAL)
    if residual is None:
        residual = torch.zeros(sum(tensor.numel() for tensor in update.tensors.values()))
    kept = torch.split(residual, [tensor.numel() for tensor in update.tensors.values()])
    whole = {
        name: tensor + part.view_as(tensor).to(tensor)
        for (name, tensor), part in zip(update.tensors.items(), kept, strict=True)
    }
    sent = compress(whole)
    state[_RESIDUAL] = torch.cat([(whole[name] - sent[name]).flatten() for name in whole])
    return dataclasses.replace(update, tensors=sent)
