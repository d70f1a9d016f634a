"""Images of 8 x 8 pixels, ViTs for them, and objectives of their gradient, for the tests of the optimization attacks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.distances import DISTANCES, row_cosine
from fedsim_attacks.matching.input_gradients import Evaluation
from fedsim_attacks.matching.objective import Candidate, GradientTerm, ImageTerm, Objective, constant
from fedsim_attacks.update.client_gradient import ClientGradient, OneGradient
from fedsim_attacks.update.tensors import Gradients, Scalar
from vit_cases import build, gradient, observe, photos

from fedsim import models
from fedsim.attack import Attack
from fedsim.exchange import Finding, LabeledImages, Observation, Trajectory, Update
from fedsim.findings import blind
from fedsim.metrics.image import psnr
from fedsim.metrics.matching import match

SIDE = 8
# The gradient of the projection of one patch is the image up to a factor, so matching has to find it.
ONE_PATCH, FOUR_PATCHES = 8, 4


def tiny(patch: int = FOUR_PATCHES, depth: int = 1, **kwargs: Any) -> torch.nn.Module:
    sizes = {"img_size": SIDE, "patch_size": patch, "embed_dim": 96, "depth": depth, "num_heads": 3}
    return build("vit_tiny_patch16_224", SIDE, **{**sizes, **kwargs})


@functools.cache
def pictures(*rows: int) -> LabeledImages:
    return photos(SIDE).read(list(rows))


def observed(model: torch.nn.Module, batch: LabeledImages, update: Update | None = None, **granted: Any) -> Observation:
    """Return what an attack sees of the gradient of a batch; labels are granted unless overruled."""
    granted = {"batch_size": len(batch), "labels": batch.labels, **granted}
    return observe(model, update or gradient(model, batch), SIDE, **granted)


def attacked(attack: Attack, seen: Observation, seed: int = 1) -> Finding:
    return attack.run(seen, torch.Generator().manual_seed(seed))


def against_own_and_other(
    attack: Attack, model: torch.nn.Module, own: LabeledImages, other: LabeledImages
) -> list[float]:
    """Return the mean PSNR to `own` of what is found in its update, and in that of another client."""
    return [mean_decibels(attacked(attack, observed(model, batch)).images, own) for batch in (own, other)]


def mean_decibels(found: torch.Tensor | None, batch: LabeledImages) -> float:
    assert found is not None
    places = match(found, batch.images)
    scores = [psnr(found[p], i, 1.0) for p, i in zip(places, batch.images, strict=True) if p is not None]
    assert len(scores) == len(batch)
    return sum(scores) / len(scores)


def grey(batch: LabeledImages) -> float:
    return mean_decibels(blind.grey(batch.images), batch)


def mean_color(batch: LabeledImages) -> float:
    return mean_decibels(blind.own_mean(batch.images), batch)


def objective(
    response: ClientGradient,
    observed: Gradients,
    distance: str = "tensor_cosine",
    positions: bool = False,
    priors: Sequence[Callable[[Candidate], Scalar]] = (),
) -> Objective:
    """Return the distance to an observed gradient, of images that are a variable of their own."""
    terms = [GradientTerm(constant(1.0), lambda found: DISTANCES.own[distance](found, observed))]
    if positions:
        place = list(response.names).index("pos_embed")
        terms.append(GradientTerm(constant(10.0), lambda found: row_cosine(found[place], observed[place])))
    pictures = [ImageTerm(constant(0.1), prior) for prior in priors]
    normalization = models.normalization(response.model)
    return Objective(response, lambda variables: variables["images"], normalization, terms, pictures)


def one_gradient(model: torch.nn.Module, batch: LabeledImages) -> tuple[OneGradient, list[torch.Tensor]]:
    """Return the response of a model, and the gradient of a batch."""
    tensors = gradient(model, batch).tensors
    return OneGradient(model, list(tensors), batch.labels), list(tensors.values())


def starts(restarts: int, batch: LabeledImages, seed: int = 0) -> dict[str, torch.Tensor]:
    drawn = torch.randn(restarts, *batch.images.shape, generator=torch.Generator().manual_seed(seed))
    return {"images": 0.5 * drawn}


def flat(slope: Evaluation) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in slope.gradients.values()])


def brief(seen: Observation, seed: int = 1, **params: Any) -> Finding:
    return attacked(GradientMatching(**{"steps": 2, "input_gradients": "double_backward", **params}), seen, seed)


def with_update(seen: Observation, **tensors: torch.Tensor | None) -> Observation:
    """Return the observation with tensors replaced, or left out where None; `a__b` stands for `a.b`."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    merged = {**seen.update.tensors, **named}
    kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
    return dataclasses.replace(seen, update=dataclasses.replace(seen.update, tensors=kept))


def images_of(finding: Finding) -> torch.Tensor:
    assert finding.images is not None
    return finding.images


def trajectory_of(finding: Finding) -> Trajectory:
    assert finding.trajectory is not None
    return finding.trajectory
