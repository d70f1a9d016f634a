"""The one door: what the honest-but-curious server knows, and nothing else, reaches an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import RunFolderError
from fedsim.exchange import Observation, Update, View
from fedsim.labels import without_order
from fedsim.models.correspondence import Correspondence, ForeignArraysError, correspond, shapes_of
from fedsim.planning.context import training_knowledge
from fedsim.planning.plan import Plan, foreign
from fedsim.scenario import Grant
from fedsim.views import observation_of


@dataclass(frozen=True, eq=False)
class ModelFactory:
    """Gives fresh copies of one module, and reaches nothing else: neither the plan nor any data.

    Args:
        original: module with the round's global weights.
    """

    original: nn.Module

    def __call__(self) -> nn.Module:
        """Return a copy that may be changed at will."""
        return models.copied(self.original)


@dataclass(frozen=True)
class ThreatModel:
    """Grants of one scenario.

    Args:
        plan: the run's plan; the private data behind it is read for the grants `labels` and `candidates` alone.
        withheld: grants of the scenario that the attack does not get.
    """

    plan: Plan
    withheld: frozenset[Grant] = frozenset()

    def show(self, sent: Sequence[tuple[Update, Mapping[str, Tensor]]], view: View) -> Observation:
        """Return what an attack may know about all that a view shows.

        Args:
            sent: each update of the view, with the global weights that its client got.
            view: of one update, of several, or of their sum alone.

        Raises:
            RunFolderError: see `observe`.
        """
        if view.client is not None:
            return self.observe(*sent[0])
        # Pairs are of the view: an image in those of one update as well would be one that was trained on.
        members = [self._without_candidates(update, weights) for update, weights in sent]
        places = [(update.round, update.client) for update, _ in sent]
        # What all updates of a round have in common is held once.
        models: dict[int, tuple[Mapping[str, Tensor], Callable[[], nn.Module]]] = {}
        for place, ((update, weights), member) in enumerate(zip(sent, members, strict=True)):
            known, model = models.setdefault(update.round, (weights, member.model))
            is_same = known is weights or all(torch.equal(known[name], weights[name]) for name in weights)
            members[place] = replace(
                member, auxiliary_data=members[0].auxiliary_data, model=model if is_same else member.model
            )
        return replace(observation_of(members, view.is_sum), candidates=self.plan.candidates(places))

    def observe(self, update: Update, weights: Mapping[str, Tensor]) -> Observation:
        """Return what an attack may know about one update.

        Args:
            update: one client's update.
            weights: the round's global weights.

        Raises:
            RunFolderError: the tensors are not those of the scenario's model.
        """
        candidates = self.plan.candidates([(update.round, update.client)])
        return replace(self._without_candidates(update, weights), candidates=candidates)

    def _without_candidates(self, update: Update, weights: Mapping[str, Tensor]) -> Observation:
        plan, grants = self.plan, frozenset(self.plan.scenario.threat.grants) - self.withheld
        training = plan.scenario.training
        labels = None
        if "labels" in grants:
            truth = plan.data.truth(update.client, update.round, training)
            labels = without_order(truth.labels)
        auxiliary, original = plan.data.pools.auxiliary, plan.model()
        self._matched(update, weights, original).load(original, weights)
        sent = {**update.tensors, **update.buffers}
        matched = self._matched(update, sent, original)
        buffers = {name: sent[theirs] for name, theirs in matched.buffers.items() if theirs in update.buffers}
        model = _without_normalization(original)
        return Observation(
            update=replace(update, tensors=matched.parameters_of(sent), buffers=buffers),
            model=model,
            image_shape=plan.image_shape,
            num_classes=plan.num_classes,
            batch_size=self._batch_size(update) if "batch_size" in grants else None,
            labels=labels,
            normalization=plan.normalization if "normalization" in grants else None,
            training=training_knowledge(plan.scenario, model.original, update.round) if "training" in grants else None,
            train_mode=training.mode == "train" if "train_mode" in grants else None,
            defenses=tuple(d.knowledge for d in plan.defenses_of(update.client)) if "defenses" in grants else None,
            auxiliary_data=auxiliary.read(range(len(auxiliary))) if "auxiliary_data" in grants else None,
        )

    def _matched(self, update: Update, tensors: Mapping[str, Tensor], model: nn.Module) -> Correspondence:
        try:
            return correspond(shapes_of(tensors), model)
        except ForeignArraysError as error:
            what = f"the captures of round {update.round}, client {update.client} are"
            raise RunFolderError(foreign(self.plan.scenario, what, error)) from None

    def _batch_size(self, update: Update) -> int:
        # A client with fewer samples than the batch size trains on what it has; an observed one may not say how many.
        size = self.plan.scenario.training.batch_size
        return min(size, update.num_examples or size)


def _without_normalization(model: nn.Module) -> ModelFactory:
    """Return a factory of the model; timm keeps the normalization in these attributes, and it is a grant of its own."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        setattr(model, attribute, {})
    return ModelFactory(model)
