"""Images like photographs near grey, chosen by the head inputs that the classifier's gradient shows.

A trained classifier saturates. A start on the wrong side of its decision lies in another basin, and a descent does not cross
over. But which side is known: the classifier's gradient determines the head input of every image of a batch (`features`), so
of many smooth images near grey that one starts best whose head input is nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images, Normalization
from fedsim_attacks.head.inputs import head_input
from fedsim_attacks.priors import GREY, natural_noise

_CANDIDATES, _AT_ONCE = 1024, 64  # images that one is chosen from
_CONTRAST = 0.3  # of these beside photographs: enough to move a head input, too little to be in the way

Latents = Float[Tensor, "batch channel _ _"]


@dataclass(frozen=True, eq=False)
class NearestStarts:
    """Draws starts whose head inputs are near to those of the client's images.

    Args:
        model: attacked.
        wanted: head inputs of the client's images.
        normalization: of the model's input.
        shape: of what is drawn: channels, height and width before it is enlarged.
        to_images: what is drawn to images.
    """

    model: nn.Module
    wanted: Float[Tensor, "batch embed"]
    normalization: Normalization
    shape: tuple[int, int, int]
    to_images: Callable[[Latents], Images]

    @torch.no_grad()
    def draw(self, restarts: int, generator: torch.Generator) -> Float[Tensor, "restart batch channel height width"]:
        """Return the nearest of new candidates for every image; later restarts take the next nearest.

        Args:
            restarts: starts of every image.
            generator: draws the candidates.
        """
        size = self.wanted.square().sum(1, keepdim=True)
        least = self.wanted.new_empty(len(self.wanted), 0)
        kept = self.wanted.new_empty(len(self.wanted), 0, *self.shape)
        for _ in range(0, _CANDIDATES, _AT_ONCE):
            pixels = GREY + _CONTRAST * (natural_noise(_AT_ONCE, self.shape, generator) - GREY)
            drawn = self.normalization.normalize(pixels.to(self.wanted))
            apart = torch.cdist(self.wanted, head_input(self.model, self.to_images(drawn))).square() / size
            least = torch.cat([least, apart], 1)
            kept = torch.cat([kept, drawn.expand(len(kept), *drawn.shape)], 1)
            least, places = least.topk(min(restarts, least.shape[1]), largest=False)
            kept = kept[torch.arange(len(kept), device=places.device)[:, None], places]
        return kept.transpose(0, 1).contiguous()
