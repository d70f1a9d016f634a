"""How many images an update holds, by the rank of the spans in it: no grant tells it, and none is needed."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim_attacks.spans.block import FirstBlock

_GAP = 4.0  # least ratio of neighboring singular values where a span ends


def image_count(block: FirstBlock) -> int:
    """Return the number of distinct images behind the spans: where both spectra of the MLP drop the most.

    Raises:
        AttackRefusedError: no number of images fits, because there are too many or the update is noisy.
    """
    each, width = block.tokens_per_image, block.width
    most = (width - 1) // each
    if most < 1:
        raise AttackRefusedError(
            f"one image has {each} tokens, and the model is {width} wide: their span is the whole space, whatever the image."
        )
    drops = [
        min(_drop(layer.values, count * each) for layer in (block.inputs, block.hidden)) for count in range(1, most + 1)
    ]
    best = max(range(most), key=lambda place: drops[place])
    if drops[best] < _GAP:
        raise AttackRefusedError(
            f"no number of images up to {most} explains the rank of the first block's gradients: there are more images, or "
            f"noise or rounding fills the spectrum (largest drop {drops[best]:.1f}, {_GAP:g} is needed)."
        )
    return best + 1


def _drop(values: Float[Tensor, " rank"], rank: int) -> float:
    floor = float(values[0]) * 1e-16
    return float(values[rank - 1]) / max(float(values[rank]), floor)
