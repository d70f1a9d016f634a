"""A small CNN whose BatchNorm statistics are those of the attacker's own images, trained once and kept in a cache.

It learns two things from each image: its class, and how it was degraded (not at all, white noise, smooth noise, blur). A
network that learns classes alone becomes blind to noise, and its statistics then hardly tell a noisy image from a clean
one. Afterwards the running statistics are taken anew, from the images as they are.
"""

from __future__ import annotations

import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchvision.transforms.functional import gaussian_blur

from fedsim import network_cache
from fedsim.errors import AttackRefusedError
from fedsim.exchange import HardLabels, Images, LabeledImages, Normalization
from fedsim.seeds import torch_generator, torch_threads
from fedsim_attacks.priors.networks import PriorNetwork

_CACHE = "prior_networks"
_RECIPE = 2  # raised whenever the same images give another network
_LEAST_IMAGES = 64
_WIDTHS = ((24, 1), (48, 2), (96, 2), (96, 1))  # output channels and stride of each block
_STEM_WIDTH, _STEM_SIDE = 24, 32  # larger images are halved until no side is longer
_STEPS = 400
_BATCH, _BATCH_SIDE = 64, 64  # fewer images a step where they are larger than this side
_LEARNING_RATE, _MOMENTUM, _DECAY, _WARM_UP = 0.05, 0.9, 5e-4, 10
_KINDS = 4  # of degradation, none included
_NOISE = (0.03, 0.33)  # standard deviation in pixels
_BLUR = (0.6, 2.0)  # standard deviation of the kernel
_SMOOTHNESS = 1.2  # standard deviation of the kernel
_CENTERED = Normalization((0.5,), (0.5,))  # the same for any number of channels


def auxiliary_network(data: LabeledImages | None) -> PriorNetwork:
    """Return the network of these images: out of the cache, or trained now, which is the same bit for bit.

    Raises:
        AttackRefusedError: the images are not granted, too few, of one class, or not finite.
    """
    if data is None:
        raise AttackRefusedError("the prior network auxiliary is trained on auxiliary_data, which is not granted.")
    if len(data) < _LEAST_IMAGES:
        raise AttackRefusedError(
            f"the prior network auxiliary is trained on at least {_LEAST_IMAGES} images; the auxiliary data holds "
            f"{len(data)}. Raise data.auxiliary_samples."
        )
    classes, labels = torch.unique(data.labels.detach().cpu(), return_inverse=True)
    if len(classes) == 1:
        raise AttackRefusedError(
            "the prior network auxiliary learns to tell classes; the auxiliary data holds one alone."
        )
    images = data.images.detach().cpu().float()
    if not bool(torch.isfinite(images).all()):
        raise AttackRefusedError("the auxiliary data holds pixels that are not finite.")
    key = _key(images, labels)
    network = _blocks(images.shape[1], max(images.shape[2:]))
    if not network_cache.load(network, _CACHE, key):
        with torch_threads(1), torch.enable_grad():
            _train(network, images, labels, int(key[:15], 16))
        with torch_threads(1), torch.no_grad():
            _take_statistics(network, images)
        network_cache.store(network, _CACHE, key)
    count = sum(parameter.numel() for parameter in network.parameters())
    origin = f"trained on the {len(data)} auxiliary images of {len(classes)} classes ({key[:12]})"
    return PriorNetwork(network, _CENTERED, images.shape[1], f"CNN of {count:,} parameters, {origin}")


def _key(images: Images, labels: HardLabels) -> str:
    """Return a digest of all that the network is a function of."""
    digest = hashlib.sha256(repr((_RECIPE, _STEPS, torch.__version__, tuple(images.shape))).encode())
    for tensor in (images, labels.to(torch.int64)):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _blocks(channels: int, side: int) -> nn.Sequential:
    """Return the network with memory for its weights, not yet filled: no draw from the global generator."""
    halvings = max(0, math.ceil(math.log2(side / _STEM_SIDE)))
    with torch.device("meta"):
        blocks = []
        for width, stride in (*[(_STEM_WIDTH, 2)] * halvings, *_WIDTHS):
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        return nn.Sequential(*blocks).to_empty(device="cpu")


