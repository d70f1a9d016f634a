"""The model part of a scenario: which model, from which weights, and what of it trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedsim.scenario.fields import MOST_RANK, NO_BOOLEAN, Part, Patterns, Switch
from fedsim.validation import worded


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
    pretrained: Annotated[Switch | str, worded("true, false or the path of a weights file")] = False
    """true for published weights, from the Hugging Face hub or its cache; or the path of a weights file."""
    normalization: NormalizationPart | None = None
    """In the place of the model's own."""
    position_embedding: Literal["learned", "sincos"] = "learned"
    """`sincos` gives a Vision Transformer a fixed table of sines and cosines, which is neither trained nor sent."""
    lora: LoRAPart | None = None
    """Trains low-rank changes of some layers and freezes the rest."""
    precode: PrecodePart | None = None
    """Puts a variational bottleneck before the classifier."""
