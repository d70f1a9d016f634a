"""Accuracy under evasion: closed forms on a linear model, and checks that tell a false defense from an honest model."""

import math

import pytest
import torch
from fedsim_defenses._evasion import margin, pgd
from fedsim_defenses.evaluators import _robustness
from fedsim_defenses.evaluators._robustness import at, tolerance
from fedsim_defenses.evaluators.cw_linf import CWLinf
from fedsim_defenses.evaluators.feature_pgd import FeaturePGD
from fedsim_defenses.evaluators.fgsm import FGSM
from fedsim_defenses.evaluators.pgd import PGD
from fedsim_defenses.evaluators.square import Square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Normalization
from fedsim.plugins import configure
from fedsim.seeds import seeded, torch_generator
from fedsim.source import Pool
from fedsim.testing import random_images, small_model

CLASSES, SIDE = 4, 8
NAMES = tuple(map(str, range(CLASSES)))
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
EPSILONS = (0.01, 0.03, 0.06, 0.15)
CHEAP = {"epsilons": (0.03, 0.06), "images": 60}


def drawn(count, seed=0):
    """Return noisy images of a pattern for each class, and their labels."""
    generator = torch_generator(seed, "patterns")
    patterns = 0.5 + 0.04 * torch.randn(CLASSES, 3, SIDE, SIDE, generator=torch_generator(9, "classes"))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return ((patterns[labels] + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels


STORED, LABELS = drawn(150)
POOL = Pool(LABELS, lambda chosen: STORED[list(chosen)])


@pytest.fixture(scope="module")
def honest():
    """Return a small network that is right about most images."""
    images, labels = drawn(400, seed=1)
    with seeded(0, "honest"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 32), nn.GELU(), nn.Linear(32, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images.float() / 255), labels).backward()
            optimizer.step()
    return model.eval()


class Rounded(nn.Module):
    """Hides the gradient of an honest model behind a rounded input: the planted false defense."""

    def __init__(self, inner, levels=8):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, images):
        return self.inner((images * self.levels).round() / self.levels)


class Scaled(Rounded):
    """Has logits so large that the softmax saturates, as after defensive distillation."""

    def forward(self, images):
        return 1e4 * self.inner(images)


class Wavy(Rounded):
    """Lets a gradient through that points elsewhere: a fine wave on top of the pixels."""

    def forward(self, images):
        return self.inner(images + 0.02 * torch.sin(400 * images))


class Drops(Rounded):
    """Draws at random in evaluation mode."""

    def forward(self, images):
        return self.inner(nn.functional.dropout(images, 0.05, training=True))


def ask(evaluator, model, pool=POOL, seed=0, normalization=PLAIN, names=NAMES):
    asked = PixelModel(model, normalization).eval()
    return evaluator.run(asked, pool, names, torch_generator(seed, "ask"))


class Linear(nn.Module):
    """One logit is w x + b, the other 0, so the margin is known within any epsilon."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        one = images.flatten(1) @ self.weight + self.bias
        return torch.stack([one, torch.zeros_like(one)], 1)


def linear_case(seed, count=40, normalization=PLAIN):
    """Return a linear model, a pool far from the edges of [0, 1], and each image's largest epsilon that it survives."""
    generator = torch_generator(seed, "linear")
    weight = 0.02 * torch.randn(3 * SIDE**2, generator=generator)  # larger ones saturate the softmax
    stored = torch.randint(80, 176, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    model = Linear(weight, torch.zeros(()))
    with torch.no_grad():
        scores = normalization.normalize(stored.float() / 255).flatten(1) @ weight
        model.bias -= scores.median()
        values = (scores + model.bias).double()
    labels = (values < 0).long()
    std = torch.tensor(normalization.std).repeat_interleave(SIDE**2)
    return model, Pool(labels, lambda chosen: stored[list(chosen)]), values.abs() / (weight / std).abs().sum().double()


@settings(max_examples=8)
@given(seed=st.integers(0, 50), epsilon=st.floats(0.002, 0.2), shifted=st.booleans())
def test_on_a_linear_model_fgsm_pgd_and_the_margin_reach_the_closed_form(seed, epsilon, shifted):
    normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)) if shifted else PLAIN
    model, pool, holds_to = linear_case(seed, normalization=normalization)
    if ((holds_to / epsilon - 1).abs() < 1e-3).any():
        return  # on the edge rounding decides
    expected = float((holds_to > epsilon).double().mean())
    for evaluator in (
        FGSM(epsilons=(epsilon,)),
        PGD(epsilons=(epsilon,), steps=9),
        CWLinf(epsilons=(epsilon,), steps=9),
    ):
        found = ask(evaluator, model, pool, normalization=normalization, names=("a", "b")).scores
        assert found["accuracy at epsilon 0"] == 1.0
        assert found[at(epsilon)] == pytest.approx(expected)


