"""Models by name, any torch module among them, and what attacks, defenses and the simulator ask of one."""

from fedsim.models.build import Built, Start, build, build_with_notes, own_outputs
from fedsim.models.copying import copied
from fedsim.models.interface import (
    Features,
    HeadNames,
    ModelInterfaceError,
    Patches,
    PatchGrid,
    catching_head_inputs,
    facts,
    frozen_facts,
    gradient_of,
    head_inputs,
    head_names,
    normalization,
    patch_grid,
    prefix_rows,
    shared_buffers,
    shared_state,
    trained,
    unfused_attention,
)
from fedsim.models.lora import LoRALinear, merged
from fedsim.models.precode import BottleneckedLinear, Loss, has_own_loss, set_loss, training_loss
from fedsim.models.trainable import freeze_others, matches
from fedsim.models.trial import draws_in_training
from fedsim.models.vit import KWARGS, is_vit

__all__ = [
    "BottleneckedLinear",
    "KWARGS",
    "Built",
    "Features",
    "HeadNames",
    "LoRALinear",
    "Loss",
    "ModelInterfaceError",
    "PatchGrid",
    "Patches",
    "Start",
    "build",
    "build_with_notes",
    "catching_head_inputs",
    "copied",
    "draws_in_training",
    "facts",
    "freeze_others",
    "frozen_facts",
    "gradient_of",
    "has_own_loss",
    "head_inputs",
    "head_names",
    "is_vit",
    "matches",
    "merged",
    "normalization",
    "own_outputs",
    "patch_grid",
    "prefix_rows",
    "set_loss",
    "shared_buffers",
    "shared_state",
    "trained",
    "training_loss",
    "unfused_attention",
]
