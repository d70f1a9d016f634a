"""DP-SGD: each local step clips the gradient of every image by itself and adds noise to their sum.

Paper: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. "Deep Learning with Differential Privacy". CCS 2016.
https://arxiv.org/abs/1607.00133
Adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy. "Differentially Private Learning with Adaptive Clipping". NeurIPS
2021. https://arxiv.org/abs/1905.03871

Idea: a step draws each of the client's n images with probability q = B / n (Poisson sampling), and takes the gradient
(sum of g min(1, C / |g|) + N(0, (z C)^2 I)) / B, g being the gradient of one drawn image. Whether one image was among the
client's then changes what is sent little: (epsilon, delta) for an image added or removed, composed by Opacus over the steps of
all rounds in which the client took part. Clipping `adaptive` moves C towards a quantile of the gradient norms:
C exp(-r (b - quantile)), where b is the share of gradients within C. It is released with noise as well: the sum of
(1 if |g| <= C else 0) - 1/2, of sensitivity 1/2, with noise s. Both releases of a step together cost as much as one with
multiplier z, since the gradient gets the multiplier (z^-2 - (2 s)^-2)^(-1/2) instead of z (theorem 1 of Andrew et al.).

Differs from the paper: gradients of single images are computed by `torch.func` instead of image by image; accounts with
Renyi differential privacy or the privacy loss itself, which are tighter than the moments accountant; s is at least z, since
the batches of a client are small (Andrew et al. have a twentieth of the batch). Adaptive clipping acts within one client, step
by step, and not at the server.

Needs: `training.sampling: poisson`, no mixup, a model without BatchNorm, no other defense that lets images influence each
other, and Opacus, which accounts. `training.augment` is allowed: what becomes of an image depends on no other image. Covers the
update alone, not what else a client reports (number of images, loss).
Cost: 1.6 to 2.0 times the processor time of the plain step on small ViTs (benchmarks/dp_sgd_cost.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim import models
from fedsim.defense import (
    MEANINGFUL_DELTA,
    MEANINGFUL_EPSILON,
    ONE_IMAGE,
    ClientContext,
    Defense,
    LocalStep,
    PrivacyBudget,
    acts_in_training,
)
from fedsim.errors import ScenarioError
from fedsim_defenses._accounting import DRAWN_FROM_THE_SEED, Accountant, History, subsampled_epsilon
from fedsim_defenses._per_image import clipped_sum

_QUANTILE, _RATE = 0.5, 0.2  # of Andrew et al., section 3
_SPAN = 1e6  # factor up to which an adaptive clipping norm leaves its first value, so that it stays a number


_UNMODELED = (
    "fedsim's own attacks do not model gradients that are clipped image by image: told of dp_sgd they take the update as "
    "untold, and an attack made for it may find more."
)


class BudgetSpentError(Exception):
    """Another round would cost more privacy than `target_epsilon`; the client takes no part in it."""


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Clip each image's gradient and noise their sum in every local step: accounted differential privacy of single images.

    Args:
        clip_norm: largest l2 norm of one image's gradient, C; where clipping is adaptive, what it starts from.
        noise_multiplier: standard deviation of the noise in each coordinate of the sum, in units of the clipping norm, z; 0
            clips alone.
        clipping: `flat`, the same norm throughout; `adaptive`, follows a quantile of the gradient norms.
        quantile: of `adaptive`: share of the gradients that the norm is to leave as they are.
        clip_rate: of `adaptive`: how fast the norm follows, r.
        count_noise: of `adaptive`: standard deviation of the noise on the number of gradients within the norm, s; None for
            the noise multiplier or a twentieth of the batch, whichever is larger.
        target_epsilon: epsilon over all rounds that the client may spend: it takes no part in a round that would exceed it.
        delta: probability with which the guarantee may fail.
        accountant: `rdp`, Renyi differential privacy; `prv`, numerical composition of the privacy loss, tighter and slower.
    """

    citation: ClassVar[str] = (
        "Abadi et al. Deep Learning with Differential Privacy. CCS 2016. https://arxiv.org/abs/1607.00133"
    )
    replaces_gradient: ClassVar[bool] = True
    treats_images_alone: ClassVar[bool] = True
    adds_gaussian_noise: ClassVar[bool] = True

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    clipping: Literal["flat", "adaptive"] = "flat"
    quantile: float = _QUANTILE
    clip_rate: float = _RATE
    count_noise: float | None = None
    target_epsilon: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "rdp"

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm: expected a number above 0, got {self.clip_norm}.")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier: expected a number of at least 0, got {self.noise_multiplier}.")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {self.delta}.")
        if self.target_epsilon is not None and not 0 < self.target_epsilon < math.inf:
            raise ValueError(f"target_epsilon: expected a number above 0, or none, got {self.target_epsilon}.")
        if self.target_epsilon is not None and not self.noise_multiplier:
            raise ValueError(
                f"target_epsilon: got {self.target_epsilon} with noise_multiplier 0, which has no epsilon. Give "
                "noise_multiplier, or leave target_epsilon out."
            )
        self._check_adaptive()

    def _check_adaptive(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share between 0 and 1, both excluded, got {self.quantile}.")
        if not 0 < self.clip_rate < math.inf:
            raise ValueError(f"clip_rate: expected a number above 0, got {self.clip_rate}.")
        stated = {
            "quantile": self.quantile != _QUANTILE,
            "clip_rate": self.clip_rate != _RATE,
            "count_noise": self.count_noise is not None,
        }
        for field, is_stated in stated.items():
            if is_stated and self.clipping == "flat":
                raise ValueError(f"{field}: got {getattr(self, field)}, but clipping 'flat' has none. Leave it out.")
        least = self.noise_multiplier / 2
        if self.count_noise is not None and not (least < self.count_noise < math.inf or self.count_noise == least == 0):
            raise ValueError(
                f"count_noise: expected a number above half of noise_multiplier, {least:g}, got {self.count_noise}: with less, "
                "the number of gradients within the norm alone would tell more than the accountant counts."
            )

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse what an image's gradient cannot be told apart in, or what would make the guarantee false.

        Raises:
            ScenarioError: the model has BatchNorm; with noise also where batches are not drawn by Poisson sampling, images are
                mixed, or another defense of the client may let images influence each other.
            ValueError: the first round would exceed `target_epsilon`.
        """
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise ScenarioError(
                "model.name",
                f"dp_sgd clips the gradient of every image by itself, and in {type(model).__name__} BatchNorm lets the images "
                "of a batch influence each other. Choose a model without BatchNorm, such as a ViT.",
            )
        if not self.noise_multiplier:
            return
        for key, given, needed in (
            ("sampling", context.training.sampling, "poisson"),
            ("mixup", context.training.mixup, None),
        ):
            if given != needed:
                raise ScenarioError(
                    f"training.{key}",
                    f"got {given}, and the epsilon of dp_sgd holds for {needed or 'images that are not mixed'} alone. "
                    f"{'Set it to poisson' if needed else 'Leave it out'}, or set noise_multiplier to 0 for clipping without "
                    "a guarantee.",
                )
        for other in others:
            if not other.treats_images_alone and acts_in_training(other):
                raise ScenarioError(
                    "defenses",
                    f"{type(other).__name__} beside dp_sgd does not say that it treats each image alone "
                    "(treats_images_alone), and where it does not the epsilon would be false. Give them different clients.",
                )
        after = self._epsilon(self._projected(context, 1))
        if self.target_epsilon is not None and after > self.target_epsilon:
            raise ValueError(
                f"target_epsilon: got {self.target_epsilon:g}, but the first round of client {context.client} costs "
                f"{after:.3g} (delta {self.delta:g}). Raise it or noise_multiplier, or take fewer steps or smaller batches."
            )

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what this setting does not protect from."""
        if not self.noise_multiplier:
            return ("Clipping without noise bounds the weight of an image and hides nothing: no guarantee.", _UNMODELED)
        found = [
            DRAWN_FROM_THE_SEED,
            _UNMODELED,
            "The guarantee is one for each single image, not for what many images of a client have in common. It covers the "
            "update, not the number of images and the training loss that the client reports too.",
        ]
        if self.delta > MEANINGFUL_DELTA:
            found.append(
                f"Delta is {self.delta:g}: with this probability the guarantee fails altogether, so that no epsilon makes it "
                f"one. Set it to {MEANINGFUL_DELTA:g} or below."
            )
        return tuple(found)

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return a caution where all rounds together leave no meaningful epsilon."""
        if not self._is_accounted(context):
            return ()
        epsilon = min(self._epsilon(self._projected(context, context.rounds)), self.target_epsilon or math.inf)
        if epsilon <= MEANINGFUL_EPSILON:
            return ()
        return (
            f"Epsilon is {epsilon:.3g} after {context.rounds} rounds (delta {self.delta:g}, {ONE_IMAGE}): no meaningful "
            "guarantee, whatever the attacks tried here achieve.",
        )

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Accumulate the noised mean of the images' clipped gradients; returns their mean loss, 0 of an empty batch.

        The mean is over the expected number of images, not over those drawn, which would tell how many these are.

        Raises:
            BudgetSpentError: the round would exceed `target_epsilon`; raised by its first step.
            ValueError: the gradients of single images cannot be computed on this model.
        """
        state = context.state
        if state.get("round") != context.round:
            self._begin_round(context)
        norm = float(state.get("clip_norm", self.clip_norm))
        summed = clipped_sum(step.model, step.images, step.labels, norm)
        sigma = self._gradient_multiplier(context) * norm
        for name, parameter in models.trained(step.model).items():
            gradient = summed.gradients[name]
            if sigma:
                gradient += sigma * _noise(gradient.shape, generator).to(gradient)
            gradient /= context.batch_size
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if self.clipping == "adaptive":
            state["clip_norm"] = self._next_norm(norm, summed.within, len(step.images), context, generator)
        if self.noise_multiplier:
            state["history"] = _extended(_history(state), self.noise_multiplier, context.sampling_rate, 1)
        return summed.loss

    def budget(self, context: ClientContext) -> PrivacyBudget | None:
        """Return the guarantee for each single image over all steps of the client so far; None where there is none."""
        if not self._is_accounted(context):
            return None
        history = _history(context.state) or self._projected(context, context.participation)
        return PrivacyBudget(self._epsilon(history), self.delta, ONE_IMAGE)

    def _is_accounted(self, context: ClientContext) -> bool:
        return bool(self.noise_multiplier) and context.training.sampling == "poisson" and context.training.mixup is None

    def _epsilon(self, history: History) -> float:
        return subsampled_epsilon(history, self.delta, self.accountant)

    def _projected(self, context: ClientContext, rounds: int) -> History:
        """Return the history of a client that takes part in so many rounds."""
        return ((self.noise_multiplier, context.sampling_rate, rounds * context.steps),)

    def _begin_round(self, context: ClientContext) -> None:
        state = context.state
        lost = context.participation - 1 - int(state.get("rounds", 0))
        if lost > 0 and self.noise_multiplier:  # of these rounds nothing was kept, and updates were sent nevertheless
            state["history"] = self._with_rounds(context, lost)
        self._check_target(context)
        state["round"], state["rounds"] = context.round, context.participation

    def _with_rounds(self, context: ClientContext, rounds: int) -> History:
        """Return what is kept of the history, with further rounds like this one."""
        return _extended(_history(context.state), self.noise_multiplier, context.sampling_rate, rounds * context.steps)

    def _check_target(self, context: ClientContext) -> None:
        if self.target_epsilon is None:
            return
        after = self._epsilon(self._with_rounds(context, 1))
        if after > self.target_epsilon:
            raise BudgetSpentError(
                f"epsilon would be {after:.3g} after this round, and target_epsilon is {self.target_epsilon:g} (delta "
                f"{self.delta:g}): the client takes no part"
            )

    def _count_noise(self, context: ClientContext) -> float:
        """Return the noise on the number of gradients within the norm, as a standard deviation."""
        if not self.noise_multiplier:
            return self.count_noise or 0.0
        return self.count_noise or max(self.noise_multiplier, context.batch_size / 20)

    def _gradient_multiplier(self, context: ClientContext) -> float:
        """Return the noise on the gradients in clipping norms; with that on the number it costs `noise_multiplier`."""
        if self.clipping == "flat" or not self.noise_multiplier:
            return self.noise_multiplier
        ratio = self.noise_multiplier / (2 * self._count_noise(context))
        return self.noise_multiplier / math.sqrt(1 - ratio**2)

    def _next_norm(
        self, norm: float, within: int, count: int, context: ClientContext, generator: torch.Generator
    ) -> float:
        centered = within - count / 2 + self._count_noise(context) * float(_noise((), generator))
        share = centered / context.batch_size + 0.5
        exponent = min(math.log(_SPAN), -self.clip_rate * (share - self.quantile))
        return min(max(norm * math.exp(exponent), self.clip_norm / _SPAN), self.clip_norm * _SPAN)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _history(state: Any) -> History:
    return tuple((float(noise), float(rate), int(steps)) for noise, rate, steps in state.get("history", ()))


def _extended(history: History, noise: float, rate: float, steps: int) -> History:
    """Return a history with further steps, equal ones counted together."""
    if history and history[-1][:2] == (noise, rate):
        return (*history[:-1], (noise, rate, history[-1][2] + steps))
    return (*history, (noise, rate, steps))
