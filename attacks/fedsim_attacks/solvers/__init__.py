"""Solvers that know nothing of attacks: linear systems known by their products, fixed points, nearby whole numbers."""

from fedsim_attacks.solvers.fixed_points import fixed_point
from fedsim_attacks.solvers.linear import Solution, conjugate_gradients
from fedsim_attacks.solvers.whole_numbers import Bounds, largest_remainder, nearest_whole, onto_simplex

__all__ = [
    "Bounds",
    "Solution",
    "conjugate_gradients",
    "fixed_point",
    "largest_remainder",
    "nearest_whole",
    "onto_simplex",
]
