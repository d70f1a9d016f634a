"""Images of every mode become 8-bit RGB, and what that changes is told."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedsim.data.decoding import DARK, DEEP, GRAY, SEVERAL, TRANSPARENT, conversions, decode, stored
from fedsim.errors import ScenarioError


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def seen(encoded):
    """The first pixel of an image, and how the image was converted."""
    image = decode(lambda: encoded, "x", "data.path")
    assert image.mode == "RGB"
    return np.asarray(image)[0, 0].tolist(), conversions(lambda: encoded, "x", "data.path")


def deep_png(color_type, *values):
    """A PNG of 16 bits a channel in one color; Pillow itself cannot write one in RGB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + struct.pack(f">{len(values)}H", *values) * 4) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed_bmp(bits, *pixel_masks):
    """A BMP of one pixel whose channels share 16 bits, all of them full in red alone; Pillow itself cannot write one."""
    masks = struct.pack("<3I", *pixel_masks)
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, bits, 3, 4, 0, 0, 0, 0)
    start = 14 + len(header) + len(masks)
    return b"BM" + struct.pack("<IHHI", start + 4, 0, 0, start) + header + masks + struct.pack("<HH", pixel_masks[0], 0)


def uniform(mode, color):
    return Image.new(mode, (4, 4), color)


def integers(value, dtype):
    return Image.fromarray(np.full((4, 4), value, dtype=dtype))


CASES = {
    "RGB": (encode(uniform("RGB", (1, 2, 3))), [1, 2, 3], ()),
    "palette": (encode(uniform("RGB", (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE)), [1, 2, 3], ()),
    "gray": (encode(uniform("L", 77)), [77] * 3, (GRAY,)),
    "black and white": (encode(uniform("1", 1)), [255] * 3, (GRAY,)),
    "gray with alpha": (encode(uniform("LA", (77, 9))), [77] * 3, (GRAY, TRANSPARENT)),
    "alpha": (encode(uniform("RGBA", (10, 20, 30, 0))), [10, 20, 30], (TRANSPARENT,)),
    "transparent palette": (encode(uniform("P", 0), transparency=0), [0, 0, 0], (TRANSPARENT,)),
    "CMYK": (
        encode(uniform("CMYK", (255, 0, 0, 0)), "TIFF"),
        [0, 255, 255],
        ("CMYK colors, converted to RGB without their color profile",),
    ),
    "16-bit gray": (encode(integers(40000, np.uint16)), [156] * 3, (DEEP, GRAY)),
    "16-bit gray TIFF": (encode(integers(40000, np.uint16), "TIFF"), [156] * 3, (DEEP, GRAY)),
    "12 bits in 16": (encode(integers(4000, np.uint16)), [15] * 3, (DARK, GRAY)),
    "16 bits in 32": (encode(integers(40000, np.int32), "TIFF"), [156] * 3, (DEEP, GRAY)),
    "16-bit RGB": (deep_png(2, 256, 40000, 65535), [1, 156, 255], (DEEP,)),
    "BMP of 5, 6 and 5 bits": (packed_bmp(16, 0xF800, 0x7E0, 0x1F), [255, 0, 0], ()),
    "BMP of 5 bits a channel": (packed_bmp(16, 0x7C00, 0x3E0, 0x1F), [255, 0, 0], ()),
    "16-bit PGM": (b"P5 1 1 65535\n" + struct.pack(">H", 40000), [156] * 3, (DEEP, GRAY)),
    "16-bit PPM": (b"P6 1 1 65535\n" + struct.pack(">3H", 40000, 0, 65535), [156, 0, 255], (DEEP,)),
    "frames": (
        encode(uniform("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[uniform("RGB", (0, 255, 0))]),
        [255, 0, 0],
        (SEVERAL,),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_image_is_read_and_its_conversion_told(case):
    encoded, color, told = CASES[case]
    assert seen(encoded) == (color, told)


@pytest.mark.parametrize(
    "image,reason",
    [
        (integers(0.5, np.float32), "floating-point pixels, whose range is not stored"),
        (integers(-5, np.int32), "32-bit pixels from -5 to -5, whose range is not stored"),
        (integers(200, np.int32), "32-bit pixels from 200 to 200, whose range is not stored"),
        (integers(70000, np.int32), "32-bit pixels from 70000 to 70000, whose range is not stored"),
    ],
)
def test_pixels_of_unknown_range_are_refused(image, reason):
    with pytest.raises(ScenarioError, match=f"x is no readable image .{reason}"):
        decode(lambda: encode(image, "TIFF"), "x", "data.path")


def test_bytes_come_before_the_path(tmp_path):
    assert stored(b"encoded", "nowhere.png", tmp_path) == b"encoded"


def test_a_path_is_relative_to_its_folder(tmp_path):
    file = tmp_path / "inner" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"x")
    assert stored(None, "inner/a.png", tmp_path) == file
    assert stored(None, str(file), tmp_path / "elsewhere") == file


@pytest.mark.parametrize(
    "path,reason",
    [
        (None, "no path is given"),
        ("", "no path is given"),
        ("gone.png", "there is no file .*gone.png"),
        (".", "there is no file"),
        ("https://example.org/a.png", "https://example.org/a.png is an address; only local files are read"),
        ("data:image/png;base64,AAAA", "is an address"),
    ],
)
def test_missing_bytes_are_told(path, reason, tmp_path):
    with pytest.raises(ScenarioError, match=f"row 3, is no readable image .its bytes are missing, and .*{reason}"):
        decode(lambda: stored(None, path, tmp_path), "row 3,", "data.path")


def test_a_message_does_not_repeat_a_whole_image_in_text(tmp_path):
    with pytest.raises(ScenarioError) as refusal:
        decode(lambda: stored(None, "A" * 5000, tmp_path), "row 3,", "data.path")
    assert len(str(refusal.value)) < 400


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ScenarioError, match="not a file"):
        decode(lambda: tmp_path / "a.png", "x", "data.path")
