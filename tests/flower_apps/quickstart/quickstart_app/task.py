"""Model, data and local training."""

import numpy as np
import torch
from skimage import data
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

_PHOTOGRAPHS = (data.astronaut, data.cat, data.coffee, data.rocket)  # class = the photograph; none is downloaded
_SIDE = 32


class Net(nn.Module):
    """The CNN of PyTorch's 60-minute tutorial, as in Flower's quickstart."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images):
        features = self.pool(functional.relu(self.conv1(images)))
        features = self.pool(functional.relu(self.conv2(features)))
        features = features.flatten(1)
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(features)))))


def load_data(partition, count):
    """Return the images (count, 3, 32, 32), pixels in [0, 1], and labels of one client."""
    draw = np.random.default_rng(partition)
    images, labels = [], []
    for label in draw.integers(len(_PHOTOGRAPHS), size=count):
        photograph = _PHOTOGRAPHS[label]()
        side = int(draw.integers(100, 300))
        top, left = (int(draw.integers(0, length - side)) for length in photograph.shape[:2])
        crop = torch.tensor(photograph[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255
        images.append(functional.interpolate(crop, size=(_SIDE, _SIDE), mode="area")[0])
        labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def normalize(images):
    return (images - 0.5) / 0.5


def train(net, images, labels, epochs, batch_size, learning_rate):
    """Train the model in place, and return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    loader = DataLoader(TensorDataset(normalize(images), labels), batch_size=batch_size, shuffle=True)
    net.train()
    for _ in range(epochs):
        losses = []
        for batch, classes in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(batch), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net, images, labels):
    """Return loss and accuracy."""
    net.eval()
    logits = net(normalize(images))
    return functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
