"""Gradient matching: pictures whose gradient points where the client's does. The plain optimization baseline.

Paper: Geiping, Bauermeister, Droege, Moeller. "Inverting Gradients: How Easy Is It to Break Privacy in Federated
Learning?". NeurIPS 2020. https://arxiv.org/abs/2003.14053; with `distance: l2`, Zhu, Liu, Han. "Deep Leakage from
Gradients". NeurIPS 2019. https://arxiv.org/abs/1906.08935

Idea: minimize D(g(x, y), g) + total_variation * TV(x) over the pictures x, with g(x, y) the gradient of the mean
cross-entropy, D one minus the cosine (or the squared l2 distance over the squared norm of g), TV the mean absolute
difference of neighboring pixels; Adam on the sign of the slope, pictures kept in the range of pixels. The restart and
iterate of least objective wins.

Differs from the paper: labels are counted by `label_count` where they are not granted; DLG optimizes them, by L-BFGS. TV is
a mean over pixels in [0, 1]. A delta of several local steps is matched as if it were one gradient.

Needs: grants `batch_size`, `normalization`; second derivatives of the model, for which fused attention is switched off
on this attack's instance. Uses `labels`, `train_mode` and `training` where granted. Cost: two backward passes a step,
through a graph of the gradient; on a stock ViT expect pictures near flat grey, whatever the objective reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Labels, Observation
from fedsim.models import unfused_attention
from fedsim.seeds import seeded
from fedsim_attacks._gradient import mean_gradient
from fedsim_attacks._labels import count_labels
from fedsim_attacks._matching import DISTANCES, loss_gradient
from fedsim_attacks._priors import total_variation

_REFERENCES = 64
_CURVE_POINTS = 50
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # Geiping et al., appendix: learning rate times 0.1 at each


class _Best(NamedTuple):
    loss: float
    images: Images
    restart: int
    step: int


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """Optimize pictures until their gradient matches the observed one.

    Args:
        distance: `cosine` (Inverting Gradients) or `l2` (Deep Leakage from Gradients).
        steps: of Adam, each restart.
        learning_rate: of Adam, in normalized units.
        schedule: `step`, a tenth after 3/8, 5/8 and 7/8 of the steps; `cosine`, down to zero.
        signed: whether Adam sees the sign of the slope alone.
        total_variation: weight of the mean absolute difference of neighboring pixels.
        restarts: independent starts; the one of least objective wins.
        initial_scale: standard deviation of the start around grey, in normalized units.
    """

    citation: ClassVar[str] = (
        "Geiping et al. Inverting Gradients: How Easy Is It to Break Privacy in Federated Learning? NeurIPS 2020. "
        "https://arxiv.org/abs/2003.14053"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})

    distance: Literal["cosine", "l2"] = "cosine"
    steps: int = 400
    learning_rate: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    signed: bool = True
    total_variation: float = 0.01
    restarts: int = 1
    initial_scale: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate}.")
        for name in ("total_variation", "initial_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Match the gradient; draws labels' reference pictures, starts, and dropout in training mode."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; pictures are optimized in normalized units.")
        labels, cautions = _labels(observation, generator)
        low = normalization.normalize(torch.zeros(1, *observation.image_shape))
        high = normalization.normalize(torch.ones(1, *observation.image_shape))
        curve: list[list[float]] = []
        best: _Best | None = None
        with unfused_attention(model := observation.model()), seeded(_draw_seed(generator), "gradient_matching"):
            model.train(bool(observation.train_mode))
            objective = self._objective(observation, model, labels)
            for restart in range(self.restarts):
                noise = torch.randn(len(labels), *observation.image_shape, generator=generator)
                start = ((low + high) / 2 + self.initial_scale * noise).clamp(low, high)
                found, losses = self._descend(objective, start, low, high, restart)
                curve.append(losses[:: max(1, len(losses) // _CURVE_POINTS)])
                best = found if best is None or found.loss < best.loss else best
        assert best is not None
        images = normalization.denormalize(best.images).clamp(0, 1)
        trace = {"loss": best.loss, "restart": best.restart, "step": best.step, "curve": curve}
        return Finding(images=images, labels=labels, trace=trace, cautions=cautions)
