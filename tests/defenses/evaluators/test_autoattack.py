"""AutoAttack: refused where it cannot run; beside PGD and our Square on one model where the package is there."""

import sys

import pytest
import torch
from fedsim_defenses.evaluators._robustness import at
from fedsim_defenses.evaluators.autoattack import AutoAttack
from fedsim_defenses.evaluators.pgd import PGD
from fedsim_defenses.evaluators.square import Square
from torch import nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Normalization
from fedsim.seeds import seeded, torch_generator
from fedsim.source import Pool
from fedsim.testing import check_evaluator

NAMES = tuple(map(str, range(5)))
EPSILON = 0.05
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def ask(evaluator, names=NAMES, count=40):
    """Ask it of a random network, with the labels that it gives, so that every image can be attacked."""
    with seeded(0, "network"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.GELU(), nn.Linear(24, len(names))).eval()
    stored = torch.randint(60, 196, (count, 3, 8, 8), generator=torch_generator(0)).to(torch.uint8)
    with torch.no_grad():
        labels = model(stored.float() / 255).argmax(1)
    pool = Pool(labels, lambda chosen: stored[list(chosen)])
    return evaluator.run(PixelModel(model, PLAIN).eval(), pool, names, torch_generator(0, "ask"))


def test_without_the_package_it_is_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(EvaluationRefusedError, match=r'pip install "fedsim-audit\[robustness\]"'):
        ask(AutoAttack())


def test_fewer_classes_than_its_losses_need_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", object())
    with pytest.raises(EvaluationRefusedError, match="at least 4 classes, and there are 3"):
        ask(AutoAttack(), NAMES[:3])


def test_it_leaves_no_more_than_pgd_and_our_square_and_pgd_are_within_the_intervals_of_its_own():
    package = pytest.importorskip("pyautoattack")
    found = ask(AutoAttack(epsilons=(EPSILON,)))
    assert found.scores[at(EPSILON)] <= ask(PGD(epsilons=(EPSILON,))).scores[at(EPSILON)]
    assert found.scores == ask(AutoAttack(epsilons=(EPSILON,))).scores

    def theirs(attack):
        class Asks(AutoAttack):
            def _attack(self, model, images, labels, epsilon, generator):
                with seeded(0, "theirs"):
                    return attack(model, epsilon).perturb(images, labels)

        found = ask(Asks(epsilons=(EPSILON,))).scores
        return found[f"{name}, 95% from"], found[f"{name}, 95% to"]

    name = at(EPSILON)
    for ours, attack in (
        (
            Square(epsilons=(EPSILON,), queries=500),
            lambda model, epsilon: package.square.SquareAttack(
                model, p_init=0.8, n_queries=500, eps=epsilon, norm="Linf", seed=0
            ),
        ),
        (
            PGD(epsilons=(EPSILON,)),
            lambda model, epsilon: package.autopgd_base.APGDAttack(
                model, n_iter=100, n_restarts=1, eps=epsilon, norm="Linf", seed=0, device="cpu"
            ),
        ),
    ):
        low, high = theirs(attack)
        assert low <= ask(ours).scores[name] <= high


def test_it_keeps_the_contract_of_evaluators():
    pytest.importorskip("pyautoattack")
    check_evaluator(AutoAttack)
