"""Model, data and local training: one step of SGD on one image, which a stock ViT gives away."""

import numpy as np
import timm
import torch
from skimage import data
from torch.nn import functional

_PHOTOGRAPHS = (data.astronaut, data.cat, data.coffee, data.rocket)  # class = the photograph; none is downloaded
_SIDE = 32
LEARNING_RATE = 0.05
MODEL = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": _SIDE, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3},
}


def get_model():
    return timm.create_model(MODEL["name"], num_classes=10, **MODEL["kwargs"])


def load_data(partition):
    """Return the image (1, 3, 32, 32), pixels in [0, 1], and the label (1) of one client."""
    draw = np.random.default_rng(partition)
    label = int(draw.integers(len(_PHOTOGRAPHS)))
    photograph = _PHOTOGRAPHS[label]()
    side = int(draw.integers(100, 300))
    top, left = (int(draw.integers(0, length - side)) for length in photograph.shape[:2])
    crop = torch.tensor(photograph[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255
    return functional.interpolate(crop, size=(_SIDE, _SIDE), mode="area"), torch.tensor([label])


def train(model, images, labels):
    """Take one step in place, and return the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = functional.cross_entropy(model((images - 0.5) / 0.5), labels)  # normalized as timm states for this model
    loss.backward()
    optimizer.step()
    return loss.item()
