"""HSIC-nCCA: how much two views of the same images depend on each other, as MIMIR measures it.

Paper: Xu, Yu, Liu, Picek. "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness". 2023.
https://arxiv.org/abs/2312.04960

With Gaussian kernels K_ij = exp(-||a_i - a_j||^2 / (2 sigma^2 d)) of d values, centered to Kc = K H and
R = Kc (Kc + 1e-5 m I)^-1 over a batch of m: HSIC_nCCA = sum_ij (R_a * R_b^T)_ij. It is 0 for a single image and finite for
equal ones, as far as the values are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SIGMA = 5.0  # of MIMIR's published code
_RIDGE = 1e-5

Rows = Float[Tensor, "batch value"]


def dependence(first: Rows, second: Float[Tensor, "batch value2"], sigma: float = SIGMA) -> Float[Tensor, ""]:
    """Return HSIC_nCCA between two views of the same images.

    Raises:
        torch.linalg.LinAlgError: a system of equations is singular.
    """
    return (_normalized(first, sigma) * _normalized(second, sigma).T).sum()


def _normalized(rows: Rows, sigma: float) -> Float[Tensor, "batch batch2"]:
    count, values = rows.shape
    squares = (rows * rows).sum(1)
    # No square root, whose gradient at two equal images would be infinite.
    distances = (squares[:, None] + squares[None, :] - 2 * rows @ rows.T).clamp(min=0)
    kernel = torch.exp(-distances / (2 * sigma**2 * values))
    centered = kernel - kernel.mean(1, keepdim=True)
    regular = centered + _RIDGE * count * torch.eye(count).to(centered)
    solved: Tensor = torch.linalg.solve(regular.T, centered.T)
    return solved.T
