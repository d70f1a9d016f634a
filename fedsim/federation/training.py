"""One client's local work in a round: the only training loop.

A pure function of (scenario, client, round, global weights): batches, dropout and every defense's draws come from
generators derived from the seed, so any engine computes the same update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.data.batches import Inputs
from fedsim.defense import MEANINGFUL_DELTA, ClientContext, Defense, LocalStep, PrivacyBudget
from fedsim.exchange import Update
from fedsim.federation.validity import examples_fault, tensors_fault
from fedsim.models import matches, shared_state, trained, training_loss
from fedsim.planning.context import decay_exempt
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedDefense
from fedsim.recording import client_state
from fedsim.recording.client_state import ClientState
from fedsim.scenario import Scenario, TrainingPart
from fedsim.seeds import seeded, torch_generator
from fedsim.validation import shown

Weights = Mapping[str, Tensor]
Step = Callable[[LocalStep], Tensor]


class NonFiniteUpdateError(ArithmeticError):
    """The client's loss or update overflowed; the client counts as failed in this round."""

    advice = "lower training.learning_rate"

    def __init__(self, what: str) -> None:
        super().__init__(f"the {what} is not finite; {self.advice}")


class DefenseFaultError(ValueError):
    """A hook of a defense returned what cannot be trained on or sent; the client counts as failed in this round."""

    def __init__(self, planned: PlannedDefense, hook: str, fault: str) -> None:
        super().__init__(f"{planned.info.name}: {hook} is faulty: {fault}")


@dataclass(frozen=True)
class LocalResult:
    """What a client has after its local work.

    Args:
        update: what it sends, defenses applied.
        loss: mean training loss over its samples; 0 where Poisson sampling drew none.
        budget: the privacy guarantee over all of its rounds so far; None where none is accounted.
        state: what its defenses keep for its next round.
        logged: what they logged, means over the round; for the books alone.
    """

    update: Update
    loss: float
    budget: PrivacyBudget | None
    state: ClientState
    logged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Past:
    """What a client brings from its earlier rounds.

    Args:
        participations: rounds in which it has taken part.
        state: what its defenses kept.
    """

    participations: int = 0
    state: ClientState = field(default_factory=ClientState)


@dataclass(frozen=True, eq=False)
class LocalRun:
    """One client's work in one round, before it is carried out.

    Args:
        plan: the run's plan.
        client: partition number.
        round: server round, from 1.
        weights: the round's global weights.
        model: the client's model, in the mode the scenario states.
        steps: what each local step trains on.
        contexts: what the hooks of each defense get, by the defense's index.
        seed: of all draws.
        innermost: the step behind the hooks of all defenses.
        watch: called with each step before it is taken: how many hooks `train_step` it has passed, and the step.
    """

    plan: Plan
    client: int
    round: int
    weights: Weights
    model: nn.Module
    steps: Sequence[Inputs]
    contexts: Mapping[int, ClientContext]
    seed: int
    innermost: Step
    watch: Callable[[int, LocalStep], None] | None = None

    @property
    def defenses(self) -> tuple[PlannedDefense, ...]:
        """What the client carries, in order of application."""
        return self.plan.defenses_of(self.client)

    def generator(self, hook: str, defense: PlannedDefense, *path: int) -> torch.Generator:
        """Return the generator of one call of a defense's hook."""
        return torch_generator(self.seed, hook, defense.index, self.round, self.client, *path)

    def context(self, defense: PlannedDefense) -> ClientContext:
        """Return what the hooks of a defense get."""
        return self.contexts[defense.index]


def local_update(
    plan: Plan,
    client: int,
    round: int,
    weights: Weights,
    proximal_mu: float = 0.0,
    past: Past | None = None,
) -> LocalResult:
    """Train one client on its batches of a round and return what it sends.

    Args:
        plan: the run's plan.
        client: partition number.
        round: server round, from 1.
        weights: the round's global weights.
        proximal_mu: FedProx's coefficient mu, from the server; adds mu/2 * ||w - weights||^2 to the local loss.
        past: what the client brings from its earlier rounds; None for its first one.

    Raises:
        NonFiniteUpdateError: the loss or the update is not finite.
        DefenseFaultError: a defense returned a batch, a loss or an update that cannot be one (of other names, shapes or
            number formats than it was given, or no longer finite), or keeps what cannot be stored.
    """
    return carry_out(prepared(plan, client, round, weights, past), proximal_mu)


