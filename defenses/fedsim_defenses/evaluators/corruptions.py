"""Corruptions: accuracy on test images with noise, blur and other damage that no adversary chose.

Paper: Hendrycks, Dietterich. "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations". ICLR 2019.
https://arxiv.org/abs/1903.12261

Idea: each corruption at severities 1 to 5, with the constants of the authors' code for CIFAR-10-C (make_cifar_c.py), for images
x in [0, 1], each result clipped to [0, 1]:

- gaussian_noise: x + N(0, c^2), c = .04 .06 .08 .09 .10
- shot_noise: Poisson(c x) / c, c = 500 250 100 75 50
- impulse_noise: a share c of the values becomes 0 or 1, c = .01 .02 .03 .05 .07
- blur: a Gaussian of standard deviation c pixels, c = .4 .6 .7 .8 1
- contrast: (x - m) c + m around the mean m of each channel, c = .75 .5 .4 .3 .15
- brightness: the value of HSV, the largest channel, plus c, c = .05 .1 .15 .2 .3
- jpeg: quality c, c = 80 65 58 50 40
- pixelate: resized to a share c of its side and back by box averages, c = .95 .9 .85 .75 .65

Differs from the paper: eight of its corruptions, which need no other file; `blur` is the Gaussian one of its extra set; the
constants are those for 32 x 32 images at any size; draws come from the seed of the run, so no figure compares with that on
the published images.

Needs: any model, of images with one or three channels for jpeg and pixelate. Cost: a forward pass for each corruption, severity
and image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.exchange import Images
from fedsim.progress import advance
from fedsim.source import Pool
from fedsim_defenses.evaluators._intervals import share
from fedsim_defenses.evaluators._robustness import parts, right

Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "blur", "contrast", "brightness", "jpeg", "pixelate"
]
ALL: tuple[Corruption, ...] = get_args(Corruption)
SEVERITIES = 5


def _gaussian_noise(images: Images, amount: float, generator: torch.Generator) -> Images:
    return images + amount * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Images, amount: float, generator: torch.Generator) -> Images:
    return torch.poisson(amount * images, generator=generator) / amount


def _impulse_noise(images: Images, amount: float, generator: torch.Generator) -> Images:
    is_hit = torch.rand(images.shape, generator=generator) < amount
    values = torch.randint(2, images.shape, generator=generator).to(images)
    return torch.where(is_hit, values, images)


def _blur(images: Images, amount: float, generator: torch.Generator) -> Images:
    reach = math.ceil(4 * amount)  # as far as scikit-image cuts it
    places = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-(places**2) / (2 * amount**2))
    kernel /= kernel.sum()
    flat = images.flatten(0, 1)[:, None]
    padded = nn.functional.pad(flat, (reach,) * 4, mode="replicate")
    across = nn.functional.conv2d(padded, kernel[None, None, None, :])
    return nn.functional.conv2d(across, kernel[None, None, :, None]).view(images.shape)


def _contrast(images: Images, amount: float, generator: torch.Generator) -> Images:
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * amount + means


def _brightness(images: Images, amount: float, generator: torch.Generator) -> Images:
    # Hue and saturation stay where all channels keep their ratios; black has none, and becomes grey.
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-12), brighter)


def _jpeg(images: Images, amount: float, generator: torch.Generator) -> Images:
    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(amount))
        return Image.open(buffer)

    return _by_pillow(images, compressed)


def _pixelate(images: Images, amount: float, generator: torch.Generator) -> Images:
    height, width = images.shape[2:]
    small = max(1, int(width * amount)), max(1, int(height * amount))

    def coarse(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _by_pillow(images, coarse)


def _by_pillow(images: Images, changed: Callable[[Image.Image], Image.Image]) -> Images:
    stored = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found = []
    for image in stored:
        made = np.asarray(changed(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)))
        found.append(torch.from_numpy(made.reshape(image.shape).copy()))
    return torch.stack(found).permute(0, 3, 1, 2).to(images.dtype) / 255


_Made = Callable[[Images, float, torch.Generator], Tensor]
_AMOUNTS: Mapping[Corruption, tuple[_Made, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "jpeg": (_jpeg, (80.0, 65.0, 58.0, 50.0, 40.0)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}


def corrupted(images: Images, corruption: Corruption, severity: int, generator: torch.Generator) -> Images:
    """Return damaged images, pixels in [0, 1].

    Args:
        images: pixels in [0, 1].
        corruption: which damage.
        severity: 1 to 5.
        generator: of every draw.
    """
    make, amounts = _AMOUNTS[corruption]
    return make(images, amounts[severity - 1], generator).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Corruptions(Evaluator):
    """Accuracy by corruption and severity, with 95% Wilson intervals.

    Args:
        corruptions: which damages; all by default.
        severities: of them, 1 to 5.
        images: test images at most; the first ones.
    """

    citation: ClassVar[str] = (
        "Hendrycks, Dietterich. Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. ICLR 2019. "
        "https://arxiv.org/abs/1903.12261"
    )

    corruptions: tuple[Corruption, ...] = ALL
    severities: tuple[int, ...] = (1, 3, 5)
    images: int = 500

    def __post_init__(self) -> None:
        if not self.corruptions or len({*self.corruptions}) < len(self.corruptions):
            raise ValueError(f"corruptions: expected at least one and each once, got {list(self.corruptions)}.")
        if unknown := {*self.corruptions} - {*ALL}:
            raise ValueError(f"corruptions: expected some of {', '.join(ALL)}, got {', '.join(sorted(unknown))}.")
        if not self.severities or not all(1 <= severity <= SEVERITIES for severity in self.severities):
            raise ValueError(f"severities: expected numbers from 1 to {SEVERITIES}, got {list(self.severities)}.")
        if len({*self.severities}) < len(self.severities):
            raise ValueError(f"severities: expected each once, got {list(self.severities)}.")
        if self.images < 1:
            raise ValueError(f"images: expected at least 1, got {self.images}.")

    @torch.no_grad()
    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return the shares, that of images as they are first and the mean over all corruptions last."""
        if not len(pool):
            raise EvaluationRefusedError("there are no test images")
        known = pool.read(range(min(self.images, len(pool))))
        channels, labels = known.images.shape[1], known.labels.long()
        if channels not in (1, 3) and {"jpeg", "pixelate"} & {*self.corruptions}:
            raise EvaluationRefusedError(
                f"jpeg and pixelate need images of 1 or 3 channels, and these have {channels}. Leave them out of corruptions"
            )
        scores = share("accuracy, not corrupted", right(model, known.images, labels))
        rates, total = [], len(self.corruptions) * len(self.severities)
        for corruption in self.corruptions:
            for severity in sorted(self.severities):
                found = [
                    right(model, corrupted(known.images[part], corruption, severity, generator), labels[part])
                    for part in parts(len(known))
                ]
                is_right = torch.cat(found)
                rates.append(float(is_right.double().mean()))
                scores |= share(f"{corruption} at severity {severity}", is_right)
                advance(len(rates), total)
        return Evaluation({**scores, "mean accuracy, corrupted": sum(rates) / total})
