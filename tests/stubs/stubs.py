"""Attacks and defenses that exist for tests alone, named in scenarios as `stubs:Class`."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from fedsim_attacks.patch_embedding import PatchEmbedding
from torch import Tensor

from fedsim import progress
from fedsim.attack import Attack
from fedsim.defense import ClientContext, Defense, LocalStep, PrivacyBudget
from fedsim.errors import AttackRefusedError, EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.exchange import Finding, Images, Labels, Observation, Scope, Trajectory, Update
from fedsim.source import Pool


@dataclass(frozen=True, kw_only=True)
class Guess(Attack):
    """Random images and labels, a function of the generator and of the update."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})

    pictures: int = 1

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        images = torch.rand((self.pictures, *observation.image_shape), generator=generator)
        labels = torch.randint(observation.num_classes, (self.pictures,), generator=generator)
        trace = {"norm": observation.update.norm(), "granted": observation.batch_size}
        return Finding(images=images, labels=labels, trace=trace, cautions=("a guess",))


@dataclass(frozen=True, kw_only=True)
class SeesRun(Attack):
    """Returns the labels that it is granted of all updates of the run, and tells which these are."""

    citation: ClassVar[str] = "none"
    needs = frozenset({"labels"})
    recovers = frozenset({"labels"})
    scope: ClassVar[Scope] = "run"

    raises: bool = False

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        if self.raises:
            raise RuntimeError("of several updates")
        seen = [[update.round, update.client] for update in observation.updates]
        return Finding(labels=observation.labels, trace={"seen": seen, "client": observation.update.client})


@dataclass(frozen=True, kw_only=True)
class SeesRound(SeesRun):
    """The same of a round."""

    scope: ClassVar[Scope] = "round"


@dataclass(frozen=True, kw_only=True)
class SeesClient(SeesRun):
    """The same of a client."""

    scope: ClassVar[Scope] = "client"


@dataclass(frozen=True, kw_only=True)
class AllAuxiliary(Attack):
    """Never looks at the update: returns all auxiliary images, some of which are near any image."""

    citation: ClassVar[str] = "none"
    needs = frozenset({"auxiliary_data"})
    recovers = frozenset({"images"})
    is_cheap = True

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        assert observation.auxiliary_data is not None
        return Finding(images=observation.auxiliary_data.images)


@dataclass(frozen=True, kw_only=True)
class RaisesOn(Attack):
    """Raises on one client's updates, refuses another's, guesses otherwise."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})

    raises: int = 1
    refuses: int = 2

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        if observation.update.client == self.raises:
            raise RuntimeError("out of luck")
        if observation.update.client == self.refuses:
            raise AttackRefusedError("one image at a time")
        return Guess().run(observation, generator)


@dataclass(frozen=True, kw_only=True)
class EndsOn(Attack):
    """Ends Python on one client's updates in one way, kills its process on another's, guesses otherwise."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})

    exits: int = -1
    dies: int = -1

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        progress.advance(1, 2)
        if observation.update.client == self.exits:
            sys.exit(3)
        if observation.update.client == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return Guess().run(observation, generator)


@dataclass(frozen=True, kw_only=True)
class Fades(Attack):
    """One set of random images fades into another; tells every step and trajectories it."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images"})

    pictures: int = 2
    steps: int = 4

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        start, end = torch.rand((2, self.pictures, *observation.image_shape), generator=generator)
        frames, losses = [], []
        for step in range(self.steps + 1):
            frames.append(start.lerp(end, step / self.steps))
            losses.append(observation.update.norm() / (1 + step))
            progress.advance(step, self.steps, losses[-1])
        trajectory = Trajectory(tuple(range(self.steps + 1)), torch.stack(frames), tuple(losses))
        return Finding(images=frames[-1], trajectory=trajectory)


@dataclass(frozen=True, kw_only=True)
class TellsAndWaits(Attack):
    """Tells one step, and waits for an answer in a named pipe."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})

    answer: str

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        progress.advance(1, 4, 0.5)
        Path(self.answer).read_text()
        return Guess().run(observation, generator)


@dataclass(frozen=True, kw_only=True)
class Poisons(Attack):
    """Leaves `Guess` and torch changed for the rest of its process, and finds something itself."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images"})

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        def grey(attack: Guess, observation: Observation, generator: torch.Generator) -> Finding:
            return Finding(images=torch.full((1, *observation.image_shape), 0.5))

        Guess.run = grey  # type: ignore[method-assign]
        torch.rand = torch.zeros  # type: ignore[assignment]
        torch.set_grad_enabled(False)
        return Finding(images=torch.full((1, *observation.image_shape), 0.5))


@dataclass(frozen=True, kw_only=True)
class TellsProcess(Attack):
    """Tells which process it runs in."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images"})

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        return Finding(images=torch.zeros((1, *observation.image_shape)), trace={"process": os.getpid()})


