"""An empirical check of the privacy that a defense claims for single images: one local step is taken again and again.

Paper: Nasr, Hayes, Steinke, Balle, Tramer, Jagielski, Carlini, Terzis. "Tight Auditing of Differentially Private Machine
Learning". 2023. https://arxiv.org/abs/2302.07956 (section 4: bounds from errors; section 5: a canary in each step's gradient)

Idea: DP-SGD claims that what a client sends changes little where one image is added to its images. The smallest case of it is
tested: a client of a few images that takes one step and draws every image into it (sampling rate 1). The defense states the
epsilon of that case itself. The step is taken many times on some of the client's images, and as often on these and a canary:
of several images, each with the label that the model finds least likely, the one with the largest gradient, so that clipping
has most to do. What each step leaves as the gradient is projected on the canary's own gradient, as a whole and tensor by
tensor. How well the projections can be told apart bounds epsilon from below (`fedsim.audit.mechanism`).

Differs from the paper: audits one step at sampling rate 1, where nothing is lost to luck in sampling and a step with Gaussian
noise is mu-GDP exactly. Sampling, and what steps and rounds add up to, are theorems about this step and are not tested.

Needs: a defense that computes the gradient in `train_step`. Cost: two steps on at most four images a draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.audit.mechanism import CONFIDENCE, DRAWS, Floats, MechanismCheck, check_draws, lower_bound
from fedsim.defense import ONE_IMAGE, ClientContext, Defense, LocalStep, PrivacyBudget
from fedsim.errors import told
from fedsim.exchange import Images, Labels
from fedsim.federation import training
from fedsim.federation.training import LocalRun
from fedsim.models import gradient_of, shared_state
from fedsim.planning.planned import PlannedDefense
from fedsim.seeds import derive, seeded

_CANDIDATES = 8  # images of the client, of which one is the canary
_OTHERS = 3  # images beside it, so that clipping a batch as one is seen to be no clipping of each image


def computes_gradient(defense: Defense) -> bool:
    """Return whether a defense protects each local step, and not the update."""
    return defense.replaces_gradient and type(defense).protect_update is Defense.protect_update


def check_step(
    run: LocalRun, planned: PlannedDefense, seed: int, draws: int = DRAWS, confidence: float = CONFIDENCE
) -> MechanismCheck | None:
    """Return what repeated steps of a client say of what a defense claims for one; None where it claims nothing.

    Args:
        run: the client's work in a round, not carried out; its weights stay as they are.
        planned: one of its defenses, of which `computes_gradient` is true.
        seed: of all draws.
        draws: of the step with the canary, and of the one without; half of them measure.
        confidence: with which the lower bound holds.

    Raises:
        ValueError: too few draws, or a gradient that is not finite.
    """
    check_draws(draws)
    pair = _pair(run, seed)
    context = _context(run.context(planned), pair.labels)
    claimed = planned.defense.budget(context)
    if claimed is None:
        return None
    reason = _obstacle(claimed, pair)
    if reason is None:
        try:
            with seeded(seed, "trial"):
                _gradients(run, pair, 0, derive(seed, "trial"))
        except Exception as error:  # noqa: BLE001  (a third party's code, which may refuse what such a step would cost)
            reason = f"a step on all of {len(pair.labels)} images fails: {told(error)}"
    if reason is not None:
        return MechanismCheck("not checked", claimed, reason, release="step")
    before = {name: tensor.clone() for name, tensor in shared_state(run.model).items()}
    rows = [_projections(run, pair, side, seed, draws) for side in (0, 1)]
    if not all(torch.equal(tensor, before[name]) for name, tensor in shared_state(run.model).items()):
        reason = "its step changes the model, so that no two steps are taken alike"
        return MechanismCheck("not checked", claimed, reason, release="step")
    is_gaussian = planned.defense.adds_gaussian_noise
    found = lower_bound(rows[1], rows[0], pair.lengths, claimed.delta, confidence, is_gaussian)
    status: Literal["refuted", "not refuted"] = "refuted" if found.epsilon > claimed.epsilon else "not refuted"
    return MechanismCheck(status, claimed, None, found.epsilon, confidence, draws, found.statistic, "step")


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two neighboring sets of images: all of these, and all but the first, the canary.

    Args:
        images: normalized model input.
        labels: hard; the canary's is not its own.
        directions: the canary's gradient in each tensor where it has one, flat and of length 1.
        lengths: its norm there.
    """

    images: Images
    labels: Labels
    directions: dict[str, Tensor]
    lengths: dict[str, float]


