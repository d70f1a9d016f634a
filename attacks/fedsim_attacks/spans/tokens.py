"""Tokens of all images at once: the inputs of the first block's MLP, one by one, from random starts.

Which image and which position a token belongs to plays no part, and neither do labels, attention or the scale of the update.
A start follows Adam for a while and Levenberg-Marquardt to the end. A token that is found gives its gradients away, and with
them the vector that is orthogonal to all others, see `TokenGradients`; the search goes on among inputs without that token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim import progress
from fedsim_attacks.spans.block import FirstBlock
from fedsim_attacks.spans.slices import Coordinates, Slice
from fedsim_attacks.spans.token_gradients import TokenGradients

_WARM_STEPS = 120
_REACH = 0.25, 0.01  # Adam's rate at first and at last, in units of a coordinate
_STEPS, _DAMPINGS = 40, 8
_DAMPING, _LEAST_DAMPING = 0.1, 1e-7
_EASED, _RAISED = 0.2, 5.0
_STALLED = 1e-3  # share of the objective that a step must save
_ARRIVED = 1e-11  # objective in float32
_NEAR = 1e-4  # objective from which a start is worth refining
_REFINEMENTS = 6
_SAME = 5e-3  # relative distance up to which two tokens are one
_CERTAIN = 4.0  # least certainty of a token's gradients
_PATIENCE = 6  # batches of starts without a new token


class Token(NamedTuple):
    """One token, float64.

    Args:
        input: of the MLP.
        dual: orthogonal to all other tokens with the constant appended, 1 on this one.
        inner: gradient at the MLP's first layer, in units of the update.
        outer: gradient at its output.
        share: of the activations' norm, outside of the span.
        certainty: how far the gradients stand out: second smallest over smallest singular value of what determines them.
    """

    input: Float[Tensor, " embed"]
    dual: Float[Tensor, " appended"]
    inner: Float[Tensor, " hidden"]
    outer: Float[Tensor, " embed"]
    share: float
    certainty: float


@dataclass(frozen=True)
class TokenSearch:
    """The search for all tokens of an update.

    Args:
        block: the first block, with the spans of as many tokens as there are.
        starts: that descend together.
        tolerance: share of the activations' norm outside of the span up to which an input is a token.
        device: of the search; results are on the CPU.
    """

    block: FirstBlock
    starts: int
    tolerance: float
    device: torch.device

    def run(self, generator: torch.Generator) -> list[Token]:
        """Return the tokens that were found; draws the starts."""
        gradients = TokenGradients.of(self.block)
        basis = self.block.inputs.right.T
        whole, total = Slice.of(self.block, basis), basis.shape[1]
        quick = whole.to(torch.float32, self.device)
        found: list[Token] = []
        fruitless, rest = 0, whole
        while len(found) < total and fruitless < _PATIENCE:
            known = len(found)
            for start in [rest.inputs(start.cpu().double()) for start in self._descended(rest, generator)]:
                reached = self._solved(rest, rest.coordinates(start))
                token = None if reached is None else self._token(whole, quick, reached, gradients, found)
                if token is None:
                    continue
                found.append(token)
                progress.advance(len(found), total, token.share)
                if len(found) == total:
                    break
                # What is left of the other starts without this token is a start for another one.
                rest = Slice.of(self.block, _without(basis, torch.stack([token.dual for token in found])))
            fruitless = fruitless + 1 if len(found) == known else 0
        return found

    def _descended(self, rest: Slice, generator: torch.Generator) -> Iterator[Coordinates]:
        """Yield starts after Adam, the most promising first."""
        count = min(self.starts, 2 * rest.free + 1)
        here = rest.to(torch.float32, self.device)
        at = here.start(count, generator)
        if not rest.free:
            yield at[0]
            return
        size = float(at.square().mean().sqrt())
        at.requires_grad_()
        adam = torch.optim.Adam([at], lr=size)
        for step in range(_WARM_STEPS):
            first, last = _REACH
            cosine = 0.5 * (1 + math.cos(math.pi * step / _WARM_STEPS))
            adam.param_groups[0]["lr"] = size * (first * cosine + last)
            adam.zero_grad()
            here.objective(at).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
        with torch.no_grad():
            order = here.objective(at).argsort()
        yield from at.detach()[order]

    def _solved(self, rest: Slice, start: Coordinates) -> Float[Tensor, " embed"] | None:
        """Return the input where Levenberg-Marquardt ends, if that is near a token."""
        at, left = _levenberg_marquardt(rest.to(torch.float32, self.device), start)
        return rest.inputs(at.cpu().double()) if left < _NEAR or not rest.free else None

    def _token(
        self,
        whole: Slice,
        quick: Slice,
        near: Float[Tensor, " embed"],
        gradients: TokenGradients,
        found: list[Token],
    ) -> Token | None:
        """Return the token near an input, if there is a new one: refined among all inputs of the span."""
        at, _ = _levenberg_marquardt(quick, whole.coordinates(near))
        token = whole.inputs(_polished(whole, quick, at))
        share = float(self.block.hidden.outside(self.activations(token)[None])[0])
        if share > self.tolerance or _is_known(token, found):
            return None
        of = gradients.at(token)
        if of.certainty < _CERTAIN:
            return None
        return Token(token, of.dual, of.inner, of.outer, share, of.certainty)

    def activations(self, token: Float[Tensor, " embed"]) -> Float[Tensor, " hidden"]:
        """Return the second layer's input for one of the first."""
        mlp: Any = self.block.block.mlp
        activations: Tensor = mlp.act(mlp.fc1(token))
        return activations


