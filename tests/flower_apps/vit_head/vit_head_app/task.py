"""Model, data and local training."""

import os

import numpy as np
import timm
import torch
from skimage import data
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

_PHOTOGRAPHS = (data.astronaut, data.cat, data.coffee, data.rocket)  # class = the photograph; none is downloaded
_SIDE = 224


def get_model():
    """Return a ViT of which the head alone is trained.

    VIT_HEAD_WEIGHTS names a file of timm's weights, to start from these; without it, the frozen part is random, yet the same
    on every node and in the audit: no message carries it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = os.environ.get("VIT_HEAD_WEIGHTS")
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        if weights:
            timm.models.load_checkpoint(model, weights, strict=False)
        model.reset_classifier(10)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def load_data(partition, count):
    """Return the images (count, 3, 224, 224), pixels in [0, 1], and labels of one client."""
    draw = np.random.default_rng(partition)
    images, labels = [], []
    for label in draw.integers(len(_PHOTOGRAPHS), size=count):
        photograph = _PHOTOGRAPHS[label]()
        side = int(draw.integers(230, 300))
        top, left = (int(draw.integers(0, length - side)) for length in photograph.shape[:2])
        crop = torch.tensor(photograph[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255
        images.append(functional.interpolate(crop, size=(_SIDE, _SIDE), mode="area")[0])
        labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def normalize(images):
    return (images - 0.5) / 0.5  # as timm states for this model


def train(model, images, labels, epochs, batch_size, learning_rate):
    """Train the head in place, and return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(model.head.parameters(), lr=learning_rate)
    loader = DataLoader(TensorDataset(normalize(images), labels), batch_size=batch_size, shuffle=True)
    model.eval()
    for _ in range(epochs):
        losses = []
        for batch, classes in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)
