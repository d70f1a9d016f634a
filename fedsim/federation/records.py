"""Names on the wire, and the conversions between Flower's records and tensors.

A train reply holds what Flower's strategies expect (`arrays`, `metrics` with `num-examples`) and config records, which
strategies ignore: `update` says whether `arrays` is a gradient, `privacy` states the client's budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
UPDATE, PRIVACY, NODE = "update", "privacy", "node"
ROUND, NUM_EXAMPLES, LOSS = "server-round", "num-examples", "train_loss"
PARTITION, PARTICIPATIONS = "partition-id", "participations"


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower sends them, names and order kept."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return copies of a record's arrays: decoding makes a fresh one, so what strategies do later leaves no mark."""
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}


_CLIENT_MESSAGE = re.compile(r"ClientAppException occurred\. Message: (.*?)(?:'>)?$", re.DOTALL)


def failure_text(reason: str) -> str:
    """Return what a client's own exception said, without what the engine wraps around it."""
    found = _CLIENT_MESSAGE.search(reason)
    lines = (found.group(1) if found else reason).strip().splitlines()
    return lines[0].strip() if lines else "failed without a message"
