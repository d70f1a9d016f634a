"""Pictures as files: strips of tensors as PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from fedsim.exchange import Images

SHOWN = 8  # pictures of one update that the report shows; the findings hold all


def png_strip(images: Images) -> bytes:
    """Return the first pictures side by side as a PNG, native size, pixels in [0, 1] clamped."""
    shown = [_to_bytes(image) for image in images[:SHOWN]]
    picture = Image.fromarray(np.concatenate(shown, axis=1).squeeze())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _to_bytes(image: Tensor) -> np.ndarray:
    values = (image.clamp(0, 1) * 255).round().byte()
    return values.movedim(0, -1).numpy()
