"""A client-side Flower mod that attacks its own update before it is sent: it warns, adds a defense, or withholds.

    from fedsim.guarding import leak_guard

    guard = leak_guard(model="my_app.task:Net", data="my_app.task:trained_on", training={"batch_size": 1, ...})

    @app.train(mods=[guard])
    def train(message, context): ...

What it finds is logged on the client (logger `fedsim.guarding`, and a file where one is named) and nowhere else: no record of
the reply holds it. The mod is the last that touches the update, so it has to be the first of the list.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message
from torch import Tensor

from fedsim import plugins, targets, wire
from fedsim.defense import ClientContext, Defense
from fedsim.errors import FedsimError, ScenarioError, told
from fedsim.exchange import Truth, Update, UpdateKind
from fedsim.federation.capture import round_of
from fedsim.guarding.measuring import Measured, measure
from fedsim.models.correspondence import Correspondence, correspond, shapes_of
from fedsim.planning import preparation
from fedsim.planning.context import training_knowledge
from fedsim.planning.plan import Plan
from fedsim.planning.supplied_truth import as_truth
from fedsim.recording.observed import Captured
from fedsim.scenario import Scenario, parse
from fedsim.validation import shown

POLICIES = ("warn", "add", "withhold")
Data = Callable[[Message, Context], Any]

_log = logging.getLogger("fedsim.guarding")
_REFUSED = 6  # flwr's ErrorCode.MOD_FAILED_PRECONDITION
_HOOKS = ("prepare_model", "begin_round", "protect_batch", "train_step", "end_round")
# All that the server learns of a withheld update.
WITHHELD = "withheld by the client"


@dataclass(frozen=True)
class _Sent:
    """A reply as an update.

    Args:
        plan: what the server knows.
        matched: which array of the reply is which parameter.
        weights: of the request, by the app's names.
        update: by the model's names.
        truth: what the client trained on.
    """

    plan: Plan
    matched: Correspondence
    weights: Mapping[str, Tensor]
    update: Update
    truth: Truth


@dataclass(frozen=True)
class LeakGuard:
    """The mod; see `leak_guard`."""

    scenario: Scenario
    data: str | Data
    policy: str
    defense: Defense | None
    seconds: float
    log: Path | None

    def __call__(self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        """Answer a message as the app does, and deal with the update that a train reply holds."""
        reply = call_next(message, context)
        if message.metadata.message_type.partition(".")[0] != "train" or reply.has_error():
            return reply
        round = round_of(message)
        try:
            return self._dealt_with(message, context, reply, round)
        except Exception as error:  # noqa: BLE001  (boundary: Flower would tell the server what an exception says)
            return self._unmeasured(message, reply, round, told(error))

    def _dealt_with(self, message: Message, context: Context, reply: Message, round: int | None) -> Message:
        started = time.monotonic()
        sent = self._read(message, context, reply, round or 1)
        measured = measure(sent.plan, sent.update, sent.weights, sent.truth, self.seconds)
        if self.policy == "withhold" and measured.is_doubtful:
            self._write(round, measured, "withheld")
            return _withheld(message)
        if self.policy != "add":
            self._write(round, measured, "sent as it is")
            return reply
        protected = self._protected(sent, round or 1)
        left = max(0.0, self.seconds - (time.monotonic() - started))
        after = measure(sent.plan, protected, sent.weights, sent.truth, left)
        others = _replace_arrays(reply, sent, protected)
        action = "sent with the defense added"
        self._write(
            round, measured, f"{action}, but for {others} arrays that it does not train" if others else action, after
        )
        return reply

    def _read(self, message: Message, context: Context, reply: Message, round: int) -> _Sent:
        (given,), (got,) = message.content.array_records.values(), reply.content.array_records.values()
        weights, arrays = wire.to_tensors(given), wire.to_tensors(got)
        stated: Any = reply.content.get(wire.UPDATE, {})
        kind: UpdateKind = "gradient" if stated.get("kind") == "gradient" else "delta"
        captured = Captured((1,), (0,), 1, (), (kind,), tuple(shapes_of(weights).items()), None, ())
        plan = preparation.of_captured(self.scenario, captured)
        matched = correspond(captured.shapes, plan.model())
        # In the reply's own names, as a server sees it.
        tensors = {theirs: arrays[theirs].float() for theirs in matched.captured.values()}
        if kind == "delta":
            tensors = {name: tensor - weights[name].float() for name, tensor in tensors.items()}
        data: Data = (
            targets.imported(self.data, "data", "'module:function'") if isinstance(self.data, str) else self.data
        )
        truth = as_truth(data(message, context), plan.image_shape, plan.num_classes)
        update = Update(round, 0, kind, dict(zip(matched.captured, tensors.values(), strict=True)), len(truth.images))
        return _Sent(plan, matched, weights, update, truth)

    def _protected(self, sent: _Sent, round: int) -> Update:
        assert self.defense is not None
        # Secret, unlike in a simulation: whoever knew the seed could take noise away again.
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big"))
        with torch.no_grad():
            return self.defense.protect_update(sent.update, _context(sent, round), generator)

    def _unmeasured(self, message: Message, reply: Message, round: int | None, reason: str) -> Message:
        """Deal with an update that nobody could attack: nothing is known of it, which is no reason to send it."""
        if self.policy == "warn":
            self._note(round, {"unmeasured": reason, "action": "sent as it is"}, logging.WARNING)
            return reply
        self._note(round, {"unmeasured": reason, "action": "withheld"}, logging.WARNING)
        return _withheld(message)

    def _write(self, round: int | None, measured: Measured, action: str, after: Measured | None = None) -> None:
        said: dict[str, Any] = {"found": str(measured), "action": action}
        if after is not None:
            said["after"] = str(after)
        level = logging.WARNING if measured.is_doubtful else logging.INFO
        self._note(round, said, level)

    def _note(self, round: int | None, said: Mapping[str, Any], level: int) -> None:
        where = "an update" if round is None else f"round {round}"
        _log.log(level, "leak_guard, %s: %s", where, "; ".join(f"{name}: {text}" for name, text in said.items()))
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"round": round, **said}) + "\n")
        except OSError as error:
            _log.error("leak_guard cannot write %s: %s", self.log, error)


def _context(sent: _Sent, round: int) -> ClientContext:
    plan, count = sent.plan, len(sent.truth.images)
    setting = plan.setting_reported(sent.update.kind, count)
    return ClientContext(
        round=round,
        rounds=round,
        client=0,
        training=training_knowledge(plan.scenario, plan.model(), round),
        batch_size=setting.batch_size,
        num_examples=count,
        steps=setting.steps or 1,
        class_counts=tuple(torch.bincount(sent.truth.labels, minlength=plan.num_classes).tolist()),
    )


def _replace_arrays(reply: Message, sent: _Sent, update: Update) -> int:
    """Put an update into a reply, in the place of its parameters; all other arrays stay, and it returns how many these are."""
    (name,) = reply.content.array_records
    arrays = dict(reply.content.array_records[name])
    for own, theirs in sent.matched.captured.items():
        tensor = update.tensors[own]
        if update.kind == "delta":
            tensor = sent.weights[theirs].float() + tensor
        arrays[theirs] = Array(tensor.to(sent.weights[theirs].dtype).numpy())
    reply.content[name] = ArrayRecord(arrays)
    return len(arrays) - len(sent.matched.captured)


def _withheld(message: Message) -> Message:
    return Message(Error(_REFUSED, WITHHELD), reply_to=message)


def leak_guard(
    *,
    model: str | Mapping[str, Any],
    data: str | Data,
    training: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    policy: str = "warn",
    defense: Mapping[str, Any] | None = None,
    seconds: float = 30.0,
    log: str | Path | None = None,
) -> LeakGuard:
    """Return a mod that attacks each update of its client with the cheap attacks that are made for it.

    - `warn` logs what it finds, and sends the update as it is.
    - `add` adds the defense to every update, so that whether it was added tells nothing, and logs what is found before and
      after.
    - `withhold` answers with an error in the place of an update that shows a leak, or on which an attack was cut short, failed
      or could not be tried.
      Flower's strategies leave such a client out of the round. The server sees that it was left out.

    Args:
        model: what the client trains, as in `fedsim.observe`.
        data: function of a message and its context, or its "module:function": images (count, channels, height, width) that the
            client trained on in the round, pixels in [0, 1] or uint8, and their labels (count).
        training: the client's recipe, which its server knows, as in `fedsim.observe`.
        image_size: side of the model's input; 32 otherwise.
        policy: what to do.
        defense: with `add`: {"name": ..., "params": {...}} of a defense that acts on the finished update alone.
        seconds: for the attacks of one round.
        log: file on the client to which each round adds a line of JSON.

    Raises:
        FedsimError: what is given is refused.
    """
    given: dict[str, Any] = {"model": model if isinstance(model, str) else dict(model), "attacks": []}
    given |= {} if training is None else {"training": dict(training)}
    given |= {} if image_size is None else {"data": {"image_size": image_size}}
    if policy not in POLICIES:
        raise ScenarioError("leak_guard: policy", f"expected one of {', '.join(POLICIES)}, got {shown(policy)}.")
    if (policy == "add") != (defense is not None):
        raise ScenarioError(
            "leak_guard: defense", "policy add needs one, such as {'name': 'clipping'}, and no other takes one."
        )
    if not seconds > 0:
        raise ScenarioError("leak_guard: seconds", f"expected a number above 0, got {shown(seconds)}.")
    added = None if defense is None else _defense(defense)
    return LeakGuard(parse(given, "leak_guard"), data, policy, added, seconds, None if log is None else Path(log))


def _defense(given: Mapping[str, Any]) -> Defense:
    if not set(given) <= {"name", "params"} or not isinstance(given.get("name"), str):
        raise ScenarioError(
            "leak_guard: defense", f"expected {{'name': ..., 'params': {{...}}}}, got {shown(dict(given))}."
        )
    name, where = str(given["name"]), "leak_guard: defense"
    found: Defense = plugins.build("defenses", Defense, name, dict(given.get("params", {})), where)
    if found.effects.carries_over or any(getattr(type(found), hook) is not getattr(Defense, hook) for hook in _HOOKS):
        raise FedsimError(
            f"{where}: {name} acts in training or keeps something from round to round, and a mod sees the update alone. "
            "Name one that acts on the update, such as dp_noise."
        )
    return found
