"""Claims of DP-SGD, checked on one step: honest ones stay, and gross faults are refuted."""

import dataclasses
import math
from dataclasses import dataclass, replace

import pytest
import torch
from fedsim_defenses._per_image import clipped_sum
from fedsim_defenses.dp_sgd import DPSGD
from torch import nn

from fedsim.audit import private_step
from fedsim.audit.private_step import check_step, computes_gradient
from fedsim.defense import ONE_IMAGE, PrivacyBudget
from fedsim.federation import training
from fedsim.gaussian_dp import gaussian_epsilon
from fedsim.models import shared_state, trained
from fedsim.seeds import seeded
from fedsim.testing import client_context

DELTA = 1e-5
DRAWS = 240


class Flat(nn.Module):
    """Two linear layers on the mean color: a gradient of which is computed in a millisecond."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(in_chans, 4), nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.first(images.mean((2, 3))))
        return found


@pytest.fixture(autouse=True)
def computed_once(monkeypatch):
    """Clip the gradients of equal batches once in a test, and draw noise anew each time: the model is always the same."""

    def once(model, images, labels, clip_norm):
        key = len(images), clip_norm
        if key not in known:
            known[key] = clipped_sum(model, images, labels, clip_norm)
        copied = {name: tensor.clone() for name, tensor in known[key].gradients.items()}
        return known[key]._replace(gradients=copied)

    known = {}
    monkeypatch.setattr("fedsim_defenses.dp_sgd.clipped_sum", once)


@pytest.fixture
def work(tiny_plan):
    """Return a function: a defense -> the work of client 0 in round 1, and the defense in it."""

    def make(defense):
        plan = tiny_plan(
            model={"name": "vit_nano", "kwargs": {"depth": 1, "embed_dim": 8, "num_heads": 1}},
            training={"sampling": "poisson", "batch_size": 4},
            attacks=[],
            defenses=[{"name": "dp_sgd", "clients": [0]}],
        )
        carried = dataclasses.replace(plan.defenses[0], defense=defense)
        plan = dataclasses.replace(plan, defenses=(carried,))
        run = training.prepared(plan, 0, 1, plan.initial_weights())
        with seeded(0, "flat"):
            return replace(run, model=Flat(10, 3)), carried

    return make


@pytest.fixture
def check(work):
    return lambda defense, draws=DRAWS, seed=0: check_step(*work(defense), seed, draws)


def noised(model, sigma, generator, but=()):
    for name, parameter in trained(model).items():
        if name not in but:
            parameter.grad += sigma * torch.randn(parameter.shape, generator=generator)
    return torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class Broken(DPSGD):
    """Clips nothing by itself and adds no noise: what a faulty step adds to it."""

    clip_norm: float = 0.1

    def clipped(self, step, norm):
        DPSGD.train_step(
            replace(self, noise_multiplier=0.0, clip_norm=norm),
            step,
            client_context(batch_size=1),
            torch.Generator(),
            training.plain_step,
        )


class NoiseOnOneTensor(Broken):
    def train_step(self, step, context, generator, proceed):
        self.clipped(step, 0.1)
        return noised(step.model, 0.1, generator, but=("head.weight", "first.weight", "first.bias"))


class ClipsAtTwiceTheNorm(Broken):
    def train_step(self, step, context, generator, proceed):
        self.clipped(step, 0.2)
        return noised(step.model, 0.1, generator)


class ClipsTheBatch(Broken):
    def train_step(self, step, context, generator, proceed):
        loss = nn.functional.cross_entropy(step.model(step.images), step.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(step.model.parameters(), 0.1)
        return noised(step.model, 0.1 / len(step.images), generator)


class TheSameNoiseEachTime(Broken):
    def train_step(self, step, context, generator, proceed):
        self.clipped(step, 0.1)
        return noised(step.model, 0.1, torch.Generator().manual_seed(7))


class ClaimsTooLittle(DPSGD):
    def budget(self, context):
        return PrivacyBudget(1.0, DELTA, ONE_IMAGE)


# Not refuted


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_an_honest_step_is_not_refuted_whatever_the_seed(work, clipping):
    run, carried = work(DPSGD(clip_norm=0.1, clipping=clipping))
    for seed in range(4):
        found = check_step(run, carried, seed, 120)
        assert (found.status, found.release, found.draws) == ("not refuted", "step", 120)
        assert 0 <= found.lower_bound < gaussian_epsilon(1.0, DELTA) < found.claimed.epsilon


def test_with_more_draws_the_bound_comes_near_the_exact_epsilon(check):
    found = check(DPSGD(clip_norm=0.1, noise_multiplier=0.5), 500)
    # Two standard deviations between the means: the exact epsilon is 9.9, and fewer draws show less.
    assert gaussian_epsilon(1.5, DELTA) < found.lower_bound < gaussian_epsilon(2.0, DELTA) < found.claimed.epsilon


def test_the_claim_is_that_of_one_step_on_all_of_few_images(check, work):
    found = check(DPSGD(clip_norm=0.1), 100)
    context = client_context(
        training=work(DPSGD())[0].plan.context_of(0).training, batch_size=4, num_examples=4, steps=1
    )
    assert found.claimed == DPSGD().budget(context) and found.claimed.epsilon == pytest.approx(4.73, abs=0.01)


# Refuted


@pytest.mark.parametrize("broken", [NoiseOnOneTensor, ClipsAtTwiceTheNorm, ClipsTheBatch, TheSameNoiseEachTime])
def test_a_broken_step_is_refuted(check, broken):
    found = check(broken())
    assert found.status == "refuted" and found.lower_bound > found.claimed.epsilon


def test_a_claim_that_is_too_small_for_the_noise_is_refuted(check):
    assert check(ClaimsTooLittle(clip_norm=0.1)).status == "refuted"


def test_without_the_statement_that_noise_is_gaussian_less_is_shown(check, monkeypatch):
    with_it = check(DPSGD(clip_norm=0.1, noise_multiplier=0.5), 150).lower_bound
    monkeypatch.setattr(DPSGD, "adds_gaussian_noise", False)
    assert check(DPSGD(clip_norm=0.1, noise_multiplier=0.5), 150).lower_bound < min(with_it, math.log(150 / 2))


# The pair


def test_the_canary_has_the_largest_gradient_under_the_label_that_the_model_finds_least_likely(work):
    run, _ = work(DPSGD())
    pair = private_step._pair(run, 0)
    assert len(pair.images) == len(pair.labels) == 4
    assert int(pair.labels[0]) == int(run.model(pair.images[:1]).argmin())
    norms = [
        math.hypot(*(float(g.norm()) for g in private_step.gradient_of(run.model, one[None], label[None]).values()))
        for one, label in zip(pair.images, run.model(pair.images).argmin(1), strict=True)
    ]
    assert math.hypot(*pair.lengths.values()) == pytest.approx(max(norms), rel=1e-5)
    assert all(float(direction.norm()) == pytest.approx(1.0) for direction in pair.directions.values())


def test_the_same_seed_gives_the_same_bound_and_the_model_stays(work):
    run, planned = work(DPSGD(clip_norm=0.1))
    before = {name: tensor.clone() for name, tensor in shared_state(run.model).items()}
    first, again, other = (check_step(run, planned, seed, 100) for seed in (0, 0, 1))
    assert first == again != other
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared_state(run.model).items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


# What is not checked


class Moves(DPSGD):
    def train_step(self, step, context, generator, proceed):
        with torch.no_grad():
            step.model.head.bias += 1e-3
        return super().train_step(step, context, generator, proceed)


class OfOtherNeighbors(DPSGD):
    def budget(self, context):
        return PrivacyBudget(1.0, DELTA, "replace")


class OfNoEpsilon(DPSGD):
    def budget(self, context):
        return PrivacyBudget(math.inf, DELTA, ONE_IMAGE)


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (DPSGD(noise_multiplier=0.5, target_epsilon=1.0), "a step on all of 4 images fails: BudgetSpentError"),
        (OfOtherNeighbors(), "its neighbors are 'replace'"),
        (OfNoEpsilon(), "no finite epsilon"),
        (Moves(), "its step changes the model"),
    ],
)
def test_what_cannot_be_checked_says_why(check, defense, says):
    found = check(defense, 100)
    assert (found.status, found.release, found.lower_bound) == ("not checked", "step", None) and says in found.reason


def test_without_noise_nothing_is_claimed_and_few_draws_are_refused(check):
    assert check(DPSGD(noise_multiplier=0.0)) is None
    with pytest.raises(ValueError, match="draws: expected at least 100, got 99"):
        check(DPSGD(), 99)


def test_what_protects_updates_is_no_step():
    class Both(DPSGD):
        def protect_update(self, update, context, generator):
            return update

    assert computes_gradient(DPSGD()) and not computes_gradient(Both())
