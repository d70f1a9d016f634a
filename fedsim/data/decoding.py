"""A stored image becomes 8-bit RGB; what that changes is told."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedsim.errors import ScenarioError

Encoded = bytes | Path | Image.Image
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
_LONGEST = 200  # characters of a path or of a reason in a message

GRAY = "gray; their channel is repeated three times"
DEEP = "16 bits a channel, of which the upper 8 are kept"
DARK = "16 bits a channel, but no value above 4095: almost black in the upper 8, which are kept. Scale them to all 16"
TRANSPARENT = "an alpha channel, which is dropped: hidden colors show"
SEVERAL = "several frames, of which the first is taken"


def stored(content: bytes | None, path: str | None, folder: Path | None) -> Encoded:
    """Return the bytes of an image where a table holds them, or else the file that it names.

    Args:
        content: the encoded image.
        path: where it lies.
        folder: what the path is relative to; None is the working directory.

    Raises:
        ValueError: the table holds neither bytes nor the path of a file that is there.
    """
    if content:
        return content
    if not path:
        raise ValueError("its bytes are missing, and no path is given")
    if "://" in path or path.startswith("data:"):
        raise ValueError(f"its bytes are missing, and {_cut(path)} is an address; only local files are read")
    file = (folder or Path()) / path
    if not file.is_file():
        raise ValueError(f"its bytes are missing, and there is no file {_cut(str(file))}")
    return file


def decode(read: Callable[[], Encoded], name: str, where: str) -> Image.Image:
    """Return an image in 8-bit RGB.

    Args:
        read: returns the stored image, or raises a ValueError.
        name: what an error message calls the image, its file first.
        where: YAML path of the parameter that named the files.

    Raises:
        ScenarioError: the image is missing, damaged or of a kind that has no defined 8-bit form.
    """
    with _opened(read, name, where) as image:
        return _in_color(image)


def conversions(read: Callable[[], Encoded], name: str, where: str) -> tuple[str, ...]:
    """Return how an image differs from what is stored; empty for 8-bit RGB. Decodes only images of 16 bits.

    Raises:
        ScenarioError: see `decode`.
    """
    with _opened(read, name, where) as image:
        return tuple(_conversions(image))


@contextmanager
def _opened(read: Callable[[], Encoded], name: str, where: str) -> Iterator[Image.Image]:
    try:
        encoded = read()
        if isinstance(encoded, Image.Image):
            yield encoded
            return
        # A pipe or a device would be waited for, without end.
        if isinstance(encoded, Path) and encoded.exists() and not encoded.is_file():
            raise ValueError("not a file")
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            yield image
        return
    except UnidentifiedImageError:
        reason = "unknown format"
    except _DAMAGED as error:
        reason = _cut(str(error))
    raise ScenarioError(where, f"{name} is no readable image ({reason}). Mend or remove it.")


def _conversions(image: Image.Image) -> Iterator[str]:
    if _is_deep(image):
        yield DARK if image.mode.startswith("I") and _extrema(image)[1] < 4096 else DEEP
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        yield GRAY
    elif image.mode not in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        yield f"{image.mode} colors, converted to RGB without their color profile"
    if "A" in image.mode.upper().replace("LAB", "") or "transparency" in image.info:
        yield TRANSPARENT
    if getattr(image, "is_animated", False):
        yield SEVERAL


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits a channel, also where Pillow itself reduces them."""
    tiles = getattr(image, "tile", ())  # images that are not read from a file have none
    arguments = tiles[0].args if tiles else ()
    parts = (arguments,) if isinstance(arguments, str) else tuple(arguments or ())
    has_large_maximum = image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in parts)
    # In "BGR;16" and "BGR;15" all channels of a pixel share 16 bits.
    modes = [part for part in parts if isinstance(part, str) and not part.startswith("BGR")]
    return image.mode.startswith("I") or has_large_maximum or any(";16" in mode for mode in modes)


def _extrema(image: Image.Image) -> tuple[int, int]:
    pixels = np.asarray(image)
    return int(pixels.min()), int(pixels.max())


def _in_color(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not stored; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        lowest, highest = _extrema(image)
        if image.mode == "I" and image.format != "PPM" and not (0 <= lowest and 255 < highest < 65536):
            raise ValueError(
                f"32-bit pixels from {lowest} to {highest}, whose range is not stored; convert it to 8 or 16 bits"
            )
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