def test_square_is_an_upper_bound_of_the_closed_form_and_gets_near_it():
    model, pool, holds_to = linear_case(3)
    epsilon = float(holds_to.median())
    found = ask(Square(epsilons=(epsilon,), queries=400), model, pool, names=("a", "b"))
    expected = float((holds_to > epsilon).double().mean())
    assert expected <= found.scores[at(epsilon)] <= expected + 0.25
    fewer = ask(Square(epsilons=(epsilon,), queries=10), model, pool, names=("a", "b")).scores[at(epsilon)]
    assert fewer >= found.scores[at(epsilon)]


@pytest.mark.parametrize("evaluator", [PGD(**CHEAP), CWLinf(**CHEAP), FGSM(**CHEAP), Square(**CHEAP, queries=200)])
def test_an_honest_model_is_not_called_inconclusive(honest, evaluator):
    found = ask(evaluator, honest)
    assert not found.is_inconclusive, found.cautions
    assert found.scores["accuracy at epsilon 0"] > 0.8
    assert found.scores[at(0.06)] < 0.3 < 0.8
    assert found.scores[f"check, accuracy after 20 steps to {_robustness.LARGE}"] == 0.0


@pytest.mark.parametrize("evaluator", [PGD(**CHEAP), CWLinf(**CHEAP), FGSM(**CHEAP), Square(**CHEAP, queries=200)])
def test_a_rounded_input_is_called_inconclusive(honest, evaluator):
    found = ask(evaluator, Rounded(honest))
    assert found.is_inconclusive
    assert any("images is zero: an attack that follows it cannot move them" in caution for caution in found.cautions)
    assert found.scores["check, share without an input gradient"] == 1.0


def test_square_says_where_it_finds_what_gradient_steps_do_not(honest):
    found = ask(Square(**CHEAP, queries=200), Rounded(honest))
    assert any(caution.startswith("This attack, which does not follow") for caution in found.cautions)
    assert not any(caution.startswith("This attack") for caution in ask(PGD(**CHEAP), Rounded(honest)).cautions)


def test_a_search_without_gradients_gives_a_gradient_that_points_elsewhere_away(honest):
    # Its gradient is neither zero nor small, so only the comparison with other attacks shows it.
    found = ask(PGD(**CHEAP), Wavy(honest))
    assert found.scores["check, share without an input gradient"] == 0.0
    assert found.is_inconclusive
    assert any("Gradients may be masked" in caution for caution in found.cautions)


def test_a_saturated_softmax_stops_the_cross_entropy_and_not_the_margin(honest):
    stopped, not_stopped = ask(PGD(**CHEAP), Scaled(honest)), ask(CWLinf(**CHEAP), Scaled(honest))
    assert stopped.is_inconclusive and not not_stopped.is_inconclusive
    assert not_stopped.scores[at(0.06)] < stopped.scores[at(0.06)]
    assert not_stopped.scores[at(0.06)] == pytest.approx(ask(CWLinf(**CHEAP), honest).scores[at(0.06)], abs=0.05)


