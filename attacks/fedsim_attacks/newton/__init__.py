"""Gauss-Newton on images: what they leave of the observed gradient, and steps that are solved for."""

from fedsim_attacks.newton.alternation import closed_form
from fedsim_attacks.newton.dct_starts import DCTStarts, StartFeatures
from fedsim_attacks.newton.iteration import above_noise, gauss_newton
from fedsim_attacks.newton.iterative_regularization import IterativeRegularization
from fedsim_attacks.newton.last_block import read_last_block
from fedsim_attacks.newton.last_block_residual import LastBlockResidual
from fedsim_attacks.newton.levenberg_marquardt import ChosenProducts, LevenbergMarquardt, Products, chosen_products
from fedsim_attacks.newton.residual import Iterate, Residual, obstacle

__all__ = [
    "ChosenProducts",
    "DCTStarts",
    "Iterate",
    "IterativeRegularization",
    "LastBlockResidual",
    "LevenbergMarquardt",
    "Products",
    "Residual",
    "StartFeatures",
    "above_noise",
    "chosen_products",
    "closed_form",
    "gauss_newton",
    "obstacle",
    "read_last_block",
]
