"""Solvers that know nothing of attacks: linear systems known by their products, whole numbers near to given ones."""

from fedsim_attacks.solvers.linear import Solution, conjugate_gradients
from fedsim_attacks.solvers.whole_numbers import Bounds, largest_remainder, nearest_whole, onto_simplex

__all__ = ["Bounds", "Solution", "conjugate_gradients", "largest_remainder", "nearest_whole", "onto_simplex"]
