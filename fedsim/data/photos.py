"""Crops of seven freely licensed photographs that ship inside scikit-image: auxiliary crops show the clients' scenes.

No network, no download. Since all images of a class come from one photograph, an attack that is granted `auxiliary_data`
knows the scenes of the clients' images, and the same attack on another client's update scores too well as a control. Where
either matters, take independent images: `folder`, `parquet`, `hub` or `torchvision`.

Class = the photograph. Each is cut once into three regions that share no pixel: two thirds for the clients, and a
strip whose halves are for testing and for the attacker. Crops are squares at random places and scales: images of one
class and one pool may overlap, those of different pools never.

The photographs, with their terms as scikit-image states them:
- astronaut: Eileen Collins. NASA; no known copyright restrictions, public domain.
- chelsea: a cat. Stefan van der Walt; CC0.
- coffee: an espresso cup, courtesy of Pikolo Espresso Bar. Rachel Michetti; CC0.
- hubble_deep_field: the eXtreme Deep Field. NASA; public domain.
- ihc: stained colon tissue. Center for Microscopy and Molecular Imaging; no known copyright restrictions.
- retina: a normal left eye. Mikael Haggstrom; CC0.
- rocket: Falcon 9 with DSCOVR. SpaceX; public domain.

Left out: scikit-image's stereo pair of a motorcycle (its source, the Middlebury benchmark, states no free license), its
gray images and its drawings.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsim.errors import ScenarioError
from fedsim.seeds import numpy_generator
from fedsim.source import Pool, Pools, Source

Split = Literal["train", "test", "auxiliary"]
Side = Literal["left", "right", "bottom"]

# File, and the side on which the strip for testing and for the attacker shows most of the same subject.
PHOTOGRAPHS: tuple[tuple[str, Side], ...] = (
    ("astronaut.png", "bottom"),
    ("chelsea.png", "left"),
    ("coffee.png", "right"),
    ("hubble_deep_field.jpg", "right"),
    ("ihc.png", "right"),
    ("retina.jpg", "right"),
    ("rocket.jpg", "bottom"),
)
_REDUCTION = 4  # flatness is judged at a quarter of the photograph's resolution: noise and grain do not count
_LEAST_STD = 0.05  # of the luminance in [0, 1]
_LEAST_GRADIENT = 0.012  # mean of |dx| + |dy| of the luminance, per reduced pixel
_SMALLEST, _LARGEST_MINIMUM = 0.2, 0.8  # bounds of the least side of a crop, as shares of the region's shorter side


class Box(NamedTuple):
    """A rectangle of pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, kw_only=True)
class Photos(Source):
    """Random crops of seven photographs that come with scikit-image; class = the photograph. Works offline.

    Crops in which the luminance hardly varies are rejected. Up to 224 pixels, clients' images are never enlarged.
    """

    is_drawn: ClassVar[bool] = True  # each pool from a region of the photographs of its own

    image_size: int = 32
    samples: int = 600
    test_samples: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_drawn()

    def load(self, seed: int) -> Pools:
        """Return the pools; crops are cut and resized when they are read.

        Raises:
            ScenarioError: this installation of scikit-image lacks a photograph.
        """
        return Pools(
            train=self._pool("train", self.samples, seed),
            test=self._pool("test", self.test_samples, seed),
            auxiliary=self._pool("auxiliary", self.auxiliary_samples, seed),
            class_names=tuple(Path(file).stem for file, _ in PHOTOGRAPHS),
        )

    def _pool(self, split: Split, count: int, seed: int) -> Pool:
        regions = [_region(file, side, split) for file, side in PHOTOGRAPHS]
        size = (self.image_size, self.image_size)

        def picture(index: int) -> Image.Image:
            region = regions[index % len(regions)]
            crop = region.draw(self.image_size, numpy_generator(seed, "photos", split, index))
            # Cropped before resizing: Pillow's `box` argument would let the filter look across its edges.
            return region.pixels.crop(crop).resize(size, Image.Resampling.BICUBIC)

        def fetch(indices: Sequence[int]) -> Tensor:
            pictures = [picture(index) for index in indices]
            return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()

        return Pool(torch.arange(count) % len(regions), fetch)


def divide(width: int, height: int, side: Side) -> dict[Split, Box]:
    """Return the three regions of a photograph: two thirds, and the halves of the strip on that side."""
    if side == "bottom":
        edge, middle = 2 * height // 3, width // 2
        return {
            "train": Box(0, 0, width, edge),
            "test": Box(0, edge, middle, height),
            "auxiliary": Box(middle, edge, width, height),
        }
    edge, middle = 2 * width // 3, height // 2
    near, far = (0, edge) if side == "right" else (width - edge, width)
    start, stop = (edge, width) if side == "right" else (0, width - edge)
    return {
        "train": Box(near, 0, far, height),
        "test": Box(start, 0, stop, middle),
        "auxiliary": Box(start, middle, stop, height),
    }


@dataclass(frozen=True)
class Region:
    """One region of one photograph, with what is needed to judge crops quickly.

    Args:
        pixels: the region alone, so that no crop can reach outside.
        moments: integral images of luminance, squared luminance and gradient at reduced size.
    """

    pixels: Image.Image
    moments: np.ndarray

    def draw(self, image_size: int, generator: np.random.Generator) -> Box:
        """Return a random crop that is not flat."""
        width, height = self.pixels.size
        most = min(width, height)
        least = min(int(_LARGEST_MINIMUM * most), max(int(_SMALLEST * most), image_size))
        for _ in range(1000):
            side = int(least * (most / least) ** generator.random())
            left = int(generator.integers(0, width - side + 1))
            top = int(generator.integers(0, height - side + 1))
            crop = Box(left, top, left + side, top + side)
            if not self.is_flat(crop):
                return crop
        raise ScenarioError("data.name", "scikit-image's photographs are not the expected ones. Use data.name: shapes.")

    def is_flat(self, crop: Box) -> bool:
        """Return whether the luminance hardly varies: a small standard deviation or a small mean gradient."""
        left, top = crop.left // _REDUCTION, crop.top // _REDUCTION
        right, bottom = crop.right // _REDUCTION, crop.bottom // _REDUCTION
        corners = self.moments[:, [top, top, bottom, bottom], [left, right, left, right]]
        mean, square, gradient = (corners @ np.array([1.0, -1.0, -1.0, 1.0])) / ((right - left) * (bottom - top))
        return bool(square - mean**2 < _LEAST_STD**2 or gradient < _LEAST_GRADIENT)


@functools.cache
def _region(file: str, side: Side, split: Split) -> Region:
    photograph = _photograph(file)
    pixels = photograph.crop(divide(*photograph.size, side)[split])
    gray = np.asarray(pixels.convert("L").reduce(_REDUCTION), dtype=np.float64) / 255
    slopes = np.abs(np.diff(gray, axis=0, append=gray[-1:])) + np.abs(np.diff(gray, axis=1, append=gray[:, -1:]))
    sums = np.stack([gray, gray**2, slopes]).cumsum(1).cumsum(2)
    return Region(pixels, np.pad(sums, ((0, 0), (1, 0), (1, 0))))


@functools.cache
def _photograph(file: str) -> Image.Image:
    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent if package and package.origin else Path()
    path = folder / "data" / file
    if not path.is_file():
        raise ScenarioError(
            "data.name", f"this installation of scikit-image lacks {path}. Reinstall it, or use data.name: shapes."
        )
    with Image.open(path) as image:
        return image.convert("RGB")
