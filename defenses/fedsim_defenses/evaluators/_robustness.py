"""Accuracy under evasion: test images, each changed by at most epsilon, and checks of the evaluation itself.

Threat model: somebody with the weights of the global model changes a test image within [0, 1], each value by at most epsilon.
Normalization is part of the model, so epsilon is in pixels. Only images that the model gets right are attacked.

An attack that fails proves no robustness. The checks look for its usual failures, by Carlini, Athalye, Papernot, Brendel,
Rauber, Tsipras, Goodfellow, Madry, Kurakin. "On Evaluating Adversarial Robustness". 2019. https://arxiv.org/abs/1902.06705
(section 5), on images that the model gets right, with the gradient attack of the evaluator, or PGD on cross-entropy for one
that follows no gradient:

- accuracy does not rise with epsilon, and ends near 0 where epsilon is 0.5;
- many steps find what one step finds, and twice as many find no more;
- a black-box search (Square Attack) finds nothing that the gradient attack misses, nor does an evaluator's own attack that
  follows no gradient of the model;
- input gradients are finite, and next to none is zero;
- the model says the same twice, and no part of it is in training mode.

One that fails makes the evaluation inconclusive, and a caution says which. They are checks of some images at one epsilon: an
evaluation that passes is an upper bound on robustness like any other, no proof.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.exchange import Images, LabeledImages
from fedsim.progress import advance
from fedsim.source import Pool
from fedsim_defenses._evasion import Objective, cross_entropy, frozen, input_gradient, pgd
from fedsim_defenses._square import square
from fedsim_defenses.evaluators._intervals import share

Right = Bool[Tensor, " batch"]
Surface = tuple[nn.Module, Objective]
"""What an attack climbs: a module that takes pixels, and the loss of each image from what it returns."""

PART = 100  # images in one pass
LARGE = 0.5  # epsilon that can make any image grey
EPSILONS = (2 / 255, 4 / 255, 8 / 255, 16 / 255)
CAUTION = "Accuracy under an attack is an upper bound: a stronger attack may find more."

_ORIGINAL = "original"
_SHOWN = 8  # images that the report shows
_STEPS = 20  # of the checks of an evaluator that follows no gradient
_STEP = 0.25  # of epsilon, in each of them
_QUERIES = 200  # of the black-box search of the checks
_LEAST = 10  # images that the checks need
_TOLERATED = 0.05  # share of the checked images that an honest attack may miss by chance


def title(epsilon: float) -> str:
    """Return an epsilon as one reads it: in 255ths where it is some."""
    whole = round(epsilon * 255)
    return f"{whole}/255" if whole and abs(epsilon * 255 - whole) < 0.01 else f"{epsilon:.4g}"


def at(epsilon: float) -> str:
    """Return the name of the accuracy at an epsilon."""
    return f"accuracy at epsilon {title(epsilon)}"


def tolerance(count: int) -> int:
    """Return how many of so many images may differ by chance."""
    return max(1, math.ceil(_TOLERATED * count))


def parts(count: int) -> Iterator[slice]:
    """Return the slices in which so many images are passed."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