def test_a_model_that_draws_and_one_in_training_mode_are_called_inconclusive(honest):
    with seeded(0, "draws"):
        found = ask(FGSM(**CHEAP), Drops(honest))
    assert found.is_inconclusive and any("draws at random" in caution for caution in found.cautions)
    model = PixelModel(nn.Sequential(honest, nn.Dropout(0.0)), PLAIN).eval()
    model.model[1].train()
    found = FGSM(**CHEAP).run(model, POOL, NAMES, torch_generator(0, "ask"))
    assert found.is_inconclusive and any("training mode (Dropout)" in caution for caution in found.cautions)


def test_too_few_steps_are_called_inconclusive(honest):
    found = ask(PGD(epsilons=(0.06,), images=60, steps=1, step=0.1), honest)
    assert found.is_inconclusive and any("1 steps are too few" in caution for caution in found.cautions)


def test_a_model_that_is_right_about_too_few_images_leaves_nothing_to_check(honest):
    found = ask(FGSM(**CHEAP), honest, Pool((LABELS + 1) % CLASSES, POOL.fetch))
    assert found.is_inconclusive and "the checks of the attack need 10" in found.cautions[0]


def test_an_input_gradient_that_is_not_finite_is_said_and_never_counts_as_a_success(honest):
    class Breaks(Rounded):
        def forward(self, images):
            return self.inner(images) + (images - images).abs().sqrt().flatten(1).sum(1, keepdim=True)

    found = ask(PGD(**CHEAP), Breaks(honest))
    assert found.is_inconclusive and any("is not finite" in caution for caution in found.cautions)
    assert found.scores[at(0.06)] == found.scores["accuracy at epsilon 0"]


@given(
    seed=st.integers(0, 1000),
    epsilon=st.floats(0.001, 1.0),
    steps=st.integers(0, 4),
    step=st.floats(0.01, 2.0),
    margins=st.booleans(),
)
def test_iterates_stay_within_epsilon_and_in_the_range_of_pixels(seed, epsilon, steps, step, margins):
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch_generator(seed))
    model, seen = Linear(torch.randn(3 * SIDE**2, generator=torch_generator(1)), torch.zeros(())), []

    class Watches(nn.Module):
        def forward(self, inputs):
            seen.append(inputs.detach().clone())
            return model(inputs)

    loss = margin if margins else _robustness.cross_entropy
    labels, generator = torch.tensor([0, 1, 0]), torch_generator(seed, "start")
    found = _robustness.climb((Watches(), loss), images, labels, epsilon, steps, step, generator)
    for iterate in (*seen, found):
        assert (iterate - images).abs().max() <= epsilon + 1e-6
        assert iterate.min() >= 0 and iterate.max() <= 1


def test_accuracy_falls_with_epsilon_and_with_restarts_and_the_loop_says_the_same(honest):
    found = ask(PGD(epsilons=EPSILONS, images=60, steps=5), honest).scores
    curve = [found["accuracy at epsilon 0"], *(found[at(epsilon)] for epsilon in EPSILONS)]
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0]
    more = ask(PGD(epsilons=EPSILONS, images=60, steps=5, restarts=3), honest).scores
    assert more[at(EPSILONS[0])] <= found[at(EPSILONS[0])]
    # Image by image, with draws of their own: the same attack up to its random start.
    images, hits = POOL.read(range(60)), 0
    for number in range(60):
        image, label = images.images[number : number + 1], images.labels[number : number + 1]
        moved = pgd(honest, image, label, 0.03, step=0.0075, steps=20, generator=torch_generator(number))
        hits += int(honest(image).argmax() == label and honest(moved).argmax() == label)
    assert ask(PGD(epsilons=(0.03,), images=60), honest).scores[at(0.03)] == pytest.approx(hits / 60, abs=0.05)


