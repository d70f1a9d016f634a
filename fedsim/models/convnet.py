"""A small convolutional network in the manner of LeNet, the victim of the first papers on gradient inversion."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

_MEAN = _STD = 0.5


class ConvNet(nn.Module):
    """Convolutions of stride 2 and sigmoids, then one linear layer: smooth, so that second derivatives exist everywhere.

    Source: the LeNet of Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, https://arxiv.org/abs/1906.08935, whose
    pooling is a stride there, too; weights and biases are drawn from U(-0.5, 0.5) as in the authors' code,
    https://github.com/mit-han-lab/dlg
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, img_size: int | tuple[int, int] = 32, width: int = 12):
        """Build the network, its weights drawn from torch's global generator.

        Args:
            num_classes: outputs.
            in_chans: channels of an image.
            img_size: its side, or height and width.
            width: channels of every convolution.
        """
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        channels = (in_chans, width, width, width)
        self.features = nn.Sequential(
            *(
                module
                for index, (before, after) in enumerate(pairwise(channels))
                for module in (nn.Conv2d(before, after, 5, padding=2, stride=2 if index < 2 else 1), nn.Sigmoid())
            )
        )
        self.head = nn.Linear(width * -(-size[0] // 4) * -(-size[1] // 4), num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
        self.pretrained_cfg = {"mean": (_MEAN,) * in_chans, "std": (_STD,) * in_chans}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, one row an image."""
        logits: Tensor = self.head(torch.flatten(self.features(x), 1))
        return logits