def prepared(plan: Plan, client: int, round: int, weights: Weights, past: Past | None = None) -> LocalRun:
    """Return a client's work in a round, ready to be carried out; see `local_update`."""
    training, model = plan.scenario.training, plan.model(weights)
    model.train(training.mode == "train")
    steps, contexts = plan.data.client_inputs(client, round, training), _contexts(plan, client, round, past or Past())
    return LocalRun(plan, client, round, weights, model, steps, contexts, plan.scenario.seed, plain_step)


def carry_out(run: LocalRun, proximal_mu: float = 0.0) -> LocalResult:
    """Carry out a client's work, which may be done once: the model and what defenses keep change; see `local_update`."""
    update, loss = unprotected(run, proximal_mu)
    for planned in run.defenses:
        update = protected(run, planned, update)
    budget = privacy_budget((planned, run.context(planned)) for planned in run.defenses)
    return LocalResult(update, loss, budget, _kept(run), _logged(run))


def unprotected(run: LocalRun, proximal_mu: float = 0.0) -> tuple[Update, float]:
    """Carry out a client's training, and return its update before any defense protects it, and the loss; see `carry_out`."""
    plan, training, model = run.plan, run.plan.scenario.training, run.model
    start = _begun(run)
    with seeded(run.seed, "training", run.round, run.client):
        if training.shares == "gradient":
            loss = gradient_step(run, 0)
            tensors = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained(model).items()}
        else:
            loss = _train(run, _proximal_pull(start, proximal_mu))
            tensors = {name: parameter.detach() - start[name] for name, parameter in trained(model).items()}
    count = plan.data.client_examples(run.client, run.round, training)
    state = shared_state(model)
    buffers = {name: state[name].clone() for name in plan.buffers}
    sent = {name: tensor.detach() for name, tensor in tensors.items()}
    _end(run, sent)
    update = Update(run.round, run.client, training.shares, sent, count, buffers)
    _check_finite(update, loss)
    return update, loss


def _begun(run: LocalRun) -> Weights:
    """Let each defense change what the client trains from, and return that: the global weights where none does."""
    begins = [planned for planned in run.defenses if type(planned.defense).begin_round is not Defense.begin_round]
    if not begins:
        return run.weights
    start: Weights = {name: run.weights[name] for name in trained(run.model)}
    for planned in begins:
        with torch.no_grad():
            planned.defense.begin_round(run.model, run.context(planned))
        before, start = start, {name: parameter.detach().clone() for name, parameter in trained(run.model).items()}
        local = planned.defense.effects.local
        if hidden := [name for name in start if not (matches(name, local) or torch.equal(before[name], start[name]))]:
            raise DefenseFaultError(
                planned, "begin_round", f"it changes {hidden[0]}, which effects.local does not name"
            )
    return start


@torch.no_grad()
def _end(run: LocalRun, sent: Weights) -> None:
    """Let each defense look at the client's last weights."""
    ends = [planned for planned in run.defenses if type(planned.defense).end_round is not Defense.end_round]
    scenario = run.plan.scenario
    if ends and scenario.training.shares == "gradient":
        for name, parameter in trained(run.model).items():
            parameter.sub_(sent[name], alpha=scenario.learning_rate(run.round))
    for planned in ends:
        planned.defense.end_round(run.model, run.context(planned))


def protected(run: LocalRun, planned: PlannedDefense, update: Update) -> Update:
    """Return what one defense of a client makes of an update.

    Raises:
        DefenseFaultError: it is no update that could be sent.
    """
    made = planned.defense.protect_update(update, run.context(planned), run.generator("protect_update", planned))
    fault = _fault(made, update, most_examples(run.plan))
    if fault is not None:
        raise DefenseFaultError(planned, "protect_update", fault)
    return made


def _contexts(plan: Plan, client: int, round: int, past: Past) -> dict[int, ClientContext]:
    """Return the context of each defense of a client, with what it kept."""
    carried = plan.defenses_of(client)
    if not carried:
        return {}
    shared = plan.context_of(client, round, past.participations + 1)
    return {planned.index: replace(shared, state=past.state.of(planned.slug), logged={}) for planned in carried}


