import pytest
import torch
from torch import nn

from fedsim.federation.accuracy import evaluate
from fedsim.source import Pool


@pytest.fixture
def moved(tiny_plan):
    """Return a plan, and weights unlike its initial ones, so that no test passes by accident of initialization."""
    plan, generator = tiny_plan(), torch.Generator().manual_seed(1)
    return plan, {n: w + 0.02 * torch.randn(w.shape, generator=generator) for n, w in plan.initial_weights().items()}


def test_evaluation_is_accuracy_and_mean_loss_over_the_test_pool(moved):
    (plan, weights), pool = moved, moved[0].data.pools.test
    samples = pool.read(range(len(pool)))
    with torch.no_grad():
        logits = plan.model(weights)(plan.normalization.normalize(samples.images))
    expected = float(nn.functional.cross_entropy(logits, samples.labels))
    accuracy, loss = evaluate(plan, weights, batch_size=3)
    assert accuracy == float((logits.argmax(1) == samples.labels).float().mean())
    assert loss == pytest.approx(expected, rel=1e-5)


def test_images_are_decoded_once_for_all_rounds(moved, monkeypatch):
    (plan, weights), asked, read = moved, [], Pool.read
    monkeypatch.setattr(Pool, "read", lambda pool, chosen: asked.append(list(chosen)) or read(pool, chosen))
    first = evaluate(plan, weights, batch_size=5)
    assert evaluate(plan, weights, batch_size=5) == first != evaluate(plan, plan.initial_weights(), batch_size=5)
    assert sorted(number for chosen in asked for number in chosen) == list(range(len(plan.data.pools.test)))
