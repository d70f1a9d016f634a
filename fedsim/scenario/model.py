"""The model part of a scenario: which model, from which weights, and what of it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, WrapValidator

from fedsim.scenario.fields import MOST_EPOCHS, MOST_RANK, MOST_SAMPLES, NO_BOOLEAN, Part, Patterns, Switch
from fedsim.validation import shown


class NormalizationPart(Part):
    """What turns pixels in [0, 1] into the model's input: (pixel - mean) / std, a value a channel."""

    mean: tuple[float, ...]
    """Of pixels in [0, 1], a value a channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Above 0, a value a channel."""


class LoRAPart(Part):
    """Low-rank adaptation (Hu et al. 2021): the model is frozen, and each target layer trains a change of low rank.

    A layer with weight W returns W x + (alpha / rank) B A x. What is trained and sent are A, B and, with `train_head`, the
    classifier.
    """

    rank: Annotated[int, Field(ge=1, le=MOST_RANK), NO_BOOLEAN] = 4
    """Rows of A and columns of B, less than a target's own."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] | None = None
    """The change is scaled by alpha / rank; the rank unless given."""
    targets: Patterns = ["*.attn.qkv", "*.attn.proj"]
    """Patterns of the names of linear layers, as in a shell."""
    train_head: Switch = True
    """Whether the classifier is trained and sent too."""


class PrecodePart(Part):
    """PRECODE (Scheliga et al. 2022): a variational bottleneck before the classifier, of which training draws.

    The loss of a local step gains `beta` times the KL divergence of what is drawn from a standard normal one. It needs
    `training.mode: train`, since evaluation draws nothing. No formal guarantee.
    """

    size: Annotated[int, Field(ge=1, le=MOST_RANK), NO_BOOLEAN] = 256
    """Numbers that are drawn for an image; 256 in the paper."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = 0.001
    """Weight of the KL divergence in the loss; 0.001 in the paper."""


class CentralPart(Part):
    """Training of the model on the auxiliary images before the federation begins, with cross-entropy.

    Each epoch takes the images in a new order, whole batches only. The learning rate falls to 0 along a cosine over all steps.
    """

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS), NO_BOOLEAN] = 10
    """Passes over the auxiliary images."""
    batch_size: Annotated[int, Field(ge=1, le=MOST_SAMPLES), NO_BOOLEAN] = 64
    """Images a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` has a momentum of 0.9."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN] = 0.001
    """Of the first step."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = 0.05
    """Of all parameters."""


class StartPart(Part):
    """Weights to start from, where more is to be said than `true` or a path."""

    file: str | None = None
    """A weights file, or the folder of a finished run; published weights where it is left out."""
    patches: Literal["resampled", "summed"] = "resampled"
    """How a patch kernel of another size is adapted: `resampled` as timm does; `summed` over blocks of its pixels."""
    central: CentralPart | None = None
    """Trains the model on the auxiliary images first, in the place of stored weights."""

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> StartPart:
        if not self.model_fields_set:
            raise ValueError("expected file, patches or central, got an empty mapping")
        if "central" in self.model_fields_set and self.central is None:
            raise ValueError("central: expected a mapping such as {epochs: 10}, or {} for the defaults, got nothing")
        if self.file is not None and not self.file.strip():
            raise ValueError("expected the path of a weights file or of a run, got an empty text")
        if self.central is not None and (self.file is not None or self.patches != "resampled"):
            raise ValueError("central trains the weights, and file and patches are about stored ones. Give one of both")
        return self


def _start(value: Any, proceed: Callable[[Any], Any]) -> Any:
    """Check a start: the faults of a mapping stand at their own keys."""
    if isinstance(value, dict):
        return StartPart.model_validate(value)
    try:
        return proceed(value)
    except pydantic.ValidationError:
        raise ValueError(
            f"expected true, false or the path of a weights file or of a run, or a mapping, got {shown(value)}"
        ) from None


class ModelPart(Part):
    """A model of timm, one of fedsim's presets, or a "module:factory" of one's own that returns a torch module.

    A factory is told `num_classes`, `in_chans` and `img_size` as far as it takes them. `normalization` replaces the one that
    timm states for the model; a model of one's own has mean and std 0.5 unless it says otherwise.

    `first_block: april` removes the layer norm before the first attention and both residual connections of its block: the
    model of the APRIL paper, which no stock ViT is.
    """

    name: str = "vit_mini"
    """A preset, a model of timm (`fedsim list models`), or a "module:factory"."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the model."""
    first_block: Literal["standard", "april"] = "standard"
    """`april` alters the first block as in the APRIL paper."""
    pretrained: Annotated[Switch | str | StartPart, WrapValidator(_start)] = False
    """true for published weights, from the Hugging Face hub or its cache; the path of a weights file or of a finished run;
    {file: PATH, patches: summed}; or {central: {epochs: 10}}, which trains on the auxiliary images first."""
    normalization: NormalizationPart | None = None
    """In the place of the model's own."""
    position_embedding: Literal["learned", "sincos"] = "learned"
    """`sincos` gives a Vision Transformer a fixed table of sines and cosines, which is neither trained nor sent."""
    lora: LoRAPart | None = None
    """Trains low-rank changes of some layers and freezes the rest."""
    precode: PrecodePart | None = None
    """Puts a variational bottleneck before the classifier."""

    @property
    def start_run(self) -> Path | None:
        """The run folder that the weights come from: it is named, or its `model.safetensors` is; None where there is none."""
        if self.start is None or self.start.file is None:
            return None
        path = Path(self.start.file)
        if path.name == "model.safetensors" and (path.parent / "scenario.yaml").is_file():
            return path.parent
        return path if path.is_dir() else None

    @property
    def start(self) -> StartPart | None:
        """What the weights start from; None where they are drawn."""
        if isinstance(self.pretrained, StartPart):
            return self.pretrained
        if self.pretrained is False:
            return None
        return StartPart(file=None if self.pretrained is True else self.pretrained)
