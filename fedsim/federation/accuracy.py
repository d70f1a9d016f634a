"""What global weights are worth: accuracy and loss on the test pool, after each round."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.exchange import LabeledImages
from fedsim.federation.training import Weights
from fedsim.planning.memory import per_plan
from fedsim.planning.plan import Plan

_KEPT = 256 * 2**20  # bytes


def evaluate(plan: Plan, weights: Weights, batch_size: int = 256) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of global weights on the test pool, never shuffled or masked."""
    model, count = plan.model(weights), len(plan.data.pools.test)
    correct, total = 0, 0.0
    with torch.inference_mode():
        for start in range(0, count, batch_size):
            batch = _read(plan, start, min(start + batch_size, count))
            logits = model(plan.normalization.normalize(batch.images))
            total += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
            correct += int((logits.argmax(1) == batch.labels).sum())
    return correct / count, total / count


def _bytes(batch: LabeledImages) -> int:
    return batch.images.nbytes


# Decoding takes longer than a small model does, and the same images are asked of in every round.
@per_plan(most=_KEPT, size=_bytes)
def _read(plan: Plan, start: int, stop: int) -> LabeledImages:
    return plan.data.pools.test.read(range(start, stop))
