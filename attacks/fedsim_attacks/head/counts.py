"""How many images of each class an update holds, from the gradient at the classifier.

With p the predicted probabilities, the bias gradient is mean(p) - n / B: the counts n follow once mean(p) is known. The weight
gradient gives it: for the centered logits z, class sums S_c of z obey

    S_c - n_c zbar = B (residual_c zbar + cov(p_c, z) - T_c),     T_c = mean of (p_c - y_c) z,

and images of one class deviate from the batch's mean logits zbar by little and in no common direction, beyond what the
class itself explains. Weighted least squares over classes, with a prior from reference images, gives zbar; softmax around
zbar gives mean(p). A trained model's logits have no common mean; there, what training leaves as mean(p) is weighed in.
Signed features and repeated labels are no obstacle. What is certain about the counts (`label_bounds`) bounds them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import HardLabels, Observation
from fedsim_attacks.head.classifier import ClassVector, HeadGradient, References, read_head, reference_images
from fedsim_attacks.head.label_bounds import count_bounds, least_counts, side_by_side
from fedsim_attacks.head.label_scale import Fit, Scaled, rescale
from fedsim_attacks.solvers import nearest_whole, onto_simplex
from fedsim_attacks.update import COLUMNS, local_steps, told_cautions, told_effects

_ROUNDS, _DAMPING = 20, 0.5
# Variance of the batch's mean around the references', in an image's variance.
_SYNTHETIC_DOUBT, _REAL_DOUBT = 0.15, 0.1
_SOFTENING = 0.5  # images, added to each class's count in its weight
_MODEL_ERROR = 0.1  # counts; what the approximations leave beside noise
_SYNTHETIC_MISFIT, _REAL_MISFIT = 2.0, 1.0  # variance of a count beside that of a sum of probabilities
_MOST_CLASSES = 256  # candidates of the integer search
# Weight of a trained model's mean softmax, where it is guessed and where it is seen.
_EVEN_MARGINAL, _REAL_MARGINAL = 0.75, 0.5
BLUNT = 0.03  # sharpness from which on a model counts as trained
DOUBTFUL = 0.9
UNSCALED = (
    "The recipe that scales this update is not granted; the scale was set so that the counts are likeliest: near to whole "
    "numbers, on a model that sees the client's images as it sees the reference images."
)


class LabelCounts(NamedTuple):
    """Class counts of the images behind an update.

    Args:
        counts: whole numbers, one a class.
        expected: what was rounded.
        confidence: probability that all counts are right, if the model of the classifier's inputs holds.
        noise: standard deviation of a gradient entry, from identities.
        cautions: reasons to doubt.
    """

    counts: Tensor
    expected: ClassVector
    confidence: float
    noise: float
    cautions: tuple[str, ...]

    @property
    def labels(self) -> HardLabels:
        """One label an image, in class order."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)


class _Estimate(NamedTuple):
    expected: ClassVector
    deviations: Tensor  # (sample class): mean of outer products is the covariance of the counts


def image_count(observation: Observation) -> int:
    """Return how many images the labels belong to: the batch of a gradient, everything a delta's client trained on.

    A delta sums over uses, but its client reports images, so each image counts once however often it was used. Steps of
    known number and size bound the count where a client reports all that it has. Blends and crops are inputs of their own:
    each use of an image is one, where the recipe tells. An image that is mirrored in half of its uses is two at most.
    """
    batch_size, examples, training = observation.batch_size, observation.update.num_examples, observation.training
    if observation.update.kind == "gradient":
        if batch_size is None:
            raise AttackRefusedError("batch_size is not granted; counts need their sum.")
        return batch_size
    is_varied = training is not None and (training.mixup is not None or "crop" in training.augment)
    is_mirrored = training is not None and not is_varied and "flip" in training.augment
    if training is not None and training.local_steps and batch_size:
        uses = training.local_steps * batch_size
        images = min(examples or uses, uses)
        return uses if is_varied else _mirrored(images, uses) if is_mirrored else images
    if examples < 1 and batch_size is None:
        raise AttackRefusedError("the client reported no number of examples, and batch_size is not granted.")
    images = examples or batch_size or 0
    uses = images * ((training.local_epochs if training is not None else None) or 1)
    return uses if is_varied else _mirrored(images, uses) if is_mirrored else images


def _mirrored(images: int, uses: int) -> int:
    """Return how many different inputs the uses of images are in the mean where each is mirrored or not by a coin."""
    return round(2 * images * (1 - 0.5 ** (uses / images))) if images else 0


def count_cautions(observation: Observation) -> tuple[str, ...]:
    """Return what to say of the number of labels where the client told none."""
    if observation.update.kind == "gradient" or observation.update.num_examples > 0:
        return ()
    return (
        f"The client reported no num-examples; how often each label occurs is told by its share in the "
        f"{image_count(observation)} labels found.",
    )


