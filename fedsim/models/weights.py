"""Weights of a model from a file: the backbone whole or not at all, the head where it fits, and notes on what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedsim.errors import ScenarioError
from fedsim.models import weights_file
from fedsim.models.interface import head_names

Tensors = Mapping[str, Tensor]
Patching = Literal["resampled", "summed"]

_WHERE = "model.pretrained"
_KERNEL = "patch_embed.proj.weight"  # every model that fedsim builds has it
# What comes after the last block's norm: taken whole where it fits, else left fresh.
_HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")
# A tensor with one of these names that the model lacks belongs to another backbone.
_BACKBONE = ("blocks.", "patch_embed.", "norm_pre.", "norm.", "cls_token", "reg_token", "dist_token", "pos_embed")
# Of two networks in one file, the one that its authors evaluate or that timm loads.
_PREFERRED = ("teacher", "encoder", "base_encoder", "encoder_q", "online_encoder")
_MAX_DEPTH = 4  # mappings inside mappings
_ADVICE = "Set model.name and model.kwargs as for the model that it was saved from."
_LISTED = 4


def load(model: nn.Module, path: Path, called: str | None = None, patches: Patching = "resampled") -> tuple[str, ...]:
    """Load weights in the model's own naming, in place.

    Position tables and patches of a Vision Transformer of another size are resampled as timm does, and its weights may lie
    inside a checkpoint (`model`, `state_dict`, `teacher`) and have a prefix (`module.`, `backbone.`), as those of any model
    may. The backbone has to be whole. A head that is not in the file, or is there for another number of classes, keeps its
    fresh weights. Tensors of other networks, such as a decoder, are left out. The file is data: nothing in it is executed.

    Args:
        model: of the architecture that the weights belong to.
        path: a file of safetensors or torch.
        called: what notes and messages call the file, instead of its path.
        patches: how a patch kernel of another size is adapted; see `_summed`.

    Returns:
        What was not taken over as it is, one sentence each.

    Raises:
        ScenarioError: missing, damaged, not finite, or the weights of another model.
    """
    if not path.is_file():
        if path.is_dir():
            raise ScenarioError(
                _WHERE, f"{path} is a folder, and no run. Give a .safetensors or .pth file, or a run folder."
            )
        raise ScenarioError(_WHERE, f"no weights file {path}. Give a .safetensors or .pth file.")
    source = called or str(path)
    with _blaming(source):
        content = tensors_in(path)
    return take(model, content, source, called or path.name, patches)


def take(
    model: nn.Module, content: Tensors, source: str, called: str | None = None, patches: Patching = "resampled"
) -> tuple[str, ...]:
    """Load weights that are there already, in place; see `load`.

    Args:
        model: of the architecture that the weights belong to.
        content: the tensors by name.
        source: what messages call where they come from.
        called: what notes call it; the same where it is left out.
        patches: how a patch kernel of another size is adapted; see `_summed`.

    Raises:
        ScenarioError: not finite, or the weights of another model.
    """
    called = called or source
    if not isinstance(model, VisionTransformer):
        if patches == "summed":
            raise ScenarioError(
                f"{_WHERE}.patches", f"summed, and a {type(model).__name__} has no patches. Leave it out."
            )
        with _blaming(source):
            return tuple(f"{_WHERE}: {called}: {note}." for note in _load_plain(model, content, source))
    with _blaming(source):
        place = _place(content, model.embed_dim)
        found = {name.removeprefix(place): tensor for name, tensor in content.items() if name.startswith(place)}
        sizes = _told_sizes(model, found, patches)
        if patches == "summed":
            found = _summed(model, found)
        # A copy: timm's converters take tensors out of what they are given.
        stored: Tensors = checkpoint_filter_fn(dict(found), model, adapt_layer_scale=True, **_resampling(model))
        own = model.state_dict()
        fresh = _misfits(own, stored)
        left_out = _take(model, {name: t for name, t in stored.items() if name not in own or _head(name) not in fresh})
    _check_finite(model, source)
    left_out += _converted_away(found, stored) + [name for name in content if not name.startswith(place)]
    notes = [*_told_heads(fresh), *sizes, *_told_rest(place, left_out)]
    return tuple(f"{_WHERE}: {called}: {note}." for note in notes)


@contextlib.contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Name where weights come from in what is wrong with them.

    Raises:
        ScenarioError: anything that other people's code raises on them.
    """
    try:
        yield
    except ScenarioError:
        raise
    except (SafetensorError, UnpicklingError, OSError, EOFError) as error:
        raise ScenarioError(_WHERE, f"{source} is damaged or no weights file: {in_one_line(error)}.") from None
    except ForeignWeightsError as error:
        raise ScenarioError(_WHERE, f"{source} does not hold the weights of this model: {error}") from None
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        reason = f"{source} does not hold the weights of this model: {in_one_line(error)}."
        raise ScenarioError(_WHERE, reason) from None


