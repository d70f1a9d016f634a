"""Spans of the first block's gradients: tokens found one by one, put in their places, and solved for pixels."""

from fedsim_attacks.spans.assembly import Assembly, assemble
from fedsim_attacks.spans.block import FirstBlock, read_first_block
from fedsim_attacks.spans.labels import read_labels
from fedsim_attacks.spans.pictures import Picture, shares_outside, solve_pictures
from fedsim_attacks.spans.ranks import image_count
from fedsim_attacks.spans.tokens import Token, TokenSearch

__all__ = [
    "Assembly",
    "FirstBlock",
    "Picture",
    "Token",
    "TokenSearch",
    "assemble",
    "image_count",
    "read_first_block",
    "read_labels",
    "shares_outside",
    "solve_pictures",
]
