"""The data-source contract: where images come from, in three disjoint pools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.exchange import HardLabels, LabeledImages

LARGEST_IMAGE = 2048  # pixels a side: of patches of 16 pixels a ViT gets 16,384
MOST_DRAWN = 2_000_000  # samples of a pool that is drawn
MOST_BYTES = 8 * 2**30  # of the images of such a pool


@dataclass(frozen=True)
class Pool:
    """A set of labeled images that are read when needed.

    Args:
        labels: class of every sample.
        fetch: sample numbers -> uint8 images, shape (batch, channels, height, width); a pure function.
        conversions: sample number -> how its image differs from what is stored, one phrase each.
    """

    labels: HardLabels
    fetch: Callable[[Sequence[int]], Tensor]
    conversions: Callable[[int], tuple[str, ...]] = lambda sample: ()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Sequence[int]) -> LabeledImages:
        """Return the named samples, pixels in [0, 1]."""
        chosen = [int(i) for i in indices]
        return LabeledImages(self.fetch(chosen).float() / 255, self.labels[chosen])


@dataclass(frozen=True)
class Pools:
    """What a source delivers: three disjoint pools and the names of the classes.

    Args:
        train: dealt to the clients by the partition.
        test: for the central evaluation.
        auxiliary: the attacker's, when granted; also the data-set mean of the controls.
        class_names: one name per class, in label order.
        notes: what a user should know of the choice of images, such as those left out; each begins with a YAML path.
    """

    train: Pool
    test: Pool
    auxiliary: Pool
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A data source; the fields of a subclass are its YAML parameters, beside `name` and `partition`.

    The sizes are upper bounds where images are read, since one scenario may be pointed at other files: a source that
    holds fewer gives what it has. Sources that draw their images meet them exactly.

    Args:
        image_size: side of the square images in pixels; None keeps the size of the files, which must be equal.
        samples: size of the training pool; None takes what there is.
        test_samples: size of the test pool; where no test set is given it is held out of the training set,
            a quarter at most. None takes the whole test set, or a tenth.
        auxiliary_samples: size of the auxiliary pool, held out of the training set: an eighth of it at most.

    Class facts:
        is_drawn: whether each image is drawn anew from the seed and its pool, so that no other seed or size puts an image of
            one pool into another.
    """

    is_drawn: ClassVar[bool] = False

    image_size: int | None = 32
    samples: int | None = None
    test_samples: int | None = None
    auxiliary_samples: int = 256

    def __post_init__(self) -> None:
        for field in ("image_size", "samples", "test_samples", "auxiliary_samples"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: expected at least 1, got {value}.")
        if self.image_size is not None and self.image_size > LARGEST_IMAGE:
            raise ValueError(f"image_size: expected at most {LARGEST_IMAGE} pixels, got {self.image_size}.")

    def check_drawn(self) -> None:
        """Refuse pools that would not fit, for a source that draws every image that is asked for.

        Raises:
            ValueError: more samples than `MOST_DRAWN`, or images of more than `MOST_BYTES` together.
        """
        size = self.image_size or 0
        for field in ("samples", "test_samples", "auxiliary_samples"):
            count = getattr(self, field) or 0
            if count > MOST_DRAWN:
                raise ValueError(f"{field}: expected at most {MOST_DRAWN}, got {count}.")
            if (total := 3 * size**2 * count) > MOST_BYTES:
                raise ValueError(
                    f"{field}: {count} images of {size} x {size} pixels are {total / 2**30:.1f} GiB, and "
                    f"{MOST_BYTES / 2**30:.0f} GiB are allowed. Take fewer, or a smaller image_size."
                )

    @abstractmethod
    def load(self, seed: int) -> Pools:
        """Return the pools; a pure function of the parameters, the files they name and the seed.

        Raises:
            ScenarioError: a file is missing, damaged or does not hold what the parameters say; `where` is `data.path`
                or whichever parameter is at fault.
        """