@torch.no_grad()
def right(model: nn.Module, images: Images, labels: Int[Tensor, " batch"]) -> Right:
    """Return which images the model gets right; one with a value that is no number counts as what it was, right."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    said = torch.cat([model(images[part]).argmax(1) for part in parts(len(images))])
    return (said == labels) | ~images.flatten(1).isfinite().all(1)


class Doubt(NamedTuple):
    """What the checks find.

    Args:
        scores: accuracy on the checked images by check, and the share of them without an input gradient.
        reasons: why the evaluation is inconclusive, one sentence each.
        remarks: what is worth a caution alone.
    """

    scores: dict[str, float]
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RobustnessTest(Evaluator):
    """Accuracy on test images that an attack changed, for each epsilon, with 95% Wilson intervals.

    Args:
        epsilons: largest change of a value in pixels of [0, 1], each a test of its own; 8 / 255 is 0.0314.
        images: test images at most; the first ones.
        checked: of them, those that the checks take; the first ones that the model gets right.
    """

    _follows_gradients: ClassVar[bool] = True
    """Whether the attack needs the gradient of the model; one that does not may show that the model hides it."""

    epsilons: tuple[float, ...] = EPSILONS
    images: int = 500
    checked: int = 50

    def __post_init__(self) -> None:
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise ValueError(f"epsilons: expected numbers above 0 and up to 1, got {list(self.epsilons)}.")
        if len({*map(title, self.epsilons)}) < len(self.epsilons):
            raise ValueError(f"epsilons: expected each once, got {list(self.epsilons)}.")
        for name, least in (("images", 1), ("checked", _LEAST)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")

    @abstractmethod
    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        """Return changed images, each within epsilon of its own and in [0, 1]; at most `PART` are given."""

    def _surface(self, model: PixelModel, images: Images) -> Surface:
        """Return what the checks climb, from these images."""
        return model, cross_entropy

    @property
    def _climb(self) -> tuple[int, float]:
        """Steps of the checks, and the size of one as a share of epsilon."""
        return _STEPS, _STEP

    def _cautions(self) -> tuple[str, ...]:
        return (CAUTION,)

    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return accuracy by epsilon, and what the checks say of it."""
        if not len(pool):
            raise EvaluationRefusedError("there are no test images")
        self.check(model, class_names)
        known = pool.read(range(min(self.images, len(pool))))
        labels = known.labels.long()
        clean = right(model, known.images, labels)
        scores = share("accuracy at epsilon 0", clean)
        held: dict[float, Right] = {}
        images = dict[str, Tensor]()
        with frozen(model):
            for epsilon in sorted(self.epsilons):
                held[epsilon], fooled = self._held(model, known, clean, epsilon, generator, len(held))
                scores |= share(at(epsilon), held[epsilon])
                # Of the smallest epsilon that fools it on as many as are shown, else of the one with the most.
                images = max(images, fooled, key=lambda shown: len(shown.get(_ORIGINAL, ())))
            doubt = self._check(model, known, clean, held, generator)
        cautions = (*doubt.reasons, *doubt.remarks, *self._cautions())
        return Evaluation(scores | doubt.scores, cautions, bool(doubt.reasons), images)

    def _held(
        self,
        model: PixelModel,
        known: LabeledImages,
        clean: Right,
        epsilon: float,
        generator: torch.Generator,
        done: int,
    ) -> tuple[Right, dict[str, Tensor]]:
        """Return which images are still right under the attack, and the first ones that are not, by title."""
        survivors, held = clean.nonzero().flatten(), clean.clone()
        before, after = list[Tensor](), list[Tensor]()
        for part in parts(len(survivors)):
            chosen = survivors[part]
            labels = known.labels.long()[chosen]
            moved = self._attack(model, known.images[chosen], labels, epsilon, generator)
            held[chosen] = right(model, moved, labels)
            fooled = (~held[chosen]).nonzero().flatten()[: _SHOWN - len(before)]
            before += known.images[chosen[fooled]]
            after += moved[fooled]
            advance(done * len(survivors) + part.stop, (len(self.epsilons) + 1) * len(survivors))
        if not before or before[0].shape[0] not in (1, 3):
            return held, {}
        originals, adversarial = torch.stack(before), torch.stack(after)
        change = (adversarial - originals) / (2 * epsilon) + 0.5
        return held, {
            _ORIGINAL: originals,
            f"adversarial at epsilon {title(epsilon)}": adversarial,
            f"difference, {title(epsilon)} as white and -{title(epsilon)} as black": change.clamp(0, 1),
        }

    def _check(
        self,
        model: PixelModel,
        known: LabeledImages,
        clean: Right,
        held: dict[float, Right],
        generator: torch.Generator,
    ) -> Doubt:
        reasons = [*_rises(held), *_modes(model)]
        chosen = clean.nonzero().flatten()[: self.checked]
        if len(chosen) < _LEAST:
            few = f"The model gets {len(chosen)} of {len(clean)} images right, and the checks of the attack need {_LEAST}."
            return Doubt({}, (*reasons, few), ())
        images, labels = known.images[chosen], known.labels.long()[chosen]
        if not torch.equal(_said(model, images), _said(model, images)):
            reasons.append(
                "The model draws at random: it says other things of the same images a second time. Checks, and most attacks, "
                "take no expectation over its draws."
            )
        # Where about half of the images hold, an attack that fails has the most to hide.
        rates = {epsilon: float(right_ones[chosen].double().mean()) for epsilon, right_ones in held.items()}
        epsilon = min(sorted(rates), key=lambda one: abs(rates[one] - 0.5))
        scores, found, remarks = self._climbed(model, images, labels, epsilon, held[epsilon][chosen], generator)
        return Doubt(scores, (*reasons, *found), remarks)

    def _climbed(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        held: Right,
        generator: torch.Generator,
    ) -> Doubt:
        """Return what the checks find that attack, beside the images that hold under the evaluator's own attack."""
        steps, step = self._climb
        count, allowed, name = len(images), tolerance(len(images)), title(epsilon)

        def climbed(epsilon: float, steps: int, step: float) -> Right:
            moved = [
                climb(self._surface(model, images[part]), images[part], labels[part], epsilon, steps, step, generator)
                for part in parts(count)
            ]
            return right(model, torch.cat(moved), labels)

        blind, broken = self._gradients(model, images, labels, epsilon, generator)
        one, many, twice, large = (
            climbed(epsilon, 1, 1.0),
            climbed(epsilon, steps, step),
            climbed(epsilon, 2 * steps, step),
            climbed(LARGE, steps, step),
        )
        black = right(model, square(model, images, labels, epsilon, queries=_QUERIES, generator=generator), labels)
        scores = {
            "check, share without an input gradient": blind / count,
            f"check, accuracy after 1 step of {name}": float(one.double().mean()),
            f"check, accuracy after {steps} steps to {name}": float(many.double().mean()),
            f"check, accuracy after {2 * steps} steps to {name}": float(twice.double().mean()),
            f"check, accuracy after {steps} steps to {LARGE}": float(large.double().mean()),
            f"check, accuracy after {_QUERIES} queries to {name}": float(black.double().mean()),
        }
        reasons, remarks = list[str](), list[str]()
        if broken:
            reasons.append(f"The input gradient of {broken} of {count} images is not finite.")
        if blind:
            (reasons if blind > allowed else remarks).append(
                f"The input gradient of {blind} of {count} images is zero: an attack that follows it cannot move them."
            )
        if one.sum() < many.sum() - allowed:
            reasons.append(
                f"One step finds more than {steps}: {int(one.sum())} of {count} images hold against the one at epsilon "
                f"{name}, {int(many.sum())} against the other. Gradients may be masked."
            )
        blindly = {f"A search without gradients, {_QUERIES} queries,": black}
        if not self._follows_gradients:
            blindly["This attack, which does not follow the gradient of the model,"] = held
        for attack, left in blindly.items():
            if (missed := int((many & ~left).sum())) > allowed:
                reasons.append(
                    f"{attack} fools it on {missed} of {count} images at epsilon {name} where {steps} gradient steps do not. "
                    "Gradients may be masked."
                )
        if twice.sum() < many.sum() - allowed:
            reasons.append(
                f"{steps} steps are too few: {int(many.sum())} of {count} images hold at epsilon {name}, and "
                f"{int(twice.sum())} after twice as many."
            )
        if large.sum() > allowed:
            reasons.append(
                f"{int(large.sum())} of {count} images hold at an epsilon of {LARGE}, which can make any image grey: the "
                "attack does not work on this model."
            )
        return Doubt(scores, tuple(reasons), tuple(remarks))

    def _gradients(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> tuple[int, int]:
        """Return how many images have an input gradient of zero near them, and how many one that is not finite."""
        blind = broken = 0
        for part in parts(len(images)):
            surface, loss = self._surface(model, images[part])
            near = climb((surface, loss), images[part], labels[part], epsilon, 0, 0.0, generator)
            with frozen(surface):
                gradients = input_gradient(surface, near, labels[part], loss).flatten(1)
            broken += int((~gradients.isfinite()).any(1).sum())
            blind += int((gradients == 0).all(1).sum())
        return blind, broken


def climb(
    surface: Surface,
    images: Images,
    labels: Int[Tensor, " batch"],
    epsilon: float,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Images:
    """Return images after steps up a surface from a random start, each a share `step` of epsilon long."""
    model, loss = surface
    return pgd(model, images, labels, epsilon, step=step * epsilon, steps=steps, generator=generator, loss=loss)


def restarted(
    model: PixelModel,
    images: Images,
    labels: Int[Tensor, " batch"],
    restarts: int,
    attack: Callable[[Images, Int[Tensor, " batch"]], Images],
) -> Images:
    """Return what an attack makes of images, again for those that the model still gets right."""
    moved = attack(images, labels)
    for _ in range(restarts - 1):
        held = right(model, moved, labels).nonzero().flatten()
        if not len(held):
            break
        moved[held] = attack(images[held], labels[held])
    return moved


@torch.no_grad()
def _said(model: PixelModel, images: Images) -> Tensor:
    return torch.cat([model(images[part]) for part in parts(len(images))])


def _rises(held: dict[float, Right]) -> Iterator[str]:
    """Return where more images hold at a larger epsilon than at a smaller one, beyond chance."""
    epsilons = sorted(held)
    for smaller, larger in itertools.pairwise(epsilons):
        fewer, more = int(held[smaller].sum()), int(held[larger].sum())
        if more > fewer + tolerance(len(held[smaller])):
            yield (
                f"Accuracy rises with epsilon: {fewer} of {len(held[smaller])} images hold at {title(smaller)} and {more} at "
                f"{title(larger)}, though whatever is allowed at the one is at the other."
            )


def _modes(model: PixelModel) -> Iterator[str]:
    training = [type(module).__name__ for module in model.modules() if module.training]
    if training:
        some = ", ".join(sorted({*training})[:3])
        yield f"Parts of the model are in training mode ({some}): they may draw, or adapt to a batch."
