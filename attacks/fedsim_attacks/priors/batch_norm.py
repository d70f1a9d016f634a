"""The image prior of BatchNorm statistics: images whose features have the mean and variance that a CNN was trained on.

R(x) = sum over the BatchNorm2d layers l of ||mean_l(x) - m_l|| + ||var_l(x) - v_l||, with mean and (biased) variance of the
layer's input over batch and space, m_l and v_l its running statistics, and l2 norms that are not squared, as in
GradInversion's text. GradViT's figure squares them. All layers weigh the same; DeepInversion weighs the first one more.

The statistics are those of a whole data set, so R tells more the more images a batch holds. With one image they are over
space alone, and that image's own colors and textures are far from the average: R is weakly informative there, and still
far from zero at the truth.

Sources: Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov, "See through Gradients: Image Batch Recovery via GradInversion", CVPR
2021, https://arxiv.org/abs/2104.07586; Hatamizadeh, Yin, Roth, Li, Kautz, Xu, Molchanov, "GradViT: Gradient Inversion of Vision
Transformers", CVPR 2022, https://arxiv.org/abs/2203.11894.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Observation
from fedsim_attacks.priors.auxiliary_network import auxiliary_network
from fedsim_attacks.priors.networks import PriorNetwork, efficientnet_lite0, timm_network

Form = Literal["l2", "relative"]

_WITHOUT_WEIGHTS = MappingProxyType(
    {
        "auxiliary": "trained on the auxiliary data",
        "efficientnet_lite0": "loaded with the weights of its package; for a file, name tf_efficientnet_lite0",
    }
)

_caught: ContextVar[list[tuple[nn.BatchNorm2d, Tensor]] | None] = ContextVar("_caught", default=None)


@dataclass(frozen=True, eq=False)
class BatchNormPrior:
    """Distance of a batch's feature statistics from those that a network's BatchNorm layers hold.

    Args:
        network: the network; copied, so that the original keeps its mode.
        form: `l2`, the formula above; `relative`, both norms of a layer divided by that of its running statistics (standard
            deviation, variance), so that no layer outweighs the others and one weight serves every network.
    """

    network: PriorNetwork
    form: Form = "l2"
    _copies: dict[tuple[torch.device, torch.dtype], nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        module = copy.deepcopy(self.network.module).train(False).requires_grad_(False)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                layer.register_forward_pre_hook(_catch)
        weight = next(module.parameters())
        self._copies[weight.device, weight.dtype] = module

    @property
    def description(self) -> str:
        """Which network, which weights, where from."""
        return self.network.description

    def __call__(self, pixels: Images) -> Float[Tensor, ""]:
        """Return the distance of one batch; differentiable, on the batch's device and in its precision.

        Args:
            pixels: in [0, 1], at any size; enlarged where the network expects larger images.
        """
        caught: list[tuple[nn.BatchNorm2d, Tensor]] = []
        module, images = self._module_for(pixels), self.network.normalization.normalize(self._fitted(pixels))
        token = _caught.set(caught)
        try:
            module(images)
        finally:
            _caught.reset(token)
        return torch.stack([self._distance(layer, inputs) for layer, inputs in caught]).sum()

    def _module_for(self, pixels: Images) -> nn.Module:
        place = pixels.device, pixels.dtype
        if place not in self._copies:
            original = next(iter(self._copies.values()))
            # A transform of torch.func that is under way would wrap the copy's weights; it is local to its thread.
            with ThreadPoolExecutor(1) as aside:
                self._copies[place] = aside.submit(lambda: copy.deepcopy(original).to(*place)).result()
        return self._copies[place]

    def _fitted(self, pixels: Images) -> Tensor:
        """Return the images with the channels and the size that the network takes."""
        if self.network.channels > pixels.shape[1] == 1:
            pixels = pixels.expand(-1, self.network.channels, -1, -1)
        size = self.network.size(*pixels.shape[2:])
        if size == tuple(pixels.shape[2:]):
            return pixels
        return interpolate(pixels, size=size, mode="bilinear", align_corners=False)

    def _distance(self, layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None and variance is not None, "a prior network keeps its statistics"
        off_mean: Tensor = torch.linalg.vector_norm(inputs.mean((0, 2, 3)) - mean)
        off_variance: Tensor = torch.linalg.vector_norm(inputs.var((0, 2, 3), correction=0) - variance)
        if self.form == "relative":
            off_mean = off_mean / (variance.sum() + layer.eps).sqrt()
            off_variance = off_variance / (torch.linalg.vector_norm(variance) + layer.eps)
        return off_mean + off_variance


def load_prior(network: str, weights: str | None, observation: Observation, form: Form = "l2") -> BatchNormPrior:
    """Return the prior of a network by name.

    Args:
        network: `auxiliary`, a small CNN trained on the granted auxiliary data; `efficientnet_lite0`, ImageNet weights of the
            extra `priors`, offline; or any timm CNN with BatchNorm.
        weights: file of a timm CNN's weights; None for those of the hub.
        observation: what the attacker knows; its image shape, and the auxiliary data, are read.
        form: of the distance.

    Raises:
        AttackRefusedError: the network, its weights or its training images are not to be had, or it has no BatchNorm2d.
    """
    if network in _WITHOUT_WEIGHTS and weights is not None:
        raise AttackRefusedError(
            f"priors.batch_norm.weights: the prior network {network} is {_WITHOUT_WEIGHTS[network]}. Leave it out."
        )
    channels = observation.image_shape[0]
    if network == "auxiliary":
        return BatchNormPrior(auxiliary_network(observation.auxiliary_data), form)
    if channels not in (1, 3):
        raise AttackRefusedError(
            f"the prior network {network} takes images of 3 channels, or of 1 repeated; these have {channels}. Use "
            "the prior network auxiliary."
        )
    return BatchNormPrior(
        efficientnet_lite0() if network == "efficientnet_lite0" else timm_network(network, weights), form
    )


def _catch(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Keep a BatchNorm layer's input for the call that is under way in this thread."""
    caught = _caught.get()
    if caught is not None and isinstance(layer, nn.BatchNorm2d):
        caught.append((layer, inputs[0]))