def _train(network: nn.Sequential, images: Images, labels: HardLabels, seed: int) -> None:
    generator = torch_generator(seed, "auxiliary network")
    classes = int(labels.max()) + 1
    head = _initialized(network, classes + _KINDS, generator)
    parameters = [*network.parameters(), head]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=_MOMENTUM, nesterov=True, weight_decay=_DECAY)
    size = max(16, min(_BATCH, _BATCH * _BATCH_SIDE // max(images.shape[2:])))
    order = torch.empty(0, dtype=torch.int64)
    for step in range(_STEPS):
        warm, cosine = min(1.0, (step + 1) / _WARM_UP), (1 + math.cos(math.pi * step / _STEPS)) / 2
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * warm * cosine
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[:size], order[size:]
        batch, kinds = _degraded(_moved(images[chosen], generator), generator)
        logits = network(_CENTERED.normalize(batch)).mean((2, 3)) @ head.T
        loss = cross_entropy(logits[:, :classes], labels[chosen]) + cross_entropy(logits[:, classes:], kinds)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _initialized(network: nn.Sequential, outputs: int, generator: torch.Generator) -> nn.Parameter:
    """Fill the network's weights, and return those of a linear classifier on it."""
    network.train()
    width = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            width = module.out_channels
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return nn.Parameter(torch.randn(outputs, width, generator=generator) / width**0.5)


def _moved(images: Images, generator: torch.Generator) -> Images:
    """Return the images shifted by up to an eighth of the shorter side, all alike, and half of them flipped."""
    height, width = images.shape[2:]
    reach = max(1, min(height, width) // 8)
    top, left = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    images = pad(images, (reach,) * 4, mode="reflect")[..., top : top + height, left : left + width]
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped, images.flip(-1), images)


def _degraded(images: Images, generator: torch.Generator) -> tuple[Images, Int[Tensor, " batch"]]:
    """Return the images, each degraded in one of the ways, and which one it is."""
    kinds = torch.randint(_KINDS, (len(images),), generator=generator)
    white = torch.randn(images.shape, generator=generator)
    smooth = _blurred(white, _SMOOTHNESS)
    least, most = _NOISE
    level = least + (most - least) * torch.rand(len(images), 1, 1, 1, generator=generator)
    least, most = _BLUR
    blurred = _blurred(images, least + (most - least) * float(torch.rand((), generator=generator)))
    ways = [images, images + level * white, images + level * smooth / smooth.std(), blurred]
    return torch.stack(ways)[kinds, torch.arange(len(images))].clamp(0, 1), kinds


def _blurred(images: Float[Tensor, "batch channel height width"], deviation: float) -> Images:
    result: Tensor = gaussian_blur(images, [7, 7], [deviation, deviation])
    return result


def _take_statistics(network: nn.Sequential, images: Images) -> None:
    """Set every layer's running statistics to those of its input when the layers before it use theirs."""
    network.train(False)
    parts = torch.split(images, _BATCH)
    shares = torch.tensor([len(part) / len(images) for part in parts], dtype=torch.float64)
    for place, block in enumerate(network):
        convolution, layer, _ = block.children()
        assert isinstance(layer, nn.BatchNorm2d)
        seen = (convolution(network[:place](_CENTERED.normalize(part))) for part in parts)
        moments = torch.stack([torch.stack([i.mean((0, 2, 3)), i.var((0, 2, 3), correction=0)]) for i in seen]).double()
        means, variances = moments.unbind(1)
        mean = shares @ means
        variance = shares @ (variances + (means - mean).square())
        layer.load_state_dict({**layer.state_dict(), "running_mean": mean, "running_var": variance})
