"""Names on the wire, and the conversions between Flower's records and tensors.

A train reply holds what Flower's strategies expect (`arrays`, `metrics` with `num-examples`) and config records, which
strategies ignore: `update` says whether `arrays` is a gradient, `privacy` states the client's budget, and `fedsim-state` is
what its defenses keep and `fedsim-logged` what they logged, both for the run folder alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from torch import Tensor

from fedsim.errors import printable

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
UPDATE, PRIVACY, NODE, STATE, LOGGED = "update", "privacy", "node", "fedsim-state", "fedsim-logged"
ROUND, NUM_EXAMPLES, LOSS = "server-round", "num-examples", "train_loss"
PARTITION, PARTICIPATIONS = "partition-id", "participations"
CLIENT_RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower sends them, names and order kept."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return copies of a record's arrays: decoding makes a fresh one, so what strategies do later leaves no mark."""
    return {name: torch.from_numpy(_decoded(array)) for name, array in arrays.items()}


_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|=]?\w\d+)', 'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[\d, ]*)\),? ?\}\s*"
)


def _decoded(array: Array) -> np.ndarray:
    """Return what `Array.numpy` returns, without the `ast` module for headers as numpy writes them.

    `np.load` parses headers by `ast.literal_eval`, which two threads cannot run at once before CPython 3.11.9 (gh-106905:
    "AST constructor recursion depth mismatch"). Legacy strategies handle replies in threads, and an observer must neither
    lose an update to its host nor make its host lose one.
    """
    data = array.data
    start = 10 + int.from_bytes(data[8:10], "little")
    is_usual = array.stype == "numpy.ndarray" and data[:7] == b"\x93NUMPY\x01"
    header = _NPY_HEADER.fullmatch(data[10:start]) if is_usual else None
    if header is None:
        _check_size(array)
        return array.numpy()
    shape = tuple(int(size) for size in header["shape"].replace(b" ", b"").split(b",") if size)
    order: Literal["F", "C"] = "F" if header["fortran"] == b"True" else "C"
    flat = np.frombuffer(data, np.dtype(header["dtype"].decode()), offset=start)
    return flat.reshape(shape, order=order).copy(order="K")


def _check_size(array: Array) -> None:
    """Refuse what `np.load` would make room for before it looks whether there is as much: a client chooses the header.

    Raises:
        ValueError: the bytes are no array in NumPy's format, or fewer or more than the header states.
    """
    if array.stype != "numpy.ndarray":
        return  # which Flower refuses
    stream = io.BytesIO(array.data)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"an array in version {version} of NumPy's format, expected 1.0 or 2.0")
    shape, _, dtype = read[version](stream)
    stated, held = math.prod(shape) * dtype.itemsize, len(array.data) - stream.tell()
    if stated != held:
        raise ValueError(f"an array of {stated} bytes, as it states, of which {held} are there")


# Of Flower's simulation and the inline engine, and of a SuperNode.
_BEFORE_CLIENT_MESSAGE = (
    re.compile(r"ClientAppException occurred\. Message: "),
    re.compile(r"^<class '[\w.<>]+'>:<'"),
)
_AFTER_CLIENT_MESSAGE = "'>"
_MOST_SEARCHED = 100_000  # characters of a reason, which may be of any length


def failure_text(reason: str) -> str:
    """Return the first line of what a client's own exception said, without what the engine wraps around it."""
    head = reason[:_MOST_SEARCHED]
    found = next(filter(None, (pattern.search(head) for pattern in _BEFORE_CLIENT_MESSAGE)), None)
    said = (reason[found.end() :] if found else reason).strip()
    line = re.split(r"[\r\n]", said.removesuffix(_AFTER_CLIENT_MESSAGE) if found else said, maxsplit=1)[0].strip()
    return printable(line, 500) if line else "failed without a message"


def failure(request: Message, text: str) -> Message:
    """Return the reply that stands for a client which failed, of whatever kind its failure is."""
    return Message(Error(CLIENT_RAISED, text), reply_to=request)