def count_labels(observation: Observation, references: int, generator: torch.Generator) -> LabelCounts:
    """Return the class counts behind an update.

    Args:
        observation: what the attack may know.
        references: images to run through the model, auxiliary ones where granted.
        generator: draws the others.

    Raises:
        AttackRefusedError: the classifier's gradient was not shared, or the client's optimizer is not linear.
    """
    count = image_count(observation)
    look_up = functools.cache(lambda: fitting_references(observation, count, references, generator))
    head = read_head(observation, look_up)
    found = counted(head, look_up, count, is_single_step(observation))
    return found._replace(cautions=found.cautions + observed_cautions(observation, head, count))


def observed_cautions(observation: Observation, head: HeadGradient, count: int) -> tuple[str, ...]:
    """Return what to say of any labels that were read off the gradient of the classifier.

    Args:
        observation: what the attack may know.
        head: that gradient.
        count: images.
    """
    found = [
        *count_cautions(observation),
        *soft_label_cautions(observation),
        *told_cautions(observation, shuffles=False),
    ]
    reads_weights = count > 1 or head.is_derived
    if reads_weights and any(effects.dropped == "classifier columns" for effects in told_effects(observation)):
        found.append(COLUMNS)
    return tuple(found)


def fitting_references(observation: Observation, count: int, references: int, generator: torch.Generator) -> References:
    """Return reference images, seen by the model where a client of unknown recipe is likelier to have been.

    That is at the global weights or at these plus half the update, whichever makes the counts likelier.

    Args:
        observation: what the attack may know.
        count: images behind the update.
        references: images at most, auxiliary ones where granted.
        generator: draws the others.
    """
    if observation.update.kind == "gradient" or count == 1 or local_steps(observation) is not None:
        return reference_images(observation, references, generator)
    state = generator.get_state()
    choices = []
    for halfway in (False, True):
        generator.set_state(state)
        choices.append(reference_images(observation, references, generator, halfway))
    return max(choices, key=lambda known: rescaled(read_head(observation, lambda: known), known, count).likelihood)


def counted(head: HeadGradient, references: Callable[[], References], count: int, single_step: bool) -> LabelCounts:
    """Return the class counts behind the gradient of a classifier.

    Args:
        head: the gradient.
        references: returns reference images; not asked for a single image.
        count: images.
        single_step: whether all images weigh the same in the gradient.
    """
    cautions = []
    if head.is_derived:
        cautions.append(
            "The classifier's bias gradient is missing; what stands in for it makes the confidence too high."
        )
    if count == 1:
        counts, confidence = _single(head)
        expected = counts.double()
    else:
        known, exact = references(), single_step and head.is_scaled
        probability = 1.0
        if not head.is_scaled:
            head, probability, _ = rescaled(head, known, count)
            cautions.append(UNSCALED)
        estimate = _estimate(head, known, count)
        fit = _nearest_counts(estimate, head, count, _model_error(known, count), exact)
        counts, expected, confidence = fit.counts, estimate.expected, probability * fit.confidence
    if confidence < DOUBTFUL:
        cautions.append(f"The counts as a whole are right with a probability of about {confidence:.0%}.")
    return LabelCounts(counts, expected, confidence, head.noise, tuple(cautions))


def soft_label_cautions(observation: Observation) -> tuple[str, ...]:
    """Return what to say of counts where the client is known to train on soft labels."""
    training = observation.training
    if training is None or (training.label_smoothing == 0 and training.mixup is None):
        return ()
    return ("The client smooths labels or mixes images; its labels were counted as if each were one class.",)


def is_single_step(observation: Observation) -> bool:
    """Return whether all images weigh the same in the update: one gradient, or one local step."""
    return observation.update.kind == "gradient" or local_steps(observation) == 1


def _single(head: HeadGradient) -> tuple[Tensor, float]:
    """Return the counts of one image: its class alone has a negative residual."""
    residual, rows = head.residual, side_by_side(head)
    if head.is_derived and rows is not None:
        residual = _left_factor(rows)
    ascending = residual.sort()
    counts = torch.zeros(len(residual), dtype=torch.int64)
    counts[ascending.indices[0]] = 1
    least, second = ascending.values[:2].clamp_max(0).tolist()
    return counts, 1 - second / least if least else 0.0


def _left_factor(rows: Tensor) -> Tensor:
    """Return the residual of one image, up to a positive factor: its entries sum to zero and one is negative.

    Of two classes, either may be it.
    """
    factor: Tensor = torch.linalg.svd(rows, full_matrices=False)[0][:, 0]
    largest = factor.abs().argmax()
    factor = -factor.sign()[largest] * factor
    return factor if len(factor) > 2 else -factor.abs()