def _levenberg_marquardt(here: Slice, start: Coordinates) -> tuple[Coordinates, float]:
    """Return the coordinates and the objective where Levenberg-Marquardt ends."""
    at, damping = start.to(here.origin), _DAMPING
    left = float(here.objective(at[None])[0])
    unit = torch.eye(here.free, dtype=at.dtype, device=at.device)
    for _ in range(_STEPS if here.free else 0):
        if left < _ARRIVED:
            break
        system = here.linearized(at)
        ridge = system.curvature.diagonal().mean() * unit
        then = math.inf
        for _ in range(_DAMPINGS):
            step, failed = torch.linalg.solve_ex(system.curvature + damping * ridge, -system.gradient)
            then = math.inf if bool(failed) else float(here.objective((at + step)[None])[0])
            if then < left:
                break
            damping *= _RAISED
        if not then < left:
            break
        saved, at, left = left - then, at + step, then
        damping = max(damping * _EASED, _LEAST_DAMPING)
        if saved < _STALLED * left:
            break
    return at, left


def _polished(whole: Slice, quick: Slice, start: Coordinates) -> Coordinates:
    """Return coordinates in float64, by Newton's steps with the curvature of the start in float32."""
    at = start.cpu().double()
    left = float(whole.objective(at[None])[0])
    curvature = quick.linearized(start).curvature.cpu().double()
    ridge = _LEAST_DAMPING * curvature.diagonal().mean() * torch.eye(whole.free, dtype=at.dtype)
    factor, failed = torch.linalg.cholesky_ex(curvature + ridge)
    for _ in range(0 if bool(failed) else _REFINEMENTS):
        step = torch.cholesky_solve(whole.gradient(at)[:, None], factor)[:, 0]
        then = float(whole.objective((at - step)[None])[0])
        if not then < left:
            break
        at, left = at - step, then
    return at


def _without(basis: Float[Tensor, "appended rank"], duals: Float[Tensor, "found appended"]) -> Tensor:
    """Return an orthonormal basis of what is orthogonal to the found tokens' duals."""
    within = (duals @ basis).T
    complete = torch.linalg.qr(within, mode="complete").Q
    rest: Tensor = basis @ complete[:, len(duals) :]
    return rest


def _is_known(token: Float[Tensor, " embed"], found: list[Token]) -> bool:
    return any(float((token - known.input).norm()) < _SAME * float(token.norm()) for known in found)