def _kept(run: LocalRun) -> ClientState:
    """Return what the client's defenses keep for its next round."""
    for planned in run.defenses:
        try:
            client_state.gathered([(planned.slug, run.context(planned).state)])
        except ValueError as error:
            raise DefenseFaultError(planned, "what it keeps", str(error)) from None
    return client_state.gathered((planned.slug, run.context(planned).state) for planned in run.defenses)


def _logged(run: LocalRun) -> dict[str, float]:
    """Return what the client's defenses logged, by the defense's name, and its position where the client has it twice."""
    names = [planned.info.name for planned in run.defenses]
    return {
        f"{planned.info.name if names.count(planned.info.name) == 1 else planned.slug}.{name}": found.mean
        for planned in run.defenses
        for name, found in run.context(planned).logged.items()
    }


def most_examples(plan: Plan) -> int:
    """Return the largest number of examples that any client can truly report: every image, at every use in a round."""
    training = plan.scenario.training
    return len(plan.data.pools.train) * (training.local_epochs or training.local_steps or 1)


def _fault(protected: Any, given: Update, most: int) -> str | None:
    """Return why what a defense made of an update cannot be sent, or None."""
    if not isinstance(protected, Update):
        return f"expected an Update, got {type(protected).__name__}"
    for name in ("round", "client", "kind"):
        stated, own = getattr(protected, name), getattr(given, name)
        if stated != own:
            return f"{name} is {shown(stated)}, not {shown(own)}"
    return (
        tensors_fault(protected.tensors, given.tensors)
        or tensors_fault(protected.buffers, given.buffers)
        or examples_fault(protected.num_examples, most)
    )


def _check_finite(update: Update, loss: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteUpdateError("training loss")
    if not update.is_finite():
        raise NonFiniteUpdateError("update")


def _train(run: LocalRun, pull: Callable[[nn.Module], None]) -> float:
    scenario = run.plan.scenario
    optimizer = _optimizer(scenario.training, scenario.learning_rate(run.round), run.model)
    total, count = 0.0, 0
    for index, inputs in enumerate(run.steps):
        optimizer.zero_grad(set_to_none=True)
        loss = gradient_step(run, index)
        pull(run.model)
        if scenario.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained(run.model).values(), scenario.training.clip_norm)
        optimizer.step()
        total, count = total + loss * len(inputs), count + len(inputs)
    return total / count if count else 0.0


def _proximal_pull(weights: Weights, mu: float) -> Callable[[nn.Module], None]:
    """Return what adds the gradient of FedProx's term, which is zero where training starts."""

    def pull(model: nn.Module) -> None:
        if mu:
            for name, parameter in trained(model).items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - weights[name], alpha=mu)

    return pull


def gradient_step(run: LocalRun, index: int) -> float:
    """Run the batch of one step through the defenses, first listed outermost; returns the mean loss.

    An empty batch, which Poisson sampling may draw, has no gradient and is left out. Where a defense computes the gradient
    itself the step is taken nevertheless: one that adds noise must not tell by its absence that nothing was drawn.
    """
    if not run.steps[index] and not any(planned.defense.replaces_gradient for planned in run.defenses):
        return 0.0
    plan, rounds = run.plan, run.plan.scenario.federation.rounds
    progress = (run.round - 1 + index / len(run.steps)) / rounds
    batch = plan.data.read(run.steps[index], plan.scenario.training)
    images = plan.normalization.normalize(batch.images)
    return defended_step(run, index, LocalStep(run.model, images, batch.labels, progress))


def defended_step(run: LocalRun, index: int, step: LocalStep) -> float:
    """Run a batch through the defenses as that of one step of the round, first listed outermost; returns the mean loss.

    Raises:
        DefenseFaultError: a hook returned what cannot be trained on.
    """
    for planned in run.defenses:
        generator = run.generator("protect_batch", planned, index)
        images, labels = planned.defense.protect_batch(step.images, step.labels, run.context(planned), generator)
        fault = _batch_fault(images, labels, step.images)
        if fault is not None:
            raise DefenseFaultError(planned, "protect_batch", fault)
        step = replace(step, images=images, labels=labels)
    innermost = in_parts(run.innermost, run.plan.scenario.training.accumulate)
    proceed = _watched(run, len(run.defenses), innermost)
    for depth, planned in reversed(list(enumerate(run.defenses))):
        bound = _bound(planned, run.context(planned), run.generator("train_step", planned, index), proceed)
        proceed = _watched(run, depth, bound)
    return float(proceed(step))


