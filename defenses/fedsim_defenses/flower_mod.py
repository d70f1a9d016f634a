"""Flower mod: a client's update passes Flower's own `LocalDpMod` or `fixedclipping_mod`, code and parameters as deployed.

Paper: McMahan, Ramage, Talwar, Zhang. "Learning Differentially Private Recurrent Language Models". 2017.
https://arxiv.org/abs/1710.06963 (clipping); Dwork, Roth. "The Algorithmic Foundations of Differential Privacy". 2014.
https://doi.org/10.1561/0400000042 (appendix A, the noise). The code is flwr.clientapp.mod,
https://flower.ai/docs/framework/how-to-use-differential-privacy.html

Idea: both clip the difference of new and global weights, all arrays as one vector, to `clipping_norm` C. `LocalDpMod` then
adds noise of one standard deviation sigma = `sensitivity` sqrt(2 ln(1.25 / `delta`)) / `epsilon` to every entry. Two clipped
updates differ by up to D = 2 C (`replace`), one differs from none by up to C (`add_remove`). So T rounds are mu-GDP with
mu = sqrt(T) D / sigma, and `budget` states their exact epsilon (`fedsim.gaussian_dp`), whatever `epsilon` says.

What Flower's code states and does not keep (flwr 1.42): `epsilon` is that of one message; the formula is proven for an epsilon
below 1, and with a delta of 1e-5 gives too little noise above 8.5; nobody compares `sensitivity` with the clipping norm; a
parameter without an axis (a single number) is neither clipped nor noised, so such models are refused here; an update of zeros
ends in a division by zero, which the server sees as a failed client; the noise comes from NumPy's global generator, which is
not made for secrets.

Differs from the paper: as Flower's code does, each client adds noise to its own update before it sends it. Differs from a
deployment: the mod gets the update as the difference from weights of zero, so that it works on gradients too and later
defenses may follow. The same draws and factors result, rounded with the update and not with the weights. NumPy's global
generator is set from the scenario's seed for the call, and put back. An update of zeros gets the noise alone.

Needs: a model whose buffers do not travel (no BatchNorm), of which Flower would clip and noise the statistics. Covers the
tensors of the update, not what else a client reports. Cost: some passes over the update.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, PrivacyBudget
from fedsim.exchange import Update, UpdateEffects
from fedsim.seeds import seeded
from fedsim_defenses._accounting import DRAWN_FROM_THE_SEED, gaussian_epsilon, weaknesses

_LOCAL_DP, _CLIPPING = "LocalDpMod", "fixedclipping_mod"
_ARRAYS = "arrays"
# Mods of Flower that are no defense of one client, and what to write instead.
_ELSEWHERE = {
    "adaptiveclipping_mod": (
        "takes its norm from the strategy and tells it whether it clipped. Set federation.strategy to "
        "DifferentialPrivacyClientSideAdaptiveClipping, with which every client runs it"
    ),
    "secagg_mod": "is secure aggregation, by which the server sees sums alone. Set threat.sees: aggregate",
    "secaggplus_mod": "is secure aggregation, by which the server sees sums alone. Set threat.sees: aggregate",
    "arrays_size_mod": "logs the size of a message and protects nothing. Leave it out",
    "parameters_size_mod": "logs the size of a message and protects nothing. Leave it out",
    "message_size_mod": "logs the size of a message and protects nothing. Leave it out",
}


@dataclass(frozen=True, kw_only=True)
class FlowerMod(Defense):
    """Run one of Flower's own mods on the client's update; of `LocalDpMod` with the epsilon that it really gives.

    Args:
        mod: `LocalDpMod` or `fixedclipping_mod`, which clips alone.
        clipping_norm: largest l2 norm of an update.
        sensitivity: of `LocalDpMod`, as the deployment states it; it scales the noise, and should be twice the clipping norm
            (`replace`), or the clipping norm (`add_remove`).
        epsilon: of `LocalDpMod`, as the deployment states it, for one message; it scales the noise. `budget` says what holds.
        delta: of `LocalDpMod`; scales the noise, and is the delta of the budget.
        neighbors: `replace`, any two updates must be hard to tell apart, the right notion against a server that always
            gets one; `add_remove`, an update against a zero update, whose epsilon is smaller.
    """

    citation: ClassVar[str] = (
        "Flower's mods. https://flower.ai/docs/framework/how-to-use-differential-privacy.html; McMahan et al. Learning "
        "Differentially Private Recurrent Language Models. ICLR 2018. https://arxiv.org/abs/1710.06963"
    )

    mod: str = _CLIPPING
    clipping_norm: float = 1.0
    sensitivity: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    neighbors: Literal["replace", "add_remove"] = "replace"

    def __post_init__(self) -> None:
        if self.mod in _ELSEWHERE:
            raise ValueError(f"mod: {self.mod} {_ELSEWHERE[self.mod]}.")
        if self.mod not in (_LOCAL_DP, _CLIPPING):
            raise ValueError(f"mod: expected {_LOCAL_DP} or {_CLIPPING}, got {self.mod!r}.")
        if not 0 < self.clipping_norm < math.inf:
            raise ValueError(f"clipping_norm: expected a number above 0, got {self.clipping_norm}.")
        stated = {"sensitivity": self.sensitivity, "epsilon": self.epsilon, "delta": self.delta}
        for name, value in stated.items():
            if self.mod == _CLIPPING and value is not None:
                raise ValueError(f"{name}: {_CLIPPING} adds no noise and takes none, got {value}. Leave it out.")
            if self.mod == _LOCAL_DP and value is None:
                raise ValueError(f"{name}: {_LOCAL_DP} has no default for it. State what the deployment states.")
            if value is not None and not 0 < value < math.inf:
                what = "; without it there is no noise. To clip alone, use fixedclipping_mod" if value == 0 else ""
                raise ValueError(f"{name}: expected a number above 0, got {value}{what}.")
        if self.delta is not None and self.delta >= 1:
            raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {self.delta}.")

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in each entry, by Flower's formula; 0 where the mod clips alone."""
        if self.sensitivity is None or self.epsilon is None or self.delta is None:
            return 0.0
        return self.sensitivity * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon

    @property
    def effects(self) -> UpdateEffects:
        """Clipping, and the noise of `LocalDpMod`."""
        return UpdateEffects(clip_norm=self.clipping_norm, noise=self.sigma)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what this setting does not protect from, and whether Flower's epsilon is true of one message."""
        budget = self._budget(1)
        if budget is None or self.epsilon is None:
            return ("Clipping without noise scales the update and hides nothing: no guarantee.",)
        found = [
            DRAWN_FROM_THE_SEED,
            "Flower draws it from NumPy's global generator: in an app that seeds that, the server can repeat the noise and "
            "subtract it.",
        ]
        if budget.epsilon > self.epsilon:
            found.append(
                f"LocalDpMod is given epsilon {self.epsilon:g} for one message, and {budget.epsilon:.3g} is true "
                f"(delta {budget.delta:g}, {self.neighbors}): {self._why_false()}."
            )
        return (*found, *weaknesses(budget))

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return what the rounds add up to, of which Flower's epsilon does not tell."""
        budget = self._budget(context.rounds)
        if budget is None or self.epsilon is None or context.rounds == 1:
            return ()
        return (
            f"LocalDpMod's epsilon is that of one message; a client that takes part in all {context.rounds} rounds has "
            f"{budget.epsilon:.3g} (delta {budget.delta:g}, {self.neighbors}).",
        )

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse models on whose parameters Flower's code does not do what it says.

        Raises:
            ValueError: buffers travel, or a parameter has no axis.
        """
        if buffers := models.shared_buffers(model):
            raise ValueError(
                f"Flower clips and noises all that a client sends, buffers too, and the model sends {len(buffers)}, "
                f"{buffers[0]} the first; fedsim protects parameters alone. Choose a model without BatchNorm."
            )
        if bare := [name for name, parameter in models.trained(model).items() if parameter.ndim == 0]:
            raise ValueError(
                f"Flower's {self.mod} sends {bare[0]}, a single number without an axis, as it is, neither clipped nor noised. "
                "Choose another model, or leave it out of training.trainable."
            )

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return what Flower's mod makes of the update: the same names, order, shapes and types.

        Raises:
            ValueError: the update is not finite, so that no factor brings its norm down.
        """
        if not update.is_finite():
            raise ValueError("the update is not finite, so it cannot be clipped; lower training.learning_rate.")
        if not update.tensors:
            return update
        if not self.sigma:
            return dataclasses.replace(update, tensors=self._passed(update.tensors))
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with seeded(seed, "flower_mod"):
            return dataclasses.replace(update, tensors=self._passed(update.tensors))

    def budget(self, context: ClientContext) -> PrivacyBudget | None:
        """Return the exact guarantee over all updates of the client so far; None where the mod clips alone."""
        return self._budget(context.participation)

    @property
    def _distance(self) -> float:
        """How far two neighbors are apart after clipping, at most."""
        return self.clipping_norm * (2.0 if self.neighbors == "replace" else 1.0)

    def _budget(self, participations: int) -> PrivacyBudget | None:
        if self.delta is None:
            return None
        epsilon = gaussian_epsilon(self.sigma / self._distance, participations, self.delta)
        return PrivacyBudget(epsilon, self.delta, self.neighbors)

    def _why_false(self) -> str:
        if self.sensitivity is not None and self.sensitivity < self._distance:
            return (
                f"its sensitivity {self.sensitivity:g} is less than {self._distance:g}, by which updates clipped to "
                f"{self.clipping_norm:g} may differ"
            )
        return "its formula is proven for an epsilon below 1 alone"

    def _passed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors as Flower's mod sends them, who got weights of zero."""
        from flwr.supercore.differential_privacy import add_gaussian_noise_inplace

        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        with _quiet():
            try:
                sent = self._through_mod(arrays)
            except ZeroDivisionError:  # of a norm of zero, by which Flower divides before it draws
                sent = {name: array.copy() for name, array in arrays.items()}
                if self.sigma:
                    add_gaussian_noise_inplace(list(sent.values()), self.sigma)
        return {name: torch.from_numpy(sent[name]).to(tensor.device) for name, tensor in tensors.items()}

    def _through_mod(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
        from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod

        def message(sent: Mapping[str, np.ndarray]) -> Any:
            record = ArrayRecord({name: Array(array) for name, array in sent.items()})
            norm = ConfigRecord({"clipping_norm": self.clipping_norm})  # by which the strategy tells it
            return _Message(RecordDict({_ARRAYS: record, "config": norm}))

        mod: Callable[..., Any] = fixedclipping_mod
        if self.mod == _LOCAL_DP:
            given: Any = (self.clipping_norm, self.sensitivity, self.epsilon, self.delta)
            mod = LocalDpMod(*given)
        zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
        reply = mod(message(zeros), None, lambda asked, context: message(arrays))
        return {name: array.numpy() for name, array in reply.content[_ARRAYS].items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Flower logs of every update in this thread out of the display."""
    logger, thread = logging.getLogger("flwr"), threading.get_ident()

    def is_kept(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


@dataclass(frozen=True)
class _Message:
    """What Flower's mods read of a message; Flower itself makes messages in a running app alone."""

    content: Any

    @staticmethod
    def has_error() -> bool:
        """Return that nothing failed."""
        return False
