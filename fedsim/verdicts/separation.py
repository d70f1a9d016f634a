"""Who can be told apart under secure aggregation by who takes part when: the rank of the participation matrix.

A server that sees the sum of each round, and who took part, has one linear equation a round. A client's own contribution
follows from them where its unit vector lies in the row space of the participation matrix, if contributions stay the same from
round to round. They do not quite: weights and batches change. So this says from when on aggregation rests on that change
alone, and not that anybody was separated.

Source: Lam, Wei, Cormode, Reagen. "Gradient Disaggregation: Breaking Privacy in Federated Learning by Reconstructing the User
Participant Matrix". ICML 2021. https://arxiv.org/abs/2106.06089
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.recording.run_data import RunData

_TOLERANCE = 1e-9


def separation(participants: Mapping[int, Sequence[int]]) -> dict[int, int | None]:
    """Return client -> the round whose sum separates it from all others; None where no round does.

    Args:
        participants: round -> the clients whose updates are in its sum.
    """
    clients = sorted({client for found in participants.values() for client in found})
    found: dict[int, int | None] = dict.fromkeys(clients)
    basis = np.zeros((0, len(clients)))  # of the row space, orthonormal
    for round in sorted(participants):
        row = np.array([float(client in participants[round]) for client in clients])
        # Twice, since once leaves rounding errors of the first subtraction.
        for _ in range(2):
            row -= (row @ basis.T) @ basis
        norm = float(np.linalg.norm(row))
        if norm <= _TOLERANCE * max(1, len(participants[round])):
            continue
        basis = np.vstack([basis, row / norm])
        # A unit vector lies in the space where its projection onto it has length one.
        lengths = np.square(basis).sum(0)
        for place, client in enumerate(clients):
            if found[client] is None and lengths[place] > 1 - _TOLERANCE:
                found[client] = round
    return found


def of_run(run: RunData) -> dict[int, int | None]:
    """Return the separation of the clients of a run whose server sees sums alone; nothing of any other run."""
    if not run.sees_sums:
        return {}
    return separation({line.round: line.participants for line in run.rounds if line.participants})