def rescaled(head: HeadGradient, known: References, count: int) -> Scaled:
    """Return a gradient of unknown factor times the one whose counts are likeliest."""
    error = _model_error(known, count)
    return rescale(
        head, known, count, lambda guess: _nearest_counts(_estimate(guess, known, count), guess, count, error, False)
    )


def _estimate(head: HeadGradient, known: References, count: int) -> _Estimate:
    logits = known.logits - known.logits.mean(1, keepdim=True)
    class_means = known.shares.T @ logits
    prior = 1 / ((_REAL_DOUBT if known.is_real else _SYNTHETIC_DOUBT) + 1 / count)
    shares = torch.full_like(head.residual, 1 / len(head.residual))
    center, pull = shares @ class_means, count * head.residual
    for _ in range(_ROUNDS):
        mean, weights = shares @ class_means, known.shares @ shares
        around = logits - mean
        probabilities = (center + around).softmax(1)
        expected = count * (weights @ probabilities - head.residual)
        filled = expected.clamp_min(0)
        leverage = pull / (filled + _SOFTENING)
        target, precision = prior * mean, prior
        moment = head.with_logits(leverage)
        if moment is not None:
            covariance = (weights * (probabilities @ leverage)) @ around * (count - 1) / count
            target = target + count * (moment - covariance) + (leverage * filled) @ (class_means - mean)
            precision = prior + float(leverage @ pull)
        center = (1 - _DAMPING) * center + _DAMPING * target / precision
        shares = (1 - _DAMPING) * shares + _DAMPING * onto_simplex(expected, count) / count
    share, marginal = _marginal(known)
    expected = (1 - share) * expected + share * count * (marginal - head.residual)
    return _Estimate(expected, _deviations(weights, around, probabilities, precision, count))


def _marginal(known: References) -> tuple[float, ClassVector]:
    """Return the mean softmax that training alone leaves, even or as on real references, and how much to trust it.

    A trained model's logits are no longer near a common mean, but its mean softmax is that of the labels it was trained on.
    """
    trust = (_REAL_MARGINAL if known.is_real else _EVEN_MARGINAL) * _training(known)
    mean = known.logits.softmax(1).mean(0)
    return trust, mean if known.is_real else torch.full_like(mean, 1 / len(mean))


def _training(known: References) -> float:
    """Return 0 for an untrained model and nearly 1 for one that tells classes apart, though not well yet."""
    told = sharpness(known) ** 2
    return told / (told + BLUNT**2)


def sharpness(known: References) -> float:
    """Return how far the model tells classes apart on reference images: 0 for an untrained one, 1 for certainty."""
    opinions = known.shares.T @ known.logits.softmax(1)
    return (float(opinions.diagonal().sum()) - 1) / max(len(opinions) - 1, 1)


def _model_error(known: References, count: int) -> float:
    """Return the standard deviation of a count that the approximations leave, larger where the model tells classes apart.

    B probabilities of a class, of which most are small, have a sum of variance about B sharpness / C.
    """
    misfit = _REAL_MISFIT if known.is_real else _SYNTHETIC_MISFIT
    variance = misfit * _training(known) * sharpness(known) * count / known.logits.shape[1]
    return math.sqrt(_MODEL_ERROR**2 + max(variance, 0.0))


def _deviations(weights: Tensor, around: Tensor, probabilities: Tensor, precision: float, count: int) -> Tensor:
    """Return rows whose outer products sum to the covariance of the expected counts."""
    average = weights @ probabilities
    # How the mean softmax follows the logits, applied to each reference image's deviation.
    linear = around * average - (around @ probabilities.T * weights) @ probabilities
    curved = probabilities - average - linear
    roots = count * weights.sqrt()[:, None]
    return torch.cat([roots * linear / precision**0.5, roots * curved / count**0.5])


def _nearest_counts(estimate: _Estimate, head: HeadGradient, count: int, model_error: float, exact: bool) -> Fit:
    """Return the whole counts nearest to the expected ones in their covariance."""
    ranked = torch.where(least_counts(head, count, exact) > 0, torch.inf, estimate.expected)
    active = ranked.topk(min(_MOST_CLASSES, len(ranked))).indices
    expected, rows = estimate.expected[active], estimate.deviations[:, active]
    spread = model_error**2 + (count * head.noise) ** 2
    precision = torch.linalg.inv(rows.T @ rows + spread * torch.eye(len(active), dtype=rows.dtype))
    whole, confidence = nearest_whole(expected, precision, count_bounds(head, active, count, exact), count)
    counts = torch.zeros(len(estimate.expected), dtype=torch.int64)
    counts[active] = whole.long()
    away, pull = precision @ (expected - whole), count * head.residual[active]
    # Expected counts are B p minus the pull.
    factor = 1 + float(pull @ away) / float(pull @ precision @ pull)
    return Fit(counts, confidence, float((expected - whole) @ away), factor)
