"""Whether a defense randomizes what a client sends, found by trying it, so that nobody needs to declare it.

An attack that finds nothing in a randomized update has shown little: it does not know what was drawn. So the report asks for a
guarantee there. A defense counts as such where, on the first images of a client's own round, with all its hooks,

- two draws lead to two updates,
- a hook draws from any generator of torch, also from one that it seeds itself, or
- the opposite gradient does not lead to the opposite update, as where it adds numbers from a seed of its own.

What fails on the trial counts as well: what it does is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.data.mixup import unmixed
from fedsim.defense import LocalStep, acts_in_training
from fedsim.exchange import Update
from fedsim.federation import training
from fedsim.federation.limits import contained
from fedsim.federation.training import LocalRun, Past
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedDefense
from fedsim.seeds import derive, seeded, torch_generator, torch_threads

_IMAGES = 8  # of a local step

Gradients = Mapping[str, Tensor]


def adds_noise(
    plan: Plan, planned: PlannedDefense, client: int, round: int, past: Past | None = None, seconds: float | None = None
) -> bool:
    """Return whether a defense randomizes the update of one client in one round.

    Args:
        plan: the run's plan.
        planned: one of its defenses.
        client: who carries it.
        round: server round, from 1; a defense may begin late.
        past: what the client brings from its earlier rounds; None where only the number of the round is known.
        seconds: that the trials may take; None for as long as a client may.
    """
    # Of an observed app nobody knows the clients' data; the scenario's are dealt to a single one.
    trial = _Trial(plan, planned, client if plan.captured is None else 0, round, past or Past(round - 1))
    limit = plan.scenario.federation.client_timeout if seconds is None else seconds
    try:
        with torch_threads(1):
            return contained(trial.is_random, limit)
    except Exception:  # noqa: BLE001  (a third party's code, whose failure on a real update is recorded where it happens)
        return True


class _Trial:
    """The local work of one client with one defense, on a few images, at the weights that the plan starts from."""

    def __init__(self, plan: Plan, planned: PlannedDefense, client: int, round: int, past: Past) -> None:
        self._plan = replace(plan, defenses=(replace(planned, clients=frozenset({client})),), captured=None)
        self._planned, self._client, self._round, self._past = planned, client, round, past
        self._weights = plan.initial_weights()

    def is_random(self) -> bool:
        if self._planned.defense.budget(self._run(0).context(self._planned)) is not None:
            return True
        with _Draws() as own:
            first = self._update(0)
        with _Draws() as plain:  # of dropout in the model
            training.carry_out(self._plain_run())
        has_drawn = own.count != plain.count
        return has_drawn or _differ(first, self._update(1)) or not (self._is_step_odd() and self._is_update_odd())

    def _run(self, seed: int) -> LocalRun:
        run = training.prepared(self._plan, self._client, self._round, self._weights, self._past)
        # Of an empty batch nothing is to be seen; where Poisson sampling drew no image at all, the client's first one serves.
        full = [step for step in run.steps if step] or [unmixed(self._plan.data.partition[self._client][:1])]
        steps = [full[0], full[-1]] if len(full) > 1 else full
        brief = [step[:_IMAGES] for step in steps]
        return replace(run, steps=brief, seed=derive(seed, "trial"), innermost=_plain)

    def _plain_run(self) -> LocalRun:
        return replace(self._run(0), plan=replace(self._plan, defenses=()))

    def _update(self, seed: int) -> Gradients:
        return training.carry_out(self._run(seed)).update.tensors

    def _is_step_odd(self) -> bool:
        """Return whether the gradient of each step turns with the one behind the hooks; also where that is not asked for."""
        if not acts_in_training(self._planned.defense):
            return True
        for index in range(len(self._run(0).steps)):
            first, second = self._gradients(index, 1.0), self._gradients(index, -1.0)
            if first is not None and second is not None and not _opposite(first, second):
                return False
        return True

    def _gradients(self, index: int, sign: float) -> Gradients | None:
        """Return the gradient of a step whose innermost one has this sign; None where the hooks never get there."""
        asked = []

        def innermost(step: LocalStep) -> Tensor:
            asked.append(step)
            before = {parameter: parameter.grad for parameter in step.model.parameters()}
            step.model.zero_grad(set_to_none=True)
            loss = _plain(step)
            for parameter, old in before.items():
                if parameter.grad is None:
                    parameter.grad = old
                else:
                    parameter.grad = sign * parameter.grad if old is None else old + sign * parameter.grad
            return loss

        run = replace(self._run(0), innermost=innermost)
        with seeded(run.seed, "training", run.round, run.client):
            training.gradient_step(run, index)
        if not asked:
            return None
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in run.model.named_parameters()}

    def _is_update_odd(self) -> bool:
        """Return whether what is sent turns with the update."""
        update = training.carry_out(self._plain_run()).update
        turned = replace(update, tensors={name: -tensor for name, tensor in update.tensors.items()})
        return _opposite(self._sent(update), self._sent(turned))

    def _sent(self, update: Update) -> Gradients:
        context = replace(self._run(0).context(self._planned), state={})
        return self._planned.defense.protect_update(update, context, torch_generator(0, "trial")).tensors


def _plain(step: LocalStep) -> Tensor:
    """Take the plain step; what dropout draws there is the same whatever the hooks draw."""
    with seeded(0, "trial"):
        return training.plain_step(step)


def _differ(first: Gradients, second: Gradients) -> bool:
    return any(not torch.equal(tensor, second[name]) for name, tensor in first.items())


def _opposite(first: Gradients, second: Gradients) -> bool:
    return all(torch.equal(tensor, -second[name]) for name, tensor in first.items())


def _is_certain(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a draw can have one result alone, such as that of dropout, or attention, with probability 0."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("p", "dropout_p"):
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return isinstance(given, float | int) and given in (0, 1)
    return False


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is drawn from generators of torch, whichever they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_certain(func, args, kwargs or {}):
            self.count += 1
        return func(*args, **(kwargs or {}))