def in_parts(take: Step, parts: int) -> Step:
    """Return a step that takes a batch in micro-batches, and accumulates the gradient of the loss over the whole batch.

    Their images are as many as possible alike. Each micro-batch weighs as its images do, so that the gradient is that of one
    batch, but for rounding, where no image of a batch has a say in another's loss.

    Args:
        take: what is taken with each micro-batch; it adds the gradient of the mean loss.
        parts: how many there are at most; a batch of fewer images has one of each.
    """
    if parts == 1:
        return take

    def taken(step: LocalStep) -> Tensor:
        loss, count = step.images.new_zeros(()), len(step.labels)
        for images, labels in zip(step.images.tensor_split(parts), step.labels.tensor_split(parts), strict=True):
            if len(labels):
                share = len(labels) / count
                # What is there already is made larger for as long as it takes: a copy would cost the memory of the weights.
                _scale_gradients(step.model, 1 / share)
                loss = loss + share * take(replace(step, images=images, labels=labels))
                _scale_gradients(step.model, share)
        return loss

    return taken


def _scale_gradients(model: nn.Module, factor: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _watched(run: LocalRun, depth: int, take: Step) -> Step:
    def watched(step: LocalStep) -> Tensor:
        if run.watch is not None:
            run.watch(depth, step)
        return take(step)

    return watched


def _bound(
    planned: PlannedDefense,
    context: ClientContext,
    generator: torch.Generator,
    proceed: Step,
) -> Step:
    def bound(step: LocalStep) -> Tensor:
        loss: Any = planned.defense.train_step(step, context, generator, proceed)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown_loss = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else shown(loss)
            raise DefenseFaultError(planned, "train_step", f"expected the mean loss as a tensor, got {shown_loss}")
        return loss

    return bound


def _batch_fault(images: Any, labels: Any, given: Tensor) -> str | None:
    """Return why what a defense made of a batch cannot be trained on, or None."""
    for name, tensor in (("images", images), ("labels", labels)):
        if not isinstance(tensor, Tensor):
            return f"{name} are {type(tensor).__name__}, not a tensor"
    if images.ndim != given.ndim or images.shape[1:] != given.shape[1:] or len(images) < min(1, len(given)):
        return f"images have shape {tuple(images.shape)}, expected at least one of {tuple(given.shape[1:])}"
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        return f"labels have shape {tuple(labels.shape)}, expected one of each of {len(images)} images"
    if not bool(torch.isfinite(images).all()):
        return "images are not finite"
    return None


def plain_step(step: LocalStep) -> Tensor:
    """Forward, mean cross-entropy and what the model adds to it, backward: the innermost step of every client."""
    loss = training_loss(step.model, step.model(step.images), step.labels)
    torch.autograd.backward(loss)
    return loss.detach()


def _optimizer(training: TrainingPart, learning_rate: float, model: nn.Module) -> torch.optim.Optimizer:
    exempt = decay_exempt(model)
    groups = [
        {"params": [p for n, p in trained(model).items() if n not in exempt], "weight_decay": training.weight_decay},
        {"params": [p for n, p in trained(model).items() if n in exempt], "weight_decay": 0.0},
    ]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=training.momentum)


def proximal_mu(scenario: Scenario) -> float:
    """Return FedProx's coefficient, which the server sends to its clients; 0 for any other strategy."""
    federation = scenario.federation
    return float(federation.strategy_params.get("proximal_mu", 0.0)) if federation.strategy == "FedProx" else 0.0


def privacy_budget(carried: Iterable[tuple[PlannedDefense, ClientContext]]) -> PrivacyBudget | None:
    """Return the strongest guarantee that a client's defenses account for, or None where none is finite.

    Each guarantee holds on its own whatever the other defenses do to the update, so the smallest epsilon of those with a
    meaningful delta is the claim, or of all where there is none; its own delta and neighboring relation are stated with it.
    """
    budgets = [planned.defense.budget(context) for planned, context in carried]
    finite = [budget for budget in budgets if budget is not None and math.isfinite(budget.epsilon)]
    return min(finite, key=lambda budget: (budget.delta > MEANINGFUL_DELTA, budget.epsilon), default=None)
