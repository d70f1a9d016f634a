"""The scenario's model: a preset, a model of timm by name, or a "module:factory"."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn

from fedsim.errors import ScenarioError, nearest
from fedsim.models import custom, hub_weights, trial, vit, weights
from fedsim.models.interface import ModelInterfaceError, head_names
from fedsim.models.lora import add_lora
from fedsim.models.precode import add_precode
from fedsim.models.weights import in_one_line
from fedsim.presets import PRESETS
from fedsim.scenario import ModelPart, NormalizationPart
from fedsim.seeds import seeded
from fedsim.validation import shown


class Built(NamedTuple):
    """A model in evaluation mode, and what its user should know of it, one sentence each."""

    model: nn.Module
    notes: tuple[str, ...]


def build(
    part: ModelPart, num_classes: int, image_size: int | tuple[int, int], seed: int, channels: int = 3
) -> nn.Module:
    """Build the scenario's model with weights that depend on the seed alone; see `build_with_notes`."""
    return build_with_notes(part, num_classes, image_size, seed, channels).model


Start = Callable[[nn.Module], tuple[str, ...]]
"""Gives a model that was just built its weights, in place, and returns what its user should know, one sentence each."""


def build_with_notes(
    part: ModelPart,
    num_classes: int,
    image_size: int | tuple[int, int],
    seed: int,
    channels: int = 3,
    start: Start | None = None,
) -> Built:
    """Build the scenario's model with weights that depend on the seed alone, and try it out on random images.

    Args:
        part: what the scenario says of it.
        num_classes: outputs.
        image_size: side of the images, or their height and width.
        seed: of the weights.
        channels: of the images.
        start: in the place of the weights that the part names; needed for those of a run, or that are trained first.

    Raises:
        ScenarioError: no such model, kwargs it does not take or cannot train with, sizes that do not fit, weights not to be
            had, a first block that cannot be altered.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    model, stored = _drawn(part, num_classes, size, seed, channels)
    notes: tuple[str, ...] = ()
    start = start or stored
    if start is not None:
        if part.position_embedding == "sincos":
            vit.fix_positions(model, is_loaded=False)  # what is trained first is trained with it
        _set_normalization(model, part.name, part.normalization, channels)
        notes = start(model)
    if part.position_embedding == "sincos":
        notes = (*notes, *vit.fix_positions(model, is_loaded=start is not None))
    if part.lora is not None:
        with seeded(seed, "lora"):
            add_lora(model, part.lora)
    if part.precode is not None:
        _add_precode(model, part, seed)
    _set_normalization(model, part.name, part.normalization, channels)
    return Built(model.eval(), (*notes, *trial.run(model, part, num_classes, (channels, *size), seed)))


def own_outputs(part: ModelPart, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> int | None:
    """Return how many classes a "module:factory" gives a model, whatever it is told; None for a model of any other kind.

    Raises:
        ScenarioError: see `build_with_notes`.
    """
    if ":" not in part.name:
        return None
    channels, *size = image_shape
    with seeded(seed, "model"):
        model = custom.create(part.name, part.kwargs, num_classes, channels, (size[0], size[1]))
    try:
        first = head_names(model)[0]
    except ModelInterfaceError:
        return None
    return len(model.get_parameter(first.weight))


def _drawn(
    part: ModelPart, num_classes: int, size: tuple[int, int], seed: int, channels: int
) -> tuple[nn.Module, Start | None]:
    """Return the model with weights that are drawn, and what gives it those of a file or of the hub, if the part names some."""
    stored = None if part.start is None or part.start.central is not None else part.start
    wants_published = stored is not None and stored.file is None
    target, given = part.name, dict(part.kwargs)
    if target in PRESETS:
        target, given = PRESETS[target].target, {**PRESETS[target].kwargs, **given}
    if wants_published and (":" in target or part.name in PRESETS):
        raise _no_weights(part.name)
    called, file = None, None
    if stored is not None and stored.file is not None:
        file = Path(stored.file)
    if ":" in target:
        _check_first_block(part)
        with seeded(seed, "model"):
            model = custom.create(target, given, num_classes, channels, size)
    else:
        _check_known(target, part)
        called = hub_weights.repository(target) if wants_published else None
        model, file = (
            _of_timm(part, target, given, num_classes, size, seed),
            hub_weights.fetch(called) if called else file,
        )
    if stored is None or file is None:
        return model, None
    return model, functools.partial(weights.load, path=file, called=called, patches=stored.patches)


def _of_timm(
    part: ModelPart, target: str, given: dict[str, Any], num_classes: int, size: tuple[int, int], seed: int
) -> nn.Module:
    if vit.is_vit(target):
        given = vit.checked_kwargs(given, size)
        with seeded(seed, "model"):
            return vit.create(part, target, given, num_classes, size)
    _check_first_block(part)
    with seeded(seed, "model"):
        return _create(part, given, num_classes, size)


def _add_precode(model: nn.Module, part: ModelPart, seed: int) -> None:
    assert part.precode is not None
    if part.lora is not None:
        raise ScenarioError(
            "model.precode", "model.lora freezes all but its own changes and the classifier. Leave one of both out."
        )
    try:
        heads = [names.weight.rpartition(".")[0] for names in head_names(model)]
    except ModelInterfaceError as error:
        raise ScenarioError("model.precode", f"{error} The bottleneck is before one. Leave it out.") from None
    with seeded(seed, "precode"):
        add_precode(model, part.precode, heads)


def _no_weights(name: str) -> ScenarioError:
    return ScenarioError(
        "model.pretrained", f"there are no published weights for {name}. Give the path of a weights file."
    )


def _check_known(name: str, part: ModelPart) -> None:
    if not timm.is_model(name):
        known = [*PRESETS, *timm.list_models()]
        raise ScenarioError(
            "model.name",
            f"no model {name!r}.{nearest(name, known)} Presets: {', '.join(PRESETS)}; or any model of timm; or a "
            "'module:factory' of your own.",
        )
    if "." in name and name not in (tagged := timm.list_pretrained()):
        raise ScenarioError("model.name", f"no published weights {name!r}.{nearest(name, tagged)}")


def _check_first_block(part: ModelPart) -> None:
    if part.first_block != "standard":
        raise ScenarioError(
            "model.first_block", f"{part.name} has no blocks as timm's Vision Transformers do. Leave it out."
        )


def _create(part: ModelPart, kwargs: dict[str, Any], num_classes: int, size: tuple[int, int]) -> nn.Module:
    """Build a model of timm that is no Vision Transformer, at the size of the images where it is made for one size."""
    if following := [key for key in ("num_classes", "in_chans") if key in kwargs]:
        raise ScenarioError(f"model.kwargs.{following[0]}", "follows from the data; leave it out.")
    stated = timm.get_pretrained_cfg(part.name)
    if stated is not None and stated.fixed_input_size:
        kwargs.setdefault("img_size", size)
    try:
        model: nn.Module = timm.create_model(part.name, num_classes=num_classes, **kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError) as error:
        reason = f"{part.name} cannot be built: {in_one_line(error)}"
        raise ScenarioError("model.kwargs", f"{reason} (with {shown(part.kwargs)}).") from None
    return model


def _set_normalization(model: nn.Module, name: str, stated: NormalizationPart | None, channels: int) -> None:
    """Give the model the normalization that the scenario states, else its own, else pixels from -1 to 1."""
    own: Any = getattr(model, "pretrained_cfg", None)
    config = dict(own) if isinstance(own, Mapping) else {}
    if stated is not None:
        config |= {"mean": stated.mean, "std": stated.std}
    elif "mean" not in config or "std" not in config:
        config |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    if len(config["mean"]) != channels or len(config["std"]) != channels:
        where = "data" if stated is None else "model.normalization"
        raise ScenarioError(
            where, f"images of {channels} channels do not fit {name}, whose input has {len(config['mean'])}."
        )
    model.pretrained_cfg = config  # type: ignore[assignment]