def test_what_is_shown_are_images_that_it_gets_right_before_and_wrong_after(honest):
    found = ask(PGD(epsilons=(0.06, 0.03), images=60, steps=5), honest)
    original, adversarial, difference = found.images.values()
    assert "adversarial at epsilon 0.03" in found.images and len(original) == 8
    with torch.no_grad():
        before, after = honest(original).argmax(1), honest(adversarial).argmax(1)
    numbers = [int((POOL.read(range(60)).images == image).flatten(1).all(1).nonzero()[0]) for image in original]
    assert torch.equal(before, LABELS[numbers]) and (after != before).all()
    assert torch.allclose(difference, ((adversarial - original) / 0.06 + 0.5).clamp(0, 1))
    assert ask(PGD(epsilons=(1e-4,), images=20), honest).images == {}


def test_the_model_is_left_as_it_was(honest):
    before = {name: value.clone() for name, value in honest.state_dict().items()}
    ask(PGD(**CHEAP), honest)
    assert all(torch.equal(value, before[name]) for name, value in honest.state_dict().items())
    assert all(parameter.requires_grad for parameter in honest.parameters())


def test_the_same_generator_gives_the_same_scores_and_another_one_other_draws(honest):
    evaluator = PGD(epsilons=(0.03,), images=60, steps=2)
    first, again = ask(evaluator, honest).scores, ask(evaluator, honest).scores
    assert first == again
    generators = [torch_generator(seed, "ask") for seed in (0, 1)]
    images = POOL.read(range(4))
    one, other = (
        _robustness.climb((honest, _robustness.cross_entropy), images.images, images.labels, 0.03, 2, 0.25, generator)
        for generator in generators
    )
    assert not torch.equal(one, other)


def test_features_move_further_from_the_image_than_by_chance():
    model = small_model()
    pixels = PixelModel(model, models.normalization(model)).eval()
    images = random_images(torch_generator(0), 4).images
    surface, distance = FeaturePGD()._goal(pixels, images)
    labels = torch.zeros(4, dtype=torch.long)
    start, end = (
        _robustness.climb((surface, distance), images, labels, 0.03, steps, 0.25, torch_generator(1))
        for steps in (0, 8)
    )
    with torch.no_grad():
        assert (distance(surface(end), labels) > 2 * distance(surface(start), labels)).all()


def test_what_is_no_timm_model_has_no_features(honest):
    with pytest.raises(EvaluationRefusedError, match="Sequential tells none"):
        ask(FeaturePGD(), honest)


@given(epsilon=st.floats(1e-4, 1.0))
def test_an_epsilon_is_named_so_that_one_can_read_it_back(epsilon):
    over, _, under = _robustness.title(epsilon).partition("/")
    assert float(over) / float(under or 1) == pytest.approx(epsilon, rel=1e-3, abs=1e-4)


@given(count=st.integers(1, 500))
def test_the_tolerance_is_a_twentieth_and_at_least_one_image(count):
    assert tolerance(count) == max(1, math.ceil(count / 20))


@pytest.mark.parametrize(
    ("cls", "params", "field"),
    [
        (FGSM, {"epsilons": []}, "epsilons"),
        (FGSM, {"epsilons": [0.0]}, "epsilons"),
        (FGSM, {"epsilons": [1.1]}, "epsilons"),
        (FGSM, {"epsilons": [".nan"]}, "epsilons"),
        (FGSM, {"epsilons": [0.1, 0.1]}, "epsilons"),
        (FGSM, {"images": 0}, "images"),
        (FGSM, {"checked": 9}, "checked"),
        (PGD, {"steps": 0}, "steps"),
        (PGD, {"restarts": 0}, "restarts"),
        (PGD, {"step": 0.0}, "step"),
        (CWLinf, {"step": 2.1}, "step"),
        (Square, {"queries": 0}, "queries"),
        (Square, {"share": 0.0}, "share"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(cls, params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(cls, params, "evaluators.0.params")
    assert refused.value.where.startswith(f"evaluators.0.params.{field}")


def test_no_test_images_are_refused():
    empty = Pool(torch.zeros(0, dtype=torch.long), lambda chosen: torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8))
    with pytest.raises(EvaluationRefusedError, match="no test images"):
        ask(FGSM(), nn.Flatten(), empty)
