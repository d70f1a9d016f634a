"""What an observed app's clients trained on, as a function of its team tells: `audit.truth: package.module:batches`.

The function gets `round`, and `partition` or `node` or both, as far as it takes them by these names, and returns images and
labels of that client's training in that round. Only the steps that score ask it; no attack, and no process that runs one, does.
`truth.json` holds digests of what it returned when the audit began: it is refused once it returns anything else.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import targets
from fedsim.errors import ScenarioError, told
from fedsim.exchange import Truth
from fedsim.recording import files, observed
from fedsim.recording.records import SCHEMA
from fedsim.recording.run_folder import RunFolder

WHERE = "audit.truth"
_FILE = "truth.json"
_WANTED = "'module:function'"
_TAKEN = ("round", "partition", "node")


@dataclass(frozen=True)
class SuppliedTruth:
    """The truth of an observed run, as its team tells it.

    Args:
        target: "module:function".
        path: the run folder, which knows nodes, partitions and reported numbers of examples.
        image_shape: channels, height and width of the model's input.
        num_classes: outputs of the head.
    """

    target: str
    path: Path
    image_shape: tuple[int, int, int]
    num_classes: int

    def read(self, round: int, client: int) -> Truth:
        """Return what a client trained on in a round.

        Raises:
            ScenarioError: the function cannot be called, returns something else than images and labels, others than the client
                reported, or others than before.
        """
        truth = self._told(round, client)
        known = _stored(self.path)
        if known is not None and known.get(_key(round, client), _digest(truth)) != _digest(truth):
            raise self._error(
                round,
                client,
                "returned other images or labels than when the audit began. Let it depend on its arguments alone",
            )
        return truth

    def _told(self, round: int, client: int) -> Truth:
        folder = RunFolder(self.path)
        header = folder.read_header(round, client)
        arguments = self._arguments(round, client, header["side"].get(observed.NODE, {}))
        try:
            returned = self._function(**arguments)
        except Exception as error:
            raise self._error(round, client, f"raised {told(error)}") from error
        try:
            truth = as_truth(returned, self.image_shape, self.num_classes)
        except ValueError as error:
            raise self._error(round, client, str(error)) from None
        reported = folder.reported_examples(header)
        if reported and reported != len(truth.images):
            raise self._error(
                round,
                client,
                f"returned {len(truth.images)} images, and the client reported num-examples {reported}. Return each image "
                "that it trained on once",
            )
        return truth

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = targets.imported(self.target, WHERE, _WANTED)
        return function

    def _arguments(self, round: int, client: int, node: Mapping[str, Any]) -> dict[str, int]:
        known = {"round": round, "partition": node.get(observed.PARTITION), "node": node.get(observed.NODE_ID)}
        taken = list(inspect.signature(self._function).parameters)
        if not {"partition", "node"} & set(taken) or not set(taken) <= set(_TAKEN):
            raise ScenarioError(
                WHERE,
                f"{self.target} takes ({', '.join(taken)}), expected round and partition, or round and node.",
            )
        if "partition" in taken and known["partition"] is None:
            raise self._error(
                round,
                client,
                'takes partition, and the client did not say which it holds. Add "fedsim": ConfigRecord({"partition-id": ...}) '
                f"to its reply, or take node (here {known['node']})",
            )
        return {name: int(value) for name in taken if (value := known[name]) is not None}

    def _error(self, round: int, client: int, fault: str) -> ScenarioError:
        return ScenarioError(WHERE, f"{self.target}, asked for round {round} and client {client}, {fault}.")


def as_truth(returned: Any, image_shape: tuple[int, int, int], num_classes: int) -> Truth:
    """Return what somebody's function returned as images and labels, once it is checked.

    Args:
        returned: a pair of images (count, channels, height, width), pixels in [0, 1] or uint8, and labels (count).
        image_shape: channels, height and width of the model's input.
        num_classes: labels are below it.

    Raises:
        ValueError: it is anything else; the message begins with "returned".
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise ValueError(f"returned {type(returned).__name__}, expected a pair (images, labels)")
    images, labels = _images(returned[0], image_shape), _labels(returned[1], num_classes)
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"returned {len(images)} images and {len(labels)} labels, expected one label an image, at least one"
        )
    return Truth(images, labels, len(images))


def _images(images: Any, shape: tuple[int, int, int]) -> Tensor:
    tensor = _tensor(images)
    if tensor is None or tensor.ndim != 4 or tuple(tensor.shape[1:]) != shape:
        given = f"type {type(images).__name__}" if tensor is None else f"shape {tuple(tensor.shape)}"
        raise ValueError(f"returned images of {given}, expected shape (count, {', '.join(map(str, shape))})")
    pixels = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    if len(pixels) and not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
        raise ValueError(
            f"returned pixels from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, expected 0 to 1, or uint8. Return "
            "images before they are normalized"
        )
    return pixels


def _labels(labels: Any, num_classes: int) -> Tensor:
    tensor = _tensor(labels)
    if tensor is None or tensor.ndim != 1 or tensor.is_floating_point():
        given = f"type {type(labels).__name__}" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"returned labels of {given}, expected whole numbers, one an image")
    if len(tensor) and not (int(tensor.min()) >= 0 and int(tensor.max()) < num_classes):
        raise ValueError(f"returned labels outside 0 to {num_classes - 1}")
    return tensor.long()


def bind(folder: RunFolder, truth: SuppliedTruth | None, places: list[tuple[int, int]]) -> bool:
    """Read the truth of all updates that are audited once, and note what it was; returns whether it is another one than before.

    Args:
        folder: the observed run, locked by the caller.
        truth: None where nobody supplies one.
        places: round and client of each update that is audited.

    Raises:
        ScenarioError: see `SuppliedTruth.read`; of any update, before the first attack.
    """
    path, before = folder.path / _FILE, _stored(folder.path)
    if truth is None:
        path.unlink(missing_ok=True)
        return before is not None
    digests = {_key(round, client): _digest(truth._told(round, client)) for round, client in places}
    folder.write(path, json.dumps({"schema": SCHEMA, "target": truth.target, "digests": digests}, indent=2) + "\n")
    return before != digests


def _stored(path: Path) -> dict[str, str] | None:
    """Return the digests that an audit began with; None without any, or where nobody can read them."""
    try:
        content = files.read_json(path / _FILE, path)
        return None if content is None else {str(key): str(digest) for key, digest in content["digests"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, files.DamagedFileError):
        return None


def _key(round: int, client: int) -> str:
    return f"{round}/{client}"


def _digest(truth: Truth) -> str:
    digest = hashlib.sha256(f"{tuple(truth.images.shape)}".encode())
    for tensor in (truth.images, truth.labels):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.ascontiguousarray(array)) if array.dtype.kind in "uif" else None
    except (TypeError, ValueError):
        return None
