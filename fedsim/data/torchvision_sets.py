"""torchvision's built-in data sets, by name, from a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.data.class_labels import code_labels
from fedsim.data.listing import Listing, pools
from fedsim.errors import ScenarioError, nearest
from fedsim.source import Pools, Source

_BY_SPLIT = ("STL10", "SVHN")
_BY_FLAG = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
SETS = tuple(sorted(_BY_FLAG + _BY_SPLIT))


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet(Source):
    """A data set of torchvision; gray images become three equal channels.

    Args:
        dataset: class name in `torchvision.datasets`.
        root: folder that holds the set in torchvision's layout.
        download: whether to fetch it into `root` where it is missing; needs a network.
    """

    dataset: str = "CIFAR10"
    root: str
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in SETS:
            raise ValueError(
                f"dataset: no {self.dataset!r} here.{nearest(self.dataset, SETS)} Known: {', '.join(SETS)}. "
                "Any other set works as a folder of class folders (data.name: folder)."
            )

    def load(self, seed: int) -> Pools:
        """Return the pools; torchvision holds these sets in memory.

        Raises:
            ScenarioError: the set is not in `root`, damaged, or cannot be downloaded.
        """
        train, test = self._set("train"), self._set("test")
        names = getattr(train, "classes", None)
        values = [_labels(train), _labels(test)]
        coded, class_names = code_labels(values, names, "data.dataset")
        return pools(self, seed, self._listing(train, coded[0]), self._listing(test, coded[1]), class_names)

    def _set(self, split: str) -> Any:
        import torchvision

        which: dict[str, Any] = {"split": split} if self.dataset in _BY_SPLIT else {"train": split == "train"}
        try:
            return getattr(torchvision.datasets, self.dataset)(self.root, download=self.download, **which)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            advice = "Is there a network?" if self.download else "Give its folder, or data.download: true."
            raise ScenarioError(
                "data.root", f"{self.root}: {self.dataset} ({split}) cannot be read: {error} {advice}"
            ) from None

    def _listing(self, stored: Any, labels: np.ndarray) -> Listing:
        return Listing(
            labels=labels,
            name=lambda number: f"{self.root}: {self.dataset}, image {number},",
            open=lambda numbers: lambda index: stored[numbers[index]][0],
            where="data.root",
        )


def _labels(stored: Any) -> np.ndarray:
    return np.asarray(stored.targets if hasattr(stored, "targets") else stored.labels).astype(np.int64)