def _pair(run: LocalRun, seed: int) -> _Pair:
    data, model = run.plan.data, run.model
    own = data.pools.train.read(list(data.partition[run.client][:_CANDIDATES]))
    images = run.plan.normalization.normalize(own.images)
    with seeded(seed, "canary"):
        with torch.no_grad():
            wrong = model(images).argmin(1)
        gradients = [gradient_of(model, images[[index]], wrong[[index]]) for index in range(len(images))]
    norms = [math.hypot(*(float(tensor.norm()) for tensor in one.values())) for one in gradients]
    canary = int(np.argmax(norms))
    others = [index for index in range(len(images)) if index != canary][:_OTHERS]
    moved = {name: tensor.double().flatten() for name, tensor in gradients[canary].items() if bool(tensor.any())}
    lengths = {name: float(tensor.norm()) for name, tensor in moved.items()}
    return _Pair(
        images[[canary, *others]],
        torch.cat([wrong[[canary]], own.labels[others]]),
        {name: tensor / lengths[name] for name, tensor in moved.items()},
        lengths,
    )


def _context(context: ClientContext, labels: Labels) -> ClientContext:
    """Return the context of a client that holds these images alone, and takes one step, its first, on all of them."""
    counts = torch.bincount(labels, minlength=len(context.class_counts))
    return replace(
        context,
        batch_size=len(labels),
        num_examples=len(labels),
        steps=1,
        class_counts=tuple(counts.tolist()),
        participation=1,
        state={},
        logged={},
    )


def _obstacle(claimed: PrivacyBudget, pair: _Pair) -> str | None:
    """Return why a claim cannot be checked, or None."""
    if claimed.neighbors != ONE_IMAGE:
        return f"its neighbors are {claimed.neighbors!r:.80}; of a local step {ONE_IMAGE} can be checked"
    if not math.isfinite(claimed.epsilon):
        return "it claims no finite epsilon"
    return None if pair.lengths else "no image of the client has a gradient"


def _gradients(run: LocalRun, pair: _Pair, side: int, seed: int) -> dict[str, Tensor]:
    """Return what one step leaves as the gradient, on all images (side 0) or on all but the canary (side 1)."""
    contexts = {index: _context(context, pair.labels) for index, context in run.contexts.items()}
    step = LocalStep(
        run.model, pair.images[side:], pair.labels[side:], (run.round - 1) / run.plan.scenario.federation.rounds
    )
    run.model.zero_grad(set_to_none=True)
    training.defended_step(replace(run, seed=seed, contexts=contexts), 0, step)
    left = {name: parameter.grad for name, parameter in run.model.named_parameters() if parameter.grad is not None}
    run.model.zero_grad(set_to_none=True)
    return left


def _projections(run: LocalRun, pair: _Pair, side: int, seed: int, draws: int) -> Floats:
    """Return what the gradient of each step is along the canary's in each tensor, [draw tensor]."""
    found = np.zeros((draws, len(pair.directions)))
    with seeded(seed, "step", side):
        for index in range(draws):
            gradients = _gradients(run, pair, side, derive(seed, "step", side, index))
            for place, (name, direction) in enumerate(pair.directions.items()):
                if name in gradients:
                    found[index, place] = float(torch.dot(gradients[name].flatten().double(), direction))
    if not np.isfinite(found).all():
        raise ValueError("the gradient of a step is not finite")
    return found