@dataclass(frozen=True, kw_only=True)
class KeepsMemory(Attack):
    """Leaves its process with 1 GiB when it returns."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images"})

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        # Not as a tensor, whose pages may be touched late.
        sys.kept = b"x" * (1024 * 2**20)  # type: ignore[attr-defined]
        return Finding(images=torch.zeros((1, *observation.image_shape)))


@dataclass(frozen=True, kw_only=True)
class Claims(Attack):
    """Returns whatever the test has put into `finding`."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"images", "labels"})
    finding: ClassVar[Any] = Finding()

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        return self.finding


@dataclass(frozen=True, kw_only=True)
class ReadsHead(Attack):
    """Soft label and head input of a single image, by division: rows of the head's gradient are (p - y) h."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"labels", "features"})

    copies: int = 1

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        slope, bias = (observation.update.tensors[f"head.{name}"] for name in ("weight", "bias"))
        row = bias.abs().argmax()
        features = (slope[row] / bias[row])[None]
        head = observation.model().head
        labels = (head(features).softmax(1) - bias).detach()
        return Finding(labels=labels.repeat(self.copies, 1), features=features.repeat(self.copies, 1))


def _hoard() -> None:
    held = b"x" * (1024 * 2**20)
    threading.Event().wait()
    del held


@dataclass(frozen=True, kw_only=True)
class Asks(Evaluator):
    """States the norm of the classifier and a draw, or misbehaves."""

    citation: ClassVar[str] = "none"

    how: Literal[
        "well",
        "raises",
        "leaves",
        "refuses",
        "refuses at once",
        "breaks at once",
        "exits",
        "waits",
        "hoards",
        "infinite",
        "nothing",
        "untyped",
        "doubts",
        "unsure",
        "shows",
        "hides",
    ] = "well"

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        if self.how == "refuses at once":
            raise EvaluationRefusedError(f"not of a model of {len(class_names)} classes")
        if self.how == "breaks at once":
            raise RuntimeError("no answer")

    def run(  # noqa: C901  (one way to misbehave after another)
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return two scores."""
        if self.how == "raises":
            raise RuntimeError("no answer")
        if self.how == "leaves":
            sys.exit("done")
        if self.how == "refuses":
            raise EvaluationRefusedError("not of this model")
        if self.how == "exits":
            os._exit(0)
        if self.how == "waits":
            threading.Event().wait()
        if self.how == "hoards":
            _hoard()
        if self.how == "untyped":
            return {"norm": 1.0}  # type: ignore[return-value]
        if self.how == "doubts":
            return Evaluation(
                {"accuracy": 0.5, "accuracy, 95% from": 0.4, "accuracy, 95% to": 0.6}, ("it may be",), True
            )
        if self.how == "unsure":
            unsure = Evaluation({"norm": 1.0})
            object.__setattr__(unsure, "is_inconclusive", "maybe")
            return unsure
        if self.how in ("shows", "hides"):
            images = torch.rand(3, 3, 8, 8, generator=generator)
            return Evaluation({"norm": 1.0}, images={"some": images, "others": images / (self.how == "shows")})
        norm = math.inf if self.how == "infinite" else float(model.model.head.weight.detach().norm())
        draw = float(torch.rand((), generator=generator))
        return Evaluation({} if self.how == "nothing" else {"norm": norm, "draw": draw}, ("a stub",))


@dataclass(frozen=True, kw_only=True)
class FailsIn(Defense):
    """Makes its clients fail in one round, or in every round for 0."""

    citation: ClassVar[str] = "none"

    round: int = 0
    message: str = "out of battery"

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        if self.round in (0, update.round):
            raise RuntimeError(self.message)
        return update


@dataclass(frozen=True, kw_only=True)
class EndsClient(Defense):
    """Makes its clients end Python, or never end."""

    citation: ClassVar[str] = "none"

    how: Literal["exits", "waits"] = "exits"

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        if self.how == "exits":
            sys.exit(0)
        threading.Event().wait()
        return update


@dataclass(frozen=True, kw_only=True)
class Breaks(Defense):
    """Returns what the test has put into one of its hooks, or raises it where it is an exception."""

    citation: ClassVar[str] = "none"
    hooks: ClassVar[dict[str, Callable[..., Any]]] = {}

    def _call(self, hook: str, otherwise: Any, *given: Any) -> Any:
        return self.hooks[hook](*given) if hook in self.hooks else otherwise

    def prepare_model(self, model: torch.nn.Module) -> None:
        self._call("prepare_model", None, model)

    def cautions(self, model: torch.nn.Module) -> tuple[str, ...]:
        return self._call("cautions", ())

    def protect_batch(self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator) -> Any:
        return self._call("protect_batch", (images, labels), images, labels)

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Any:
        return self._call("train_step", None) if "train_step" in self.hooks else proceed(step)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Any:
        return self._call("protect_update", update, update)


