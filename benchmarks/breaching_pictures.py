"""breaching's optimization attacks, as functions of one observation; breaching is optional.

`pip install -e ".[bench]"` brings it. Its attacks get what ours get: the gradient, the model (fused attention off, in
evaluation mode), the input normalization, and labels that were recovered from the same gradient.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from breaching_labels import version
from torch import Tensor, nn

from fedsim import models
from fedsim.audit.threat import ModelFactory
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Normalization, Observation, Update
from fedsim.findings.blind import grey
from fedsim.metrics.image import psnr
from fedsim.seeds import seeded, torch_generator

_PROBE = 8  # iterations of which the pace is measured


class Reconstruction(NamedTuple):
    """Images in [0, 1], the number of iterations, and the objective at the last one."""

    images: Images
    iterations: int
    objective: float


class _Attack(NamedTuple):
    attacker: Any
    payload: list[dict[str, Any]]
    shared: list[dict[str, Any]]


def reconstruct(
    observation: Observation,
    labels: Tensor,
    config: str,
    overrides: Mapping[str, Any],
    iterations: int,
    seed: int,
) -> Reconstruction:
    """Return what an attack of breaching makes of one gradient.

    Args:
        observation: with the grant `normalization`.
        labels: one an image.
        config: name of a configuration of theirs, such as `invertinggradients` or `modern`.
        overrides: of the configuration, dotted path -> value.
        iterations: on which their step size schedules depend.
        seed: of the global generators that it draws from.

    Raises:
        AttackRefusedError: the update lacks a parameter's gradient.
    """
    normalization = _normalization(observation)
    with _prepared(observation, labels, config, overrides, iterations) as (attacker, payload, shared):
        with seeded(seed, "breaching", config):
            found, stats = attacker.reconstruct(payload, shared, {})
    images = normalization.denormalize(found["data"]).clamp(0, 1)
    return Reconstruction(images, iterations, float(stats["Trial_0_Val"][-1]))


def iterations_within(
    seconds: float, observation: Observation, labels: Tensor, config: str, overrides: Mapping[str, Any]
) -> int:
    """Return how many iterations an attack of breaching makes in so much wall time, by its own pace here and now."""

    def spent(iterations: int) -> float:
        start = time.perf_counter()
        reconstruct(observation, labels, config, overrides, iterations, seed=0)
        return time.perf_counter() - start

    spent(1)
    once = spent(1)
    pace = (spent(1 + _PROBE) - once) / _PROBE
    return max(1, 1 + int((seconds - once) / max(pace, 1e-6)))


def objective_at(
    images: Images, observation: Observation, labels: Tensor, config: str, overrides: Mapping[str, Any]
) -> float:
    """Return the distance of gradients that an attack of breaching minimizes, without priors, at given images in [0, 1].

    Args:
        images: in the order of `labels`.
        observation: see `reconstruct`.
        labels: one an image.
        config: see `reconstruct`.
        overrides: see `reconstruct`.
    """
    candidate = _normalization(observation).normalize(images).requires_grad_()
    with _prepared(observation, labels, config, overrides, 1) as (attacker, payload, shared):
        (model,), given, _ = attacker.prepare_attack(payload, shared)
        attacker.objective.initialize(attacker.loss_fn, attacker.cfg.impl, None)
        value, _ = attacker.objective(model, shared[0]["gradients"], candidate, given)
    return float(value)


@contextlib.contextmanager
def _prepared(
    observation: Observation, labels: Tensor, config: str, overrides: Mapping[str, Any], iterations: int
) -> Iterator[_Attack]:
    """Give an attacker and the two messages it reads; fused attention is off inside."""
    import breaching

    model, normalization = observation.model().eval(), _normalization(observation)
    chosen = {**overrides, "optim.max_iterations": iterations}
    with contextlib.redirect_stdout(io.StringIO()):
        settings = breaching.get_attack_config(config, [f"{name}={value}" for name, value in chosen.items()])
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in observation.update.tensors]
    if missing:
        raise AttackRefusedError(f"breaching reads the gradients of all parameters; the update lacks {missing[0]}.")
    metadata = SimpleNamespace(
        modality="vision", shape=list(observation.image_shape), mean=normalization.mean, std=normalization.std
    )
    # A list of buffers, empty or not, tells it that the client was in evaluation mode.
    payload = [{"parameters": list(model.parameters()), "buffers": list(model.buffers()), "metadata": metadata}]
    about = {"num_data_points": len(labels), "labels": labels, "local_hyperparams": None}
    gradients = [observation.update.tensors[name].clone() for name in names]
    shared = [{"gradients": gradients, "buffers": None, "metadata": about}]
    with models.unfused_attention(model):  # its copies of the model keep the switch
        yield _Attack(breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), settings), payload, shared)


def _normalization(observation: Observation) -> Normalization:
    if observation.normalization is None:
        raise AttackRefusedError("normalization is not granted.")
    return observation.normalization


class _SmallConvNet(nn.Module):
    """A network without batch norm on which inverting gradients is known to work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(64 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.layers(images))


def check(pictures: Images, vit: nn.Module, iterations: int = 200) -> list[str]:
    """Return what is wrong with this adapter, if anything, after printing what was measured.

    On a small convolutional network `invertinggradients` must come well above grey: its images, labels and normalization
    arrive. On the ViT, where it need not, the objectives that it minimizes must vanish at the true images: it is given
    their gradient, on the same model.

    Args:
        pictures: a few of 32 x 32 pixels, in [0, 1]; the convolutional network sees the first.
        vit: a timm ViT for them.
        iterations: on the convolutional network.
    """
    print(f"breaching {version()}")
    with seeded(0, "check"):
        network = _SmallConvNet().eval()
    seen, labels = _observed(network, pictures[:1])
    found = reconstruct(seen, labels, "invertinggradients", {}, iterations, seed=0)
    reached = psnr(found.images[0], pictures[0], 1.0)
    blind = psnr(grey(pictures)[0], pictures[0], 1.0)
    print(f"invertinggradients on a small ConvNet, {iterations} iterations: {reached:.1f} dB, grey {blind:.1f} dB")
    faults = [] if reached > blind + 5 else ["invertinggradients is not 5 dB above grey on the ConvNet"]
    seen, labels = _observed(vit, pictures)
    for config in ("invertinggradients", "modern"):
        at_truth, at_grey = (objective_at(x, seen, labels, config, {}) for x in (pictures, grey(pictures)))
        print(f"{config} on the ViT: distance of gradients at the true images {at_truth:.1e}, at grey {at_grey:.2f}")
        if at_truth > 1e-4 * at_grey:
            faults.append(f"the objective of {config} does not vanish at the true images on the ViT")
    return faults


def _observed(model: nn.Module, pictures: Images) -> tuple[Observation, Tensor]:
    """Return what is seen of a batch, and its labels."""
    labels = torch.randint(10, (len(pictures),), generator=torch_generator(0, "check labels"))
    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    update = Update(1, 0, "gradient", models.gradient_of(model, half.normalize(pictures), labels), len(labels))
    shape = (3, int(pictures.shape[2]), int(pictures.shape[3]))
    return Observation(update, ModelFactory(model), shape, 10, len(labels), normalization=half), labels