def _summed(model: VisionTransformer, found: Tensors) -> dict[str, Tensor]:
    """Return weights for larger patches as weights for the model's: what the large kernel sees of enlarged pixels.

    With k large patches a side and p small ones, W'[i, j] is the sum of W over the block of k/p x k/p pixels at (i, j): on an
    image of which each pixel is repeated k/p times along both sides the large kernel gives the tokens that the small one gives
    on the image itself. The position table is resized bilinearly.

    Raises:
        ForeignWeightsError: the model's patches do not divide those of the weights.

    Source: Mo, Wu, Wang, Guo, Wang, "When Adversarial Training Meets Vision Transformers", NeurIPS 2022,
    https://arxiv.org/abs/2210.07540, official code
    """
    kernel = found.get(_KERNEL)
    if kernel is None or kernel.ndim != 4:
        raise ForeignWeightsError(f"patches: summed needs {_KERNEL} in timm's naming. Leave patches out.")
    small, large = model.patch_embed.patch_size, kernel.shape[-2:]
    if large[0] % small[0] or large[1] % small[1]:
        raise ForeignWeightsError(
            f"its patches of {large[0]} x {large[1]} pixels are no multiple of the model's {small[0]} x {small[1]}, so no "
            "blocks can be summed. Leave patches out, or set model.kwargs.patch_size."
        )
    blocks = kernel.float().reshape(*kernel.shape[:2], small[0], large[0] // small[0], small[1], large[1] // small[1])
    changed = {**found, _KERNEL: blocks.sum((3, 5)).to(kernel.dtype)}
    table, own = found.get("pos_embed"), model.state_dict().get("pos_embed")
    if table is not None and own is not None and table.ndim == 3 and table.shape[1] != own.shape[1]:
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        side = round((table.shape[1] - prefix) ** 0.5)
        if prefix + side**2 != table.shape[1]:
            raise ForeignWeightsError(
                f"its pos_embed of {table.shape[1]} rows is that of no square grid. Leave patches out."
            )
        rows = table[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = interpolate(rows, size=list(model.patch_embed.grid_size), mode="bilinear")
        grid = resized.flatten(2).transpose(1, 2).to(table.dtype)
        changed["pos_embed"] = torch.cat([table[:, :prefix], grid], 1)
    return changed


def _check_finite(model: nn.Module, source: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise ScenarioError(_WHERE, f"{source} holds weights that are not finite.")


def _load_plain(model: nn.Module, content: Tensors, source: str) -> list[str]:
    """Load the weights of a model that is no Vision Transformer: by name, all but a head of another size.

    Raises:
        ForeignWeightsError: the file lacks a tensor, or holds one of another shape.
    """
    own = model.state_dict()
    head = [name for names in head_names(model) for name in names if name is not None]
    place, stored = of_one_network(content, [name for name in own if name not in head] or head)
    fresh = [name for name in head if name not in stored or stored[name].shape != own[name].shape]
    kept = [name for name in own if name not in head or not fresh]
    # torch counts batches for a momentum that timm's models do not use; older files lack the count.
    lacking = [name for name in kept if name not in stored and not name.endswith("num_batches_tracked")]
    if lacking:
        raise ForeignWeightsError(f"it lacks {_listed(lacking)}. {_ADVICE}")
    for name in kept:
        if name in stored and stored[name].shape != own[name].shape:
            sizes = f"{name} is {_size(stored[name])} in the file, {_size(own[name])} in the model"
            raise ForeignWeightsError(f"{sizes}. {_ADVICE}")
    model.load_state_dict({name: stored[name] for name in kept if name in stored}, strict=False)
    _check_finite(model, source)
    left_out = [name for name in content if name.removeprefix(place) not in own]
    told = (
        [f"the backbone is loaded, the head is fresh (the file holds no {_listed(fresh)} of its size)"] if fresh else []
    )
    return told + _told_rest(place, left_out)


class ForeignWeightsError(Exception):
    """The file holds the weights of another model; the text says by what."""


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a weights file by its dotted name.

    Raises:
        ForeignWeightsError: it holds something else.
        Exception: the file is damaged; see `weights_file.read`.
    """
    return dict(_flat(weights_file.read(path)))


def of_one_network(content: Tensors, names: Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix that one network has in a checkpoint, and its tensors without it.

    Args:
        content: all tensors of the file.
        names: of tensors that the network has, without what files may lack.

    Raises:
        ForeignWeightsError: there are several, and none is known to be the one.
    """
    needed = [name for name in names if not name.endswith("num_batches_tracked")]
    found = {name.removesuffix(own) for own in needed for name in content if name.endswith(own)}
    prefixes = sorted(place for place in found if not place or place.endswith("."))
    held = {place: sum(f"{place}{name}" in content for name in needed) for place in prefixes}
    # Of an incomplete network the one that has most is meant, so that what it lacks can be named.
    place = _preferred([place for place in prefixes if held[place] == max(held.values())], "networks")
    return place, {name.removeprefix(place): tensor for name, tensor in content.items() if name.startswith(place)}


def _preferred(places: Sequence[str], called: str) -> str:
    """Return the prefix of one of several networks: none where there is one without, else one that is known to be meant."""
    if len(places) < 2 or "" in places:
        return places[0] if len(places) == 1 else ""
    for word in _PREFERRED:
        chosen = [place for place in places if word in place.split(".")]
        if len(chosen) == 1:
            return chosen[0]
    listed = ", ".join(f"{place}*" for place in places)
    raise ForeignWeightsError(f"it holds several {called}: {listed}. Save the one that you mean on its own.")


def _flat(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the dotted name of every tensor in nested mappings."""
    if not isinstance(content, Mapping):
        raise ForeignWeightsError(f"it is a {type(content).__name__}, not tensors by name. Save model.state_dict().")
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)


def _place(content: Tensors, width: int) -> str:
    """Return the prefix of the Vision Transformer's names; none where timm's converters know the naming.

    Of several networks, those as wide as the model come first, then the one without a prefix, then the preferred ones.
    """
    kernels = {name.removesuffix(_KERNEL): tensor for name, tensor in content.items() if name.endswith(_KERNEL)}
    places = [place for place in kernels if not place or place.endswith(".")]
    places = [place for place in places if len(kernels[place]) == width] or places
    return _preferred(places, "Vision Transformers")


def _resampling(model: VisionTransformer) -> dict[str, Any]:
    """Return how timm resamples the tables of this architecture, where not in its usual way."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    architecture = config["architecture"]
    if "flexi" not in architecture and "radio" not in architecture:
        return {}
    return {"interpolation": "bilinear", "antialias": False}


def _head(name: str) -> str | None:
    return next((head for head in _HEADS if name.startswith(head)), None)


def _misfits(own: Tensors, stored: Tensors) -> dict[str, str]:
    """Return each part of the head that cannot be taken over whole -> why."""
    reasons = {}
    for head in dict.fromkeys(filter(None, map(_head, own))):
        names = [name for name in own if name.startswith(head)]
        lacking = [name for name in names if name not in stored]
        other = [name for name in names if name in stored and stored[name].shape != own[name].shape]
        if len(lacking) == len(names):
            reasons[head] = "the file has none"
        elif lacking:
            reasons[head] = f"the file has no {_listed(lacking)}"
        elif other:
            reasons[head] = f"{other[0]} is {_size(stored[other[0]])} in the file, {_size(own[other[0]])} in the model"
    return reasons


def _take(model: VisionTransformer, stored: Tensors) -> list[str]:
    """Load tensors in place and return the names of those that have no place in the model.

    Raises:
        ForeignWeightsError: the backbone is not whole, or it is another one.
    """
    own = model.state_dict()
    if _KERNEL not in stored:
        raise ForeignWeightsError(
            f"it has no {_KERNEL}, but {_listed(stored) or 'nothing'}. Rename its tensors as timm does."
        )
    for name, tensor in stored.items():
        if name in own and own[name].shape != tensor.shape:
            sizes = f"{name} is {_size(tensor)} in the file, {_size(own[name])} in the model"
            raise ForeignWeightsError(f"{sizes}. {_ADVICE}")
    # The model's own hooks know which tensors of a stock model an altered first block has no use for.
    missing, rest = model.load_state_dict(stored, strict=False)
    lacking = [name for name in missing if _head(name) is None]
    # The norm of each token belongs to a head that reads the class token; one that pools first has its own.
    foreign = [n for n in rest if n.startswith(_BACKBONE) and not (n.startswith("norm.") and "fc_norm.weight" in own)]
    if lacking and any(name.startswith("fc_norm.") for name in stored):
        raise ForeignWeightsError(
            f"it has fc_norm and no {_listed(lacking)}: it pools its tokens. Set model.kwargs.global_pool: avg."
        )
    if lacking:
        raise ForeignWeightsError(f"it lacks {_listed(lacking)} of the backbone. {_ADVICE}")
    if foreign:
        raise ForeignWeightsError(f"its backbone has {_listed(foreign)}, the model's has not. {_ADVICE}")
    return list(rest)


def _converted_away(found: Tensors, stored: Tensors) -> list[str]:
    """Return the names of tensors that timm's converter of DINOv2 drops, such as the mask token of masked training."""
    kept = {id(tensor) for tensor in stored.values()}
    return [n for n, tensor in found.items() if _KERNEL in found and n not in stored and id(tensor) not in kept]


def _told_heads(fresh: Mapping[str, str]) -> list[str]:
    if not fresh:
        return []
    reasons = "; ".join(f"{head.rstrip('.')}: {reason}" for head, reason in fresh.items())
    return [f"the backbone is loaded, the head is fresh ({reasons})"]


def _told_sizes(model: VisionTransformer, found: Tensors, patches: Patching) -> list[str]:
    own = model.state_dict()
    pairs = {
        name: (_size(found[name]), _size(own[name]))
        for name in ("pos_embed", _KERNEL)
        if name in found and name in own and found[name].shape != own[name].shape
    }
    ways = {_KERNEL: ", summed over blocks of pixels"} if patches == "summed" else {}
    return [
        f"{name} is adapted from {before} to {after}{ways.get(name, '')}" for name, (before, after) in pairs.items()
    ]


def _told_rest(place: str, left_out: Sequence[str]) -> list[str]:
    taken = [f"taken are the tensors {place}*"] if place else []
    return taken + ([f"left out: {_listed(left_out)}"] if left_out else [])


def _listed(names: Iterable[str]) -> str:
    """Return names in words, those of one module or block as one; at most four."""
    groups = list(dict.fromkeys(_group(name) for name in names))
    rest = len(groups) - _LISTED
    return ", ".join(groups[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _group(name: str) -> str:
    parts = name.split(".")
    return name if len(parts) < 3 else ".".join([*parts[:2], "*"])


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def in_one_line(error: Exception) -> str:
    """Return class and message of an exception of other people's code, at most 200 characters."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
