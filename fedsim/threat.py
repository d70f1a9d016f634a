"""The one door: what the honest-but-curious server knows, and nothing else, reaches an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.exchange import Observation, Update
from fedsim.plan import Plan
from fedsim.training import training_knowledge


@dataclass(frozen=True)
class ThreatModel:
    """Grants of one scenario.

    Args:
        plan: the run's plan; the private data behind it is read for the grant `labels` alone.
    """

    plan: Plan

    def observe(self, update: Update, weights: Mapping[str, Tensor]) -> Observation:
        """Return what an attack may know about one update.

        Args:
            update: one client's update.
            weights: the round's global weights.
        """
        plan, grants = self.plan, frozenset(self.plan.scenario.threat.grants)
        training = plan.scenario.training
        labels = None
        if "labels" in grants:
            truth = plan.data.truth(update.client, update.round, training)
            # Sorted, because the order of the batch is not part of the grant.
            labels = torch.sort(truth.labels).values
        auxiliary = plan.data.pools.auxiliary
        return Observation(
            update=update,
            model=lambda: plan.model(weights),
            image_shape=plan.image_shape,
            num_classes=plan.num_classes,
            batch_size=self._batch_size(update) if "batch_size" in grants else None,
            labels=labels,
            normalization=plan.normalization if "normalization" in grants else None,
            training=training_knowledge(training, plan.model()) if "training" in grants else None,
            train_mode=training.mode == "train" if "train_mode" in grants else None,
            defenses=tuple(d.knowledge for d in plan.defenses_of(update.client)) if "defenses" in grants else None,
            auxiliary_data=auxiliary.read(range(len(auxiliary))) if "auxiliary_data" in grants else None,
        )

    def _batch_size(self, update: Update) -> int:
        # A client with fewer samples than the batch size trains on what it has.
        return min(self.plan.scenario.training.batch_size, update.num_examples)
