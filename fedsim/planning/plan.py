"""The plan of a run: everything that determines it, found and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fedsim import models
from fedsim.applicability import Setting, Workload
from fedsim.attack import Attack
from fedsim.data.batches import FederatedData
from fedsim.data.candidates import candidates
from fedsim.defense import EPSILON_OF_ONE_RUN, ClientContext, Defense
from fedsim.exchange import Candidates, Normalization, Scope, Truth, UpdateKind, View
from fedsim.models.correspondence import Correspondence, ForeignArraysError
from fedsim.models.trainable import Sharing
from fedsim.planning.context import client_context
from fedsim.planning.planned import PlannedAttack, PlannedDefense, PlannedEvaluator, cautions, client_cautions
from fedsim.planning.supplied_truth import SuppliedTruth
from fedsim.recording.observed import Captured
from fedsim.scenario import Scenario
from fedsim.strategies.central_privacy import caution, is_central


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a run needs, checked.

    Args:
        scenario: the resolved scenario.
        attacks: in the scenario's order, each followed by its plain variant where it has one.
        defenses: in the order of application.
        data: pools and partition.
        normalization: of the model's input.
        audit_rounds: rounds whose updates are attacked.
        audit_clients: clients whose updates are attacked.
        notes: what its user should know though it is no fault, one sentence each.
        captured: what was captured of an observed app, whose data, clients and rounds the scenario does not know; None where
            fedsim trains itself.
        matched: how the app's arrays became the model's parameters; None where fedsim trains itself.
        num_classes: outputs of the head.
        image_shape: channels, height, width of the model's input.
        evaluators: in the scenario's order.
        added: parameter that a defense has added to the model -> the first defense that did.
        supplied: what the clients of an observed app trained on, as its team tells; None where nobody does.
    """

    scenario: Scenario
    attacks: tuple[PlannedAttack, ...]
    defenses: tuple[PlannedDefense, ...]
    data: FederatedData
    normalization: Normalization
    audit_rounds: tuple[int, ...]
    audit_clients: tuple[int, ...]
    notes: tuple[str, ...]
    num_classes: int
    image_shape: tuple[int, int, int]
    _skeleton: nn.Module
    captured: Captured | None = None
    matched: Correspondence | None = None
    evaluators: tuple[PlannedEvaluator, ...] = ()
    added: Mapping[str, PlannedDefense] = field(default_factory=dict)
    supplied: SuppliedTruth | None = None

    @property
    def has_truth(self) -> bool:
        """Whether it is known what clients trained on, so that findings can be scored."""
        return self.captured is None or self.supplied is not None

    @property
    def sees_sums(self) -> bool:
        """Whether the server sees the weighted sum of each round alone, as under secure aggregation."""
        return self.scenario.threat.sees == "aggregate"

    def scope_of(self, attack: Attack) -> Scope:
        """Return what an attack looks at in this run: sums of a round, where there are no single updates to look at."""
        return "round" if self.sees_sums and attack.scope == "update" else attack.scope

    def is_run(self, planned: PlannedAttack, view: View) -> bool:
        """Return whether an attack is run on a view: a plain variant is where a client carries a defense."""
        return not planned.is_plain or any(self.defenses_of(client) for client in view.clients)

    @property
    def has_stated_data(self) -> bool:
        """Whether the scenario names a data source; that of an observed app serves as other images of the same kind alone."""
        return "data" in self.scenario.model_fields_set and "name" in self.scenario.data.model_fields_set

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the model's buffers that travel."""
        return models.shared_buffers(self._skeleton)

    @property
    def sharing(self) -> Sharing:
        """What of the model travels."""
        return Sharing.of(self._skeleton)

    def model(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Return a fresh model in evaluation mode, with these weights, else with the scenario's initial ones."""
        model = models.copied(self._skeleton)
        if weights is not None:
            for name, tensor in models.shared_state(model).items():
                tensor.copy_(weights[name])
        return model

    def initial_weights(self) -> dict[str, Tensor]:
        """Return what of the model travels, as the server starts from it, in the model's order."""
        return {name: tensor.clone() for name, tensor in models.shared_state(self._skeleton).items()}

    def frozen_digest(self) -> str | None:
        """Return a digest of the parameters that are not trained, which no capture holds; None where there are none."""
        frozen = {name: p for name, p in self._skeleton.named_parameters() if not p.requires_grad}
        return _digest_of(frozen) if frozen else None

    def initial_digest(self) -> str:
        """Return a digest of the weights that the server starts from."""
        return _digest_of(self.initial_weights())

    def defenses_of(self, client: int) -> tuple[PlannedDefense, ...]:
        """Return the defenses that a client carries, in order of application."""
        return tuple(planned for planned in self.defenses if client in planned.clients)

    def untrained(self, client: int, round: int) -> tuple[str, ...]:
        """Return which trained parameters of the model a client leaves alone in a round: some of those that defenses added.

        A client trains what is added by a kind of defense that it carries, if that says so (`Defense.trains`).
        """
        rounds, travelling = self.scenario.federation.rounds, self.sharing.parameters
        carried = [planned.defense for planned in self.defenses_of(client)]

        def is_trained(name: str) -> bool:
            prepare = type(self.added[name].defense).prepare_model
            return any(type(one).prepare_model is prepare and one.trains(name, round, rounds) for one in carried)

        return tuple(name for name in self.added if name in travelling and not is_trained(name))

    def context_of(self, client: int, round: int = 1, participation: int = 1) -> ClientContext:
        """Return what the hooks of a client's defenses get in a round, with nothing kept from earlier ones."""
        return client_context(self.scenario, self.data, self._skeleton, client, round, participation)

    def truth(self, places: Sequence[tuple[int, int]]) -> Truth:
        """Return what is behind the updates of these rounds and clients together; what a client uses again counts once.

        Args:
            places: round and client of each update, by round; at least one.
        """
        truth = together([(client, self._truth_of(round, client)) for round, client in places])
        return (
            truth if "candidates" not in self.scenario.threat.grants else replace(truth, firsts=self._pairs(truth)[1])
        )

    def _truth_of(self, round: int, client: int) -> Truth:
        if self.supplied is not None:
            return self.supplied.read(round, client)
        return self.data.truth(client, round, self.scenario.training)

    def candidates(self, places: Sequence[tuple[int, int]]) -> Candidates | None:
        """Return the pairs of candidates for the updates of these rounds and clients; None where they are not granted.

        Args:
            places: see `truth`.
        """
        return None if "candidates" not in self.scenario.threat.grants else self._pairs(self.truth(places))[0]

    def _pairs(self, truth: Truth) -> tuple[Candidates, Bool[Tensor, " pair"]]:
        return candidates(truth, self.data.pools.test, self.scenario.seed)

    def setting_of(self, client: int, round: int) -> Setting:
        """Return how the update of a simulated client in a round is made."""
        steps = self.data.client_inputs(client, round, self.scenario.training)
        pictures = len({one for step in steps for one in step})
        setting = self._setting(pictures, max(map(len, steps)), len(steps))
        effects = [planned.defense.effects for planned in self.defenses_of(client)]
        # In its first round a client has kept nothing yet.
        return replace(
            setting,
            has_own_weights=round > 1 and any(one.local for one in effects),
            carries_over=round > 1 and any(one.carries_over for one in effects),
            has_own_loss=any(one.own_loss for one in effects),
        )

    def workload_of(self, client: int) -> Workload:
        """Return how much a simulated client trains on in any round; the expected number of images under Poisson sampling."""
        training, held = self.scenario.training, len(self.data.partition[client])
        size, steps = min(training.batch_size, held), training.local_steps or 1
        if training.local_epochs is not None:
            steps = training.local_epochs * -(-held // size)
        if training.sampling == "poisson":
            return Workload(max(1, round(held * (1 - (1 - size / held) ** steps))), size, steps)
        return Workload(min(held, steps * size), size, steps)

    def setting_reported(self, kind: UpdateKind, num_examples: int) -> Setting:
        """Return how an observed update was made, as far as the client's report and the scenario tell.

        What the scenario does not state about training is taken for one step of plain SGD, as the report says.

        Args:
            kind: of the update.
            num_examples: what the client reported; 0 where it reported none.
        """
        training, pictures = self.scenario.training, num_examples or None
        size = training.batch_size if pictures is None else min(training.batch_size, pictures)
        steps: int | None = training.local_steps or 1
        if training.local_epochs is not None:
            steps = None if pictures is None else training.local_epochs * -(-pictures // size)
        return replace(self._setting(pictures, size, steps), kind=kind)

    def _setting(self, pictures: int | None, batch_size: int, steps: int | None) -> Setting:
        training = self.scenario.training
        return Setting(
            pictures,
            batch_size,
            training.shares,
            steps,
            training.optimizer,
            bool(training.label_smoothing or training.mixup),
            models.facts(self._skeleton),
            models.frozen_facts(self._skeleton),
            has_stated_loss=training.loss is not None,
        )

    def cautions_of(self, client: int) -> tuple[str, ...]:
        """Return the doubts about a client: what its defenses state about themselves on this model, and a batch cut short."""
        stated = [
            f"{planned.info.name}: {text}"
            for planned in self.defenses_of(client)
            for text in cautions(planned, self._skeleton)
        ]
        if self.captured is not None:
            return (*stated, *self._cautions_of_capture())
        stated += [
            f"{planned.info.name}: {text}"
            for planned in self.defenses_of(client)
            for text in client_cautions(planned, self.context_of(client))
        ]
        if is_central(self.scenario.federation.strategy):
            stated.append(caution(self.scenario.federation.strategy, self.sees_sums))
        stated += self._cautions_of_start(client)
        asked, held = self.scenario.training.batch_size, len(self.data.partition[client])
        if asked > held:
            stated.append(
                f"training.batch_size is {asked}, but the client has {held} samples: its batches are as small"
            )
        return tuple(stated)

    def _cautions_of_start(self, client: int) -> list[str]:
        """Return that an epsilon leaves out what the client may have told in an earlier run."""
        return (
            [f"the run starts from the model of another one: {EPSILON_OF_ONE_RUN}"]
            if self.claims_after_another_run(client)
            else []
        )

    def claims_after_another_run(self, client: int) -> bool:
        """Return whether an epsilon is stated of a client, and the model comes from another run."""
        if self.scenario.model.start_run is None:
            return False
        claims = any(type(one.defense).budget is not Defense.budget for one in self.defenses_of(client))
        return claims or is_central(self.scenario.federation.strategy)

    def _cautions_of_capture(self) -> list[str]:
        """Return what rests on a guess about an observed app: which array is which, and what the data set has to do with it."""
        stated, name = [], self.scenario.model.name
        if self.matched is not None and self.matched.how:
            stated.append(f"the app's arrays were matched to the parameters of {name} {self.matched.how}")
        if "training" not in self.scenario.model_fields_set:
            stated.append(
                "nobody stated how the clients train: taken for one step of SGD on all images that they report"
            )
        if self.matched is not None and self.matched.foreign:
            foreign = self.matched.foreign
            stated.append(
                f"the app also sent {len(foreign)} arrays that {name} does not have, {foreign[0]} the first; no attack saw them"
            )
        classes = len(self.data.pools.class_names)
        if self.supplied is not None:
            stated.append(f"the truth is what {self.supplied.target} returned: scores are as right as that function")
        if self.has_stated_data and classes != self.num_classes:
            stated.append(
                f"data {self.scenario.data.name} has {classes} classes, the head of the app {self.num_classes}: no class prior "
                "and no other control of that data applies"
            )
        return stated


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def foreign(scenario: Scenario, what: str, error: ForeignArraysError) -> str:
    """Return the message that captured arrays are not those of the scenario's model."""
    return (
        f"{what} not of model {scenario.model.name}: {error}. Name the model of the observed app in the scenario (model.name, "
        "model.kwargs), a model of timm or a 'module:factory'."
    )


def together(truths: Sequence[tuple[int, Truth]]) -> Truth:
    """Return the truths of several updates as one; what a client uses again counts once.

    Args:
        truths: the client and the truth of each update; at least one.
    """
    if len(truths) == 1:
        return truths[0][1]
    seen: set[tuple[int, bytes, bytes]] = set()
    images, labels = [], []
    for client, truth in truths:
        for image, label in zip(truth.images, truth.labels, strict=True):
            known = client, image.numpy().tobytes(), label.numpy().tobytes()
            if known not in seen:
                seen.add(known)
                images.append(image)
                labels.append(label)
    # Labels that are found once an update are scaled to so many images. Of blends nobody can say how many these are.
    has_blends = any(truth.pictures not in (None, len(truth.images)) for _, truth in truths)
    return Truth(torch.stack(images), torch.stack(labels), None if has_blends else len(images))
