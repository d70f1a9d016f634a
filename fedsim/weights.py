"""Weights of a model from a local file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from timm.models import VisionTransformer, load_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn

from fedsim.errors import ScenarioError

_HEADS = ("head.", "head_dist.")


def load(model: VisionTransformer, path: Path) -> None:
    """Load weights in timm's naming, in place; position tables and patches of another size are resampled as timm does.

    A head for another number of classes keeps its fresh weights. The file is data: nothing in it is executed.

    Raises:
        ScenarioError: missing, damaged, not finite, or the weights of another model.
    """
    where = "model.pretrained"
    if not path.is_file():
        raise ScenarioError(where, f"no weights file {path}. Give a .safetensors or .pth file.")
    own = model.state_dict()
    try:
        stored = checkpoint_filter_fn(load_state_dict(str(path)), model)
        foreign = {name: tensor for name, tensor in own.items() if name.startswith(_HEADS)}
        kept = {name: tensor for name, tensor in foreign.items() if stored[name].shape != tensor.shape}
        model.load_state_dict({**stored, **kept})
    except (SafetensorError, UnpicklingError, OSError, EOFError) as error:
        raise ScenarioError(where, f"{path} is damaged or no weights file: {in_one_line(error)}.") from None
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ScenarioError(where, f"{path} does not hold the weights of this model: {in_one_line(error)}.") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise ScenarioError(where, f"{path} holds weights that are not finite.")


def in_one_line(error: Exception) -> str:
    """Return class and message of an exception of other people's code, at most 200 characters."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