@dataclass(frozen=True, kw_only=True)
class Scales(Defense):
    """Multiplies the update by a factor."""

    citation: ClassVar[str] = "none"

    factor: float = 0.5

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        return replace(update, tensors={name: self.factor * t for name, t in update.tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Halves(Defense):
    """Sends half of the update and of what it kept back in earlier rounds, and keeps the other half."""

    citation: ClassVar[str] = "none"

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return half of all that is to be sent."""
        context.state["rounds"] = [*context.state.get("rounds", []), context.round]
        sent = {}
        for name, tensor in update.tensors.items():
            sent[name] = (tensor + context.state.get(name, torch.zeros(()))) / 2
            context.state[name] = sent[name]
        return replace(update, tensors=sent)


@dataclass(frozen=True, kw_only=True)
class Recipe(Defense):
    """Computes the gradient itself."""

    citation: ClassVar[str] = "none"
    replaces_gradient: ClassVar[bool] = True

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Take the gradient of the mean loss over the labels in reverse order."""
        loss = torch.nn.functional.cross_entropy(step.model(step.images), step.labels.flip(0))
        torch.autograd.backward(loss)
        return loss.detach()


@dataclass(frozen=True, kw_only=True)
class Keeps(Defense):
    """Keeps what the test wants it to keep."""

    citation: ClassVar[str] = "none"
    kept: ClassVar[dict[Any, Any]] = {}

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update as it is."""
        context.state.update(self.kept)
        return update


@dataclass(frozen=True, kw_only=True)
class Outdated(Defense):
    """Takes the arguments of an earlier version of the contract."""

    citation: ClassVar[str] = "none"

    def protect_update(self, update: Update, generator: torch.Generator) -> Update:  # type: ignore[override]
        """Return the update as it is."""
        return update


@dataclass(frozen=True, kw_only=True)
class Turned(Defense):
    """Sends each tensor with its entries in reverse order, where no attack looks for them."""

    citation: ClassVar[str] = "none"

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        return replace(update, tensors={n: t.flatten().flip(0).view_as(t) for n, t in update.tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Shaken(Defense):
    """Adds a little noise, and declares nothing about it.

    Args:
        hook: where; `backward` is that of every parameter, set in the step.
        source: `given`, the hook's generator; `own` and `numpy`, generators with a seed of its own; `global`, torch's.
        relative: whether the noise has the scale of what it is added to.
        kind: the only kind of update that it is added to; all for none. Hooks before the update do not know it.
        first: round from which on.
        participations: how often the client has to have taken part, as the defense itself has counted.
    """

    citation: ClassVar[str] = "none"

    hook: Literal["batch", "step", "backward", "update"] = "update"
    source: Literal["given", "own", "numpy", "global"] = "given"
    relative: bool = False
    kind: str | None = None
    first: int = 1
    participations: int = 0

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        scale = 0.01 * (float(like.norm()) if self.relative else 1.0)
        if self.source == "numpy":
            return scale * torch.from_numpy(np.random.default_rng(5).standard_normal(like.shape)).to(like.dtype)
        own = torch.Generator().manual_seed(5)
        source = {"given": generator, "own": own, "global": None}[self.source]
        return scale * torch.randn(like.shape, generator=source)

    def _is_on(self, hook: str, context: ClientContext) -> bool:
        return (
            hook == self.hook and context.round >= self.first and context.state.get("count", 0) >= self.participations
        )

    def protect_batch(
        self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        """Return the images, with noise where that is its place."""
        return images + self._noise(images, generator) if self._is_on("batch", context) else images, labels

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Add noise to the gradient where that is its place."""
        with contextlib.ExitStack() as hooks:
            for parameter in step.model.parameters():
                if self._is_on("backward", context):
                    handle = parameter.register_hook(lambda gradient: gradient + self._noise(gradient, generator))
                    hooks.callback(handle.remove)
            loss = proceed(step)
        for parameter in step.model.parameters():
            if parameter.grad is not None and self._is_on("step", context):
                parameter.grad += self._noise(parameter.grad, generator)
        return loss

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update, with noise where that is its place."""
        tensors = update.tensors
        if self._is_on("update", context) and self.kind in (None, update.kind):
            tensors = {name: tensor + self._noise(tensor, generator) for name, tensor in tensors.items()}
        context.state["count"] = context.state.get("count", 0) + 1
        return replace(update, tensors=tensors)


@dataclass(frozen=True, kw_only=True)
class Rearranges(Defense):
    """Changes what the client trains on in a way that can be undone.

    Args:
        how: `mirrors` the images, `shuffles` their patches of 8 pixels, `turns` each patch by half, `renames` the classes,
            `drops` all images but the first, `repeats` every step.
        hook: where; `model` is on its way into the model.
        source: of the order of the patches; `fresh` is drawn from the system, so that nobody can draw it again.
    """

    citation: ClassVar[str] = "none"

    how: Literal["mirrors", "shuffles", "turns", "renames", "drops", "repeats"] = "mirrors"
    hook: Literal["batch", "step", "model"] = "batch"
    source: Literal["given", "fresh"] = "given"

    def _changed(self, images: Images, labels: Labels, generator: torch.Generator) -> tuple[Images, Labels]:
        if self.how == "mirrors":
            return images.flip(-1), labels
        if self.how == "renames":
            return images, (labels + 1) % 10
        if self.how == "drops":
            return images[:1], labels[:1]
        if self.how == "repeats":
            return images, labels
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8)
        rows, columns = patches.shape[2:4]
        patches = patches.flatten(2, 3)
        if self.how == "turns":
            patches = patches.flip(-1, -2)
        else:
            seed = (
                int.from_bytes(os.urandom(4))
                if self.source == "fresh"
                else int(torch.randint(2**31, (), generator=generator))
            )
            patches = patches[:, :, torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))]
        return patches.unflatten(2, (rows, columns)).permute(0, 1, 2, 4, 3, 5).reshape(images.shape), labels

    def protect_batch(
        self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        """Return the batch, changed where that is its place."""
        return self._changed(images, labels, generator) if self.hook == "batch" else (images, labels)

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Pass the step on, changed where that is its place."""
        if self.hook == "step":
            images, labels = self._changed(step.images, step.labels, generator)
            step = replace(step, images=images, labels=labels)
        if self.how == "repeats":
            proceed(step)
        if self.hook == "model":
            changes = lambda _, inputs: (self._changed(inputs[0], step.labels, generator)[0],)  # noqa: E731
            handle = step.model.register_forward_pre_hook(changes)
            loss = proceed(step)
            handle.remove()
            return loss
        return proceed(step)


@dataclass(frozen=True, kw_only=True)
class Budgets(Defense):
    """States a budget and does nothing."""

    citation: ClassVar[str] = "none"

    epsilon: float = 1.0
    delta: float = 1e-5

    def budget(self, context: ClientContext) -> PrivacyBudget:
        return PrivacyBudget(self.epsilon * context.participation, self.delta, "replace")


@dataclass(frozen=True, kw_only=True)
class Overclaims(Budgets):
    """States a budget, and adds noise far too small for it."""

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in update.tensors.items()}
        scale = 1e-3 * update.norm()
        return replace(update, tensors={name: tensor + scale * noise[name] for name, tensor in update.tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Notes(Defense):
    """Notes every hook's call in `calls`, and that of the step on its way in and out."""

    citation: ClassVar[str] = "none"
    calls: ClassVar[list[tuple[Any, ...]]] = []

    tag: str = "a"

    def protect_batch(
        self, images: Images, labels: Labels, context: ClientContext, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        self.calls.append((self.tag, "batch", len(images)))
        return images, labels

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        self.calls.append((self.tag, "in", step.progress))
        loss = proceed(step)
        self.calls.append((self.tag, "out", step.progress))
        return loss

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        self.calls.append((self.tag, "update", update.round))
        return update


@dataclass(frozen=True, kw_only=True)
class Told(Attack):
    """Tells what it was told of the defenses, and finds the first label; `fails_plain` makes its plain variant fail."""

    citation: ClassVar[str] = "none"
    recovers = frozenset({"labels"})
    scope: ClassVar[Scope] = "update"

    aware: bool = True
    fails_plain: bool = False

    def plain(self) -> Attack | None:
        return replace(self, aware=False) if self.aware else None

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        if self.fails_plain and not self.aware:
            raise RuntimeError("plain")
        told = None if observation.defenses is None else [known.name for known in observation.defenses]
        labels = torch.randint(observation.num_classes, (1,), generator=generator)
        return Finding(labels=labels, trace={"told": told, "aware": self.aware})


@dataclass(frozen=True, kw_only=True)
class RefusesTold(PatchEmbedding):
    """Finds images, and refuses once it is told of a defense."""

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        if observation.defenses:
            raise AttackRefusedError("told of a defense")
        return super().run(observation, generator)


@dataclass(frozen=True, kw_only=True)
class BadPlain(Told):
    """Has no plain variant that could be made."""

    fault: Literal["raises", "text"] = "raises"

    def plain(self) -> Any:
        if self.fault == "raises":
            raise RuntimeError("no")
        return "x"


@dataclass(frozen=True, kw_only=True)
class ToldOfRound(Told):
    """The same of a round."""

    scope: ClassVar[Scope] = "round"


@dataclass(frozen=True, kw_only=True)
class NeedsDefenses(Told):
    """The same, which cannot do without the grant."""

    needs = frozenset({"defenses"})
