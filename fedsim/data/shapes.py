"""Procedural images: one rotated, textured shape before a textured background; any size and any number.

Class = shape kind and color family. Sample i of a split is a pure function of (seed, split, i): samples are independent
of each other, and a longer pool begins like a shorter one.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fedsim.seeds import numpy_generator
from fedsim.source import Pool, Pools, Source

Outline = tuple[tuple[float, float], ...]  # corners in units of the shape's radius, y downwards

_SUPERSAMPLING = 4
_LARGEST_KEPT, _MOST_KEPT = 64, 4096  # pixels a side, and images: 50 MB


def _polygon(radii: Sequence[float], count: int, start: float = -90.0) -> Outline:
    """Corners at equal angles, the radii in turn."""
    angles = [math.radians(start + 360.0 * i / count) for i in range(count)]
    return tuple(
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)
    )


def _quarters(corners: Outline) -> Outline:
    """A quarter of the outline, and its turns by 90, 180 and 270 degrees."""
    turned = [corners]
    for _ in range(3):
        turned.append(tuple((-y, x) for x, y in turned[-1]))
    return tuple(corner for quarter in turned for corner in quarter)


def _arc(center: float, radius: float, start: float, stop: float) -> Outline:
    angles = np.radians(np.linspace(start, stop, 32))
    return tuple((center + radius * math.cos(a), radius * math.sin(a)) for a in angles)


def _heart() -> Outline:
    turns = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    return tuple(
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    )


# Outline, and outline of the hole where there is one.
KINDS: Mapping[str, tuple[Outline, ...]] = MappingProxyType(
    {
        "disc": (_polygon([1.0], 64),),
        "ring": (_polygon([1.0], 64), _polygon([0.55], 64)),
        "triangle": (_polygon([1.0], 3),),
        "square": (_polygon([1.0], 4, 45.0),),
        "star": (_polygon([1.0, 0.42], 10),),
        "cross": (_quarters(((-0.3, -1.0), (0.3, -1.0), (0.3, -0.3))),),
        "crescent": (_arc(0.0, 1.0, 60.0, 300.0) + _arc(0.6, 0.872, 263.0, 97.0),),
        "heart": (_heart(),),
        "bar": (((-1.0, -0.28), (1.0, -0.28), (1.0, 0.28), (-1.0, 0.28)),),
        "arrow": (((0.0, -1.0), (0.8, -0.1), (0.28, -0.1), (0.28, 1.0), (-0.28, 1.0), (-0.28, -0.1), (-0.8, -0.1)),),
        "bowtie": (((-1.0, -0.75), (0.0, -0.12), (1.0, -0.75), (1.0, 0.75), (0.0, 0.12), (-1.0, 0.75)),),
        "half-disc": (_arc(0.0, 1.0, 180.0, 360.0),),
    }
)
# Hues, 30 degrees apart.
COLORS = tuple("red orange yellow lime green mint cyan azure blue violet magenta rose".split())
MOST_CLASSES = len(KINDS) * len(COLORS)


@dataclass(frozen=True, kw_only=True)
class Shapes(Source):
    """Procedural shapes before textured backgrounds; class = shape kind and color family. Works offline.

    Args:
        classes: number of classes; up to twelve differ from each other in kind and in color.
    """

    is_drawn: ClassVar[bool] = True

    image_size: int = 32
    samples: int = 2000
    test_samples: int = 500
    classes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_drawn()
        if not 2 <= self.classes <= MOST_CLASSES:
            raise ValueError(f"classes: expected 2 to {MOST_CLASSES}, got {self.classes}.")

    def load(self, seed: int) -> Pools:
        """Return the pools; images are drawn when they are read."""
        return Pools(
            train=self._pool("train", self.samples, seed),
            test=self._pool("test", self.test_samples, seed),
            auxiliary=self._pool("auxiliary", self.auxiliary_samples, seed),
            class_names=tuple(" ".join(describe(label)) for label in range(self.classes)),
        )

    def _pool(self, split: str, count: int, seed: int) -> Pool:
        drawn = _kept if self.image_size <= _LARGEST_KEPT else _kept.__wrapped__

        def fetch(indices: Sequence[int]) -> Tensor:
            images = [drawn(index % self.classes, self.image_size, seed, split, index) for index in indices]
            return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

        return Pool(torch.arange(count) % self.classes, fetch)


def describe(label: int) -> tuple[str, str]:
    """Return color family and shape kind of a class; all differ, and the first twelve in both."""
    kind, lap = label % len(KINDS), label // len(KINDS)
    return COLORS[(5 * kind + lap) % len(COLORS)], list(KINDS)[kind]


@functools.lru_cache(maxsize=_MOST_KEPT)
def _kept(label: int, size: int, seed: int, split: str, index: int) -> np.ndarray:
    """Return an image of a pool, which every epoch reads again."""
    return draw(label, size, numpy_generator(seed, "shapes", split, index))


def draw(label: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return one image of a class, uint8, shape (size, size, 3)."""
    color, kind = describe(label)
    hue = (COLORS.index(color) * 30 + generator.uniform(-8, 8)) / 360
    inside = _color(hue, generator.uniform(0.7, 1.0), generator.uniform(0.6, 1.0))
    shape = inside * _shading(size, 0.25, generator) + _texture(size, 0.06, generator)
    near = _color(generator.uniform(), generator.uniform(0.0, 0.45), generator.uniform(0.1, 0.9))
    far = _color(generator.uniform(), generator.uniform(0.0, 0.45), generator.uniform(0.1, 0.9))
    blend = _ramp(size, generator)
    background = near * blend + far * (1 - blend) + _texture(size, generator.uniform(0.05, 0.15), generator)
    coverage = _coverage(KINDS[kind], size, generator)
    picture = coverage * shape + (1 - coverage) * background + generator.normal(0, 0.01, (size, size, 3))
    pixels: np.ndarray = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _ramp(size: int, generator: np.random.Generator) -> np.ndarray:
    """A slope from 0 to 1 in a random direction, shape (size, size, 1)."""
    angle = generator.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, size)
    slope = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    return (0.5 + slope / (2 * math.sqrt(2)))[..., None]


def _shading(size: int, depth: float, generator: np.random.Generator) -> np.ndarray:
    return 1 - depth * _ramp(size, generator)


def _texture(size: int, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Random luminance over five octaves and random color over the two coarsest, shape (size, size, 3)."""
    color = [_noise(size, 2, generator) for _ in range(3)]
    return strength * (_noise(size, 5, generator)[..., None] + 0.5 * np.stack(color, axis=-1))


def _noise(size: int, octaves: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise whose amplitude halves while its cells do, shape (size, size)."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        cells = generator.standard_normal((3 * 2**octave,) * 2, dtype=np.float32)
        total += np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return total


def _coverage(outlines: tuple[Outline, ...], size: int, generator: np.random.Generator) -> np.ndarray:
    """Share of each pixel that the shape covers, shape (size, size, 1)."""
    radius = generator.uniform(0.28, 0.42) * size
    center = size / 2 + generator.uniform(-0.5, 0.5, 2) * (size - 2 * radius)
    angle = math.radians(generator.uniform(-30, 30))
    turn = radius * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    canvas = Image.new("L", (size * _SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for fill, outline in zip((255, 0), outlines, strict=False):
        corners = (np.array(outline) @ turn + center) * _SUPERSAMPLING
        pen.polygon([(float(x), float(y)) for x, y in corners], fill=fill)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64)[..., None] / 255
