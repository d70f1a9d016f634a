"""Evasion attacks in pixel space: small changes of an image that raise the loss of a model which takes pixels in [0, 1].

Goodfellow, Shlens, Szegedy. "Explaining and Harnessing Adversarial Examples". ICLR 2015. https://arxiv.org/abs/1412.6572
Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018.
https://arxiv.org/abs/1706.06083

Adversarial training and the evaluators of robustness share this loop: x' <- x' + step sign(grad loss(model(x'))), kept within
epsilon of the image in every value, and within [0, 1]. Normalization is the model's own first layer (`PixelModel`), so that
epsilon is in pixels. What holds of every attack here:

- No value of the result is further than epsilon from the image, or outside [0, 1] where the image is inside.
- The loss is summed over images, so no image has a say in the perturbation of another, as far as the model lets none.
- Gradients are taken with respect to the input alone: parameters need none in the meantime, and are as before afterwards, also
  after an exception. Their `.grad` is untouched, and so is the mode that the caller put the model in; see `evaluating`.
- Every draw is from the generator that the caller gives, and none is made but for a random start.
- A gradient that is not finite is not hidden: the images come out as NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedsim.exchange import Images, Labels
from fedsim_defenses._image_gradients import swift_image_gradients

Logits = Float[Tensor, "batch class"]
Objective = Callable[[Logits, Labels], Float[Tensor, " batch"]]
"""A loss of each image, which an attack raises, from logits and labels."""

Mask = Bool[Tensor, "height width"]
Start = Literal["uniform", "normal", "zero"]
LossName = Literal["cross_entropy", "kl", "cw"]

_NORMAL_START = 0.001  # of TRADES' published code: the divergence has no gradient at the image itself


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter need a gradient, which saves a third of a backward pass, and restore which do afterwards."""
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model and all its parts into evaluation mode, and each part back into its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True


def cross_entropy(logits: Logits, labels: Labels) -> Float[Tensor, " batch"]:
    """Return the cross-entropy of each image, of hard or soft labels."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Float[Tensor, " batch"]:
    """Return the largest logit of another class minus that of the label: above 0 where the model is wrong.

    It is not clamped, since a clamp leaves images without a gradient. A soft label counts as its most probable class.

    Source: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, f_6.
    """
    own = nn.functional.one_hot(_classes(labels), logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


def divergence(reference: Logits, logits: Logits) -> Float[Tensor, " batch"]:
    """Return KL(softmax(reference) || softmax(logits)) of each image."""
    target, log = reference.log_softmax(1), logits.log_softmax(1)
    return nn.functional.kl_div(log, target, reduction="none", log_target=True).sum(1)


def objective(loss: LossName | Objective, model: nn.Module, images: Images) -> Objective:
    """Return what an attack raises; `kl` is the divergence from what the model says of the images as they are."""
    if not isinstance(loss, str):
        return loss
    if loss != "kl":
        return cross_entropy if loss == "cross_entropy" else margin
    with torch.no_grad():
        reference = model(images)
    return lambda logits, _: divergence(reference, logits)


def input_gradient(model: nn.Module, images: Images, labels: Labels, loss: Objective) -> Images:
    """Return the gradient of each image's own loss with respect to it.

    Args:
        model: takes pixels; `frozen`, or its parameters are given a graph for nothing.
        images: pixels in [0, 1].
        labels: hard or soft labels.
        loss: of each image.
    """
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(inputs), labels).sum(), inputs)
    return gradient


def fgsm(
    model: nn.Module, images: Images, labels: Labels, epsilon: float, *, loss: LossName | Objective = "cross_entropy"
) -> Images:
    """Return images after one step of epsilon along the sign of the gradient at the image itself; see `pgd`."""
    return pgd(model, images, labels, epsilon, step=epsilon, steps=1, start="zero", loss=loss)


def pgd(
    model: nn.Module,
    images: Images,
    labels: Labels,
    epsilon: float,
    *,
    step: float,
    steps: int,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    loss: LossName | Objective = "cross_entropy",
    start: Start = "uniform",
    masks: Callable[[], Mask] | None = None,
) -> Images:
    """Return images after projected ascent of the loss, of each image the best of all restarts, detached.

    With one restart that is the last iterate. Of several, misclassified ones come first, then those of the largest loss.

    Args:
        model: takes pixels in [0, 1] and returns logits, in the mode that the caller wants.
        images: pixels in [0, 1]; may be none.
        labels: hard or soft labels.
        epsilon: largest change of a value.
        step: change of a value in one iteration.
        steps: iterations; 0 gives the start.
        restarts: how often the whole attack is run.
        generator: of the start; not needed for `zero`.
        loss: `cross_entropy`; `kl`, from the prediction on the images as they are; `cw`, the margin; or one of your own.
        start: `uniform` within epsilon; `normal`, standard deviation 0.001 as in TRADES; `zero`, the image itself.
        masks: draws, before each gradient is taken, where the perturbation is kept; elsewhere it is gone.
    """
    if not len(images):
        return images.detach()
    clean = images.detach()
    lowest, highest = limits(clean, epsilon)

    def attack() -> Images:
        moved = _start(clean, epsilon, start, generator).add_(clean).clamp_(lowest, highest)
        for _ in range(steps):
            if masks is not None:
                moved = torch.where(masks(), moved, clean)
            ascent = input_gradient(model, moved, labels, raised).sign()
            # In place, since new memory takes longer than sums.
            moved = torch.add(moved, ascent, alpha=step, out=ascent).clamp_(lowest, highest)
        return moved

    with frozen(model), swift_image_gradients(model):
        raised = objective(loss, model, clean)
        best = attack()
        for _ in range(restarts - 1):
            best = _better(model, best, attack(), labels, raised)
    return best


def limits(images: Images, epsilon: float) -> tuple[Images, Images]:
    """Return the lowest and the highest image within epsilon of images and within [0, 1].

    Pixels beyond [0, 1], by rounding or because somebody made them so, stay allowed: epsilon holds all the same.
    """
    lowest, highest = images - epsilon, images + epsilon
    torch.maximum(lowest, images.clamp(max=0), out=lowest)
    torch.minimum(highest, images.clamp(min=1), out=highest)
    return lowest, highest


def _start(images: Images, epsilon: float, start: Start, generator: torch.Generator | None) -> Images:
    if start == "zero":
        return torch.zeros_like(images)
    if generator is None:
        raise ValueError(f"generator: got none, and the start {start!r} is random.")
    if start == "uniform":
        drawn = torch.rand(images.shape, generator=generator, device=generator.device).mul_(2).sub_(1).mul_(epsilon)
    else:
        drawn = torch.randn(images.shape, generator=generator, device=generator.device).mul_(_NORMAL_START)
    return drawn.to(images)


@torch.no_grad()
def _better(model: nn.Module, first: Images, second: Images, labels: Labels, loss: Objective) -> Images:
    """Return of each image the misclassified one, or where both or none are, the one of the larger loss."""
    wrong, losses = [], []
    for images in (first, second):
        logits = model(images)
        wrong.append(logits.argmax(1) != _classes(labels))
        losses.append(loss(logits, labels))
    takes_second = (wrong[1] & ~wrong[0]) | ((wrong[0] == wrong[1]) & (losses[1] > losses[0]))
    return torch.where(takes_second[:, None, None, None], second, first)


def _classes(labels: Labels) -> Tensor:
    return labels.argmax(1) if labels.ndim == 2 else labels.long()
