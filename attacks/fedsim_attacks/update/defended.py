"""What a client's defenses made of its gradient, as far as grants and the update tell, as operators of the matching.

A defense that is modeled costs the attack what it destroys, and nothing more:

- clipping scales by min(1, C / norm): so is the gradient of the images;
- noise of known size: tensors and rows count by their share of signal (`signal_share`), and `matching.discrepancy` lets no
  term come nearer to the update than noise would leave it;
- an entry that is exactly zero was dropped (pruning, random masks), or was less than half a step of a grid (int8, float32
  weights): whatever explains it is no difference;
- where signs alone were sent, so are those of the gradient of the images, softened;
- a classifier of which columns were hidden is left out;
- masked jigsaw positions (MJP): the model looks up the unknown position for the patches whose position rows are silent, and
  the gradient of the localization loss is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Observation, UpdateEffects
from fedsim.models import head_names, prefix_rows
from fedsim_attacks.update.gradient import mean_gradient
from fedsim_attacks.update.jigsaw import puzzle_names, restore
from fedsim_attacks.update.rounding import recognize
from fedsim_attacks.update.target import Target
from fedsim_attacks.update.tensors import POSITIONS, Gradients, TokenGradient
from fedsim_attacks.update.told import told_cautions, told_effects

_UNKNOWN, _PUZZLE = "mjp.unknown", "mjp."
_SILENT = 0.1  # share of exact zeros from which on they are no accident
_AT_LIMIT = 0.99  # of the clipping norm
_CLEAR = 3.0  # standard deviations by which a squared norm must exceed that of noise
_LEAST_STEPS = 1.5  # of its grid, below which a tensor's least entry shows that nothing else was dropped
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Defended:
    """A target, and the way from the gradient of images to what the client's defenses would have sent of it.

    Args:
        target: what is left to match.
        limit: norm to which the gradient was clipped, over all entries that were sent; None where it was not.
        silent: tensor by tensor how far an entry may be from the observed one at no cost, infinite where it was dropped; None
            for a tensor that has no such entry.
        deviation: standard deviation of the noise in each entry.
        signs: whether signs alone were sent.
        hidden: patches that shared the unknown position.
        active: names of what was modeled.
        cautions: reasons to doubt it.
    """

    target: Target
    limit: float | None = None
    silent: Sequence[Tensor | None] = ()
    deviation: float = 0.0
    signs: bool = False
    hidden: Bool[Tensor, " patch"] | None = None
    active: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    def sent(self, gradients: Gradients) -> Gradients:
        """Return what would have been sent of a gradient, in the order of the target's names; differentiable."""
        silent = self.silent or [None] * len(gradients)
        if self.limit is not None:
            heard = [g if s is None else g * (s == 0) for g, s in zip(gradients, silent, strict=True)]
            energy = torch.stack([g.square().sum() for g in heard]).sum().clamp_min(_TINY)
            factor = (self.limit / energy.sqrt()).clamp_max(1)
            gradients = [factor * g for g in gradients]
        observed = self.target.gradients
        if self.signs:
            gradients = [_magnitude(o) * soft_signs(g) for g, o in zip(gradients, observed, strict=True)]
        return [
            g if s is None else torch.where(s > 0, o + (g - o).sign() * nn.functional.relu((g - o).abs() - s), g)
            for g, o, s in zip(gradients, observed, silent, strict=True)
        ]

    def used(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights as the client's forward pass used them; differentiable, and the same where nothing was hidden."""
        if self.hidden is None:
            return weights
        known = dict(self.target.model.named_parameters())
        table, unknown = (weights.get(name, known[name].detach()) for name in (POSITIONS, _UNKNOWN))
        rows = nn.functional.pad(self.hidden, (table.shape[1] - len(self.hidden), 0))
        return {**weights, POSITIONS: torch.where(rows[:, None], unknown, table)}


def soft_signs(tensor: Tensor) -> Tensor:
    """Return the signs of a tensor's entries, softened so that small ones have a derivative."""
    size = tensor.detach().abs().mean()
    signs: Tensor = torch.tanh(tensor / torch.where(size > 0, size, 1))
    return signs


def _magnitude(signs: Tensor) -> Tensor:
    """Return the magnitude that all entries of a tensor of signs have, as far as rounding lets them."""
    return signs.abs().sum() / signs.count_nonzero().clamp_min(1)


def signal_share(tensors: Sequence[Tensor], deviation: float) -> Float[Tensor, " tensor"]:
    """Return the share of each tensor's squared norm that noise does not explain.

    Args:
        tensors: as observed.
        deviation: standard deviation of the noise in each entry.
    """
    noise = torch.tensor([tensor.numel() * deviation**2 for tensor in tensors]).to(tensors[0])
    return (1 - noise / torch.stack([tensor.square().sum() for tensor in tensors]).clamp_min(_TINY)).clamp_min(0)


def read_defenses(observation: Observation, target: Target) -> Defended:
    """Return what grants and update tell of the client's defenses.

    Args:
        observation: what the attack may know.
        target: the gradient behind its update.

    Raises:
        AttackRefusedError: all that the target holds is known to be hidden.
    """
    told = told_effects(observation)
    target, hidden, active, cautions = _without_jigsaw(observation, _shared(target, told))
    cautions += told_cautions(observation, entries=False)
    factor = _factor(observation, target)
    silent, found = _silences(observation, target, any(effects.dropped == "entries" for effects in told))
    active += found
    if found and hidden is not None:
        cautions.append("Entries are missing from the update, and rows that vanished with them may count as masked.")
    target = target._replace(
        gradients=[
            o if s is None else o.masked_fill(s.isinf(), 0) for o, s in zip(target.gradients, silent, strict=True)
        ]
    )
    clip, sigma = _granted_noise(told)
    is_partial = bool(found) or any(not tensor.any() for tensor in observation.update.tensors.values())
    limit = _limit(observation, target, clip, sigma, factor, is_partial)
    active += ["noise"] if sigma else []
    active += ["clipping"] if limit is not None else []
    signs = any(effects.signs for effects in told)
    active += ["signs"] if signs else []
    return Defended(target, limit, silent, factor * sigma, signs, hidden, tuple(active), tuple(cautions))


def _shared(target: Target, told: Sequence[UpdateEffects]) -> Target:
    """Return the target without tensors known to be hidden, of which noise may be all that is there, in whole or by columns."""
    patterns = [pattern for effects in told for pattern in effects.hidden]
    if any(effects.dropped == "classifier columns" for effects in told):
        # Others were hidden in each local step, so that those which are left may lack some.
        patterns += [names.weight for names in head_names(target.model)]
    kept = [n for n in target.names if not any(fnmatchcase(n, pattern) for pattern in patterns)]
    if not kept:
        raise AttackRefusedError(
            "the client shares nothing that this attack looks at: all of it is known to be hidden."
        )
    return _only(target, kept)


def _only(target: Target, names: Sequence[str]) -> Target:
    own = dict(zip(target.names, target.gradients, strict=True))
    return target._replace(names=list(names), gradients=[own[name] for name in names])


def _without_jigsaw(
    observation: Observation, target: Target
) -> tuple[Target, Bool[Tensor, " patch"] | None, list[str], list[str]]:
    """Return the target without the localization loss, the masked patches, what was modeled, and doubts."""
    tensors = observation.update.tensors
    if _UNKNOWN not in tensors or POSITIONS not in tensors:
        return target, None, [], []
    model = observation.model()
    gradients = mean_gradient(observation, [POSITIONS, *puzzle_names(model)]).tensors
    first = prefix_rows(model)
    tokens, occlusion = restore(model, gradients, gradients[POSITIONS][0, first:])
    hidden = None if occlusion is None or not occlusion.hidden.any() else occlusion.hidden
    kept = [n for n in target.names if not n.startswith(_PUZZLE) or (n == _UNKNOWN and hidden is not None)]
    target = _only(target, kept)
    if occlusion is None:
        # Of a batch that is not masked the localization loss alone is subtracted.
        return _with_tokens(target, first, tokens), None, [], []
    if hidden is None:
        return target, None, [], ["Several steps masked different patches; the images are matched as if none were."]
    target = _with_tokens(target, first, tokens.masked_fill(hidden[:, None], 0))
    doubt = f"{int(hidden.sum())} of {len(hidden)} patches share the unknown position: they are in the order that fits best."
    return target, hidden.to(target.gradients[0].device), ["jigsaw"], [doubt]


def _with_tokens(target: Target, first: int, tokens: TokenGradient) -> Target:
    """Return the target with other gradients of the position rows behind the prefix tokens."""
    place = target.place(POSITIONS)
    if place is None:
        return target
    gradients = list(target.gradients)
    gradients[place] = gradients[place].clone()
    gradients[place][0, first:] = tokens.to(gradients[place])
    return target._replace(gradients=gradients)


def _silences(observation: Observation, target: Target, dropped: bool) -> tuple[list[Tensor | None], list[str]]:
    """Return what `Defended.silent` holds, and what explains it.

    Args:
        observation: what the attack may know.
        target: what is left to match.
        dropped: whether the client is known to drop entries, so that every zero is one.
    """
    update = {name: observation.update.tensors[name] for name in target.names}
    sparse = [name for name, tensor in update.items() if (dropped and bool((tensor == 0).any())) or _is_sparse(tensor)]
    if not sparse:
        return [None] * len(update), []
    rounding, found = None if dropped else recognize(observation, sparse), set()
    silent: dict[str, Tensor] = {}
    for name, observed in zip(target.names, target.gradients, strict=True):
        if name not in sparse:
            continue
        tensor = update[name].double()
        reach = torch.full_like(tensor, torch.inf)
        if rounding is not None and target.is_scaled:
            if float((tensor.abs() / rounding.step(name))[tensor != 0].min()) < _LEAST_STEPS:
                reach = rounding.reach(name) * float(observed.norm() / tensor.norm())
        found.add("pruning" if reach.isinf().any() else "rounding")
        silent[name] = torch.where(tensor == 0, reach, 0).to(observed)
    return [silent.get(name) for name in target.names], sorted(found)


def _is_sparse(tensor: Tensor) -> bool:
    """Return whether zeros stand among other entries; whole rows of zeros have reasons of their own."""
    rows = tensor.flatten(1) if tensor.ndim == 4 else tensor.reshape(-1, tensor.shape[-1])
    rows = rows[rows.any(1)]
    return rows.numel() > 0 and float((rows == 0).double().mean()) > _SILENT


def _granted_noise(told: Sequence[UpdateEffects]) -> tuple[float | None, float]:
    """Return clipping norm and standard deviation of the noise, in the update's units."""
    clip, variance = None, 0.0
    for effects in told:
        clip = clip if effects.clip_norm is None else effects.clip_norm
        variance += effects.noise**2
    return clip, math.sqrt(variance)


def _factor(observation: Observation, target: Target) -> float:
    """Return the target's units over the update's."""
    return math.sqrt(_energy(target.gradients) / _energy([observation.update.tensors[name] for name in target.names]))


def _limit(
    observation: Observation, target: Target, clip: float | None, sigma: float, factor: float, is_partial: bool
) -> float | None:
    """Return the norm that clipping left to the target; None where the update shows that it was shorter before.

    Where tensors or entries are missing, that cannot be seen; the observed norm is then an upper bound that true images meet.
    """
    if clip is None:
        return None
    tensors = observation.update.tensors.values()
    entries = sum(tensor.numel() for tensor in tensors)
    spread = _CLEAR * sigma**2 * math.sqrt(2 * entries)
    if not is_partial and _energy(tensors) - entries * sigma**2 + spread < (_AT_LIMIT * clip) ** 2:
        return None
    count = sum(tensor.numel() for tensor in target.gradients)
    noise = (factor * sigma) ** 2
    left = _energy(target.gradients) - count * noise
    return math.sqrt(left) if left > _CLEAR * noise * math.sqrt(2 * count) else factor * clip


def _energy(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)
