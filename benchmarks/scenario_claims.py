"""Figures of scenarios outside of tables: results in the attacks' catalogue, and parts of sentences that quote figures.

Each is text with figures (see scenario_figures.py) of one pick or several in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scenario_figures import Pick


class Part(NamedTuple):
    """Text with figures of one pick."""

    pick: Pick
    text: str


Parts = Sequence[Part]

_UNPROTECTED = Pick(run="quickstart", attack="patch_embedding", clients=(0, 1, 2))
_MJP, _NOISE, _QUANTIZED = Pick(run="mjp_gamma"), Pick(run="dp_noise_sweep"), Pick(run="quantized_updates")
_INT8_WITHOUT_TOKEN = Pick(run="quantized_updates_no_class_token", clients=(3,))
_STOCK = Pick(run="april_stock")
_APRIL_RANGE = "{psnr.least:.0f} to {psnr.most:.0f} dB"


def _row_space(attack: str) -> list[Part]:
    """Return the scores without and with the prior, of batches of two and of four."""
    plain = f"{attack} steps=200"
    with_prior = f"{plain} priors={{'total_variation': 0.1, 'row_space': 1}}"
    return [
        Part(Pick(run="row_space_2", attack=plain), f"`{attack}` {{psnr.mean:.1f}} / "),
        Part(Pick(run="row_space_2", attack=with_prior), "{psnr.mean:.1f}; "),
        Part(Pick(run="row_space_4", attack=plain), "{psnr.mean:.1f} / "),
        Part(Pick(run="row_space_4", attack=with_prior), "{psnr.mean:.1f}. "),
    ]


# Run whose command a row of the attacks' catalogue holds -> the result beside it.
CATALOGUE: Mapping[str, Parts] = {
    "quickstart": [
        Part(_UNPROTECTED, "{psnr.least:.0f} to {psnr.most:.0f}, SSIM {ssim.least:.2f}; "),
        Part(Pick(run="quickstart", attack="label_count"), "labels {label_recall.mean:.2f}"),
    ],
    "vit_base_224": [Part(Pick(run="vit_base_224"), "{psnr.least:.0f} to {psnr.most:.0f}")],
    "mjp_gamma": [Part(_MJP, "{psnr.each:.1f} (grey {grey.psnr.mean:.1f}, own mean {own_mean.psnr.mean:.1f})")],
    "dp_noise_sweep": [Part(_NOISE, "{psnr.each:.1f} (grey {grey.psnr.mean:.1f}, own mean {own_mean.psnr.mean:.1f})")],
    "quantized_updates": [
        Part(_QUANTIZED, "{psnr.each:.1f} (own mean {own_mean.psnr.each:.1f}); "),
        Part(_INT8_WITHOUT_TOKEN, "without a class token int8 {psnr.mean:.1f}"),
    ],
    "row_space_2": [
        *_row_space("april_optimization"),
        *_row_space("gradient_matching"),
        Part(Pick(run="row_space_2"), "Own mean {own_mean.psnr.mean:.1f}; "),
        Part(Pick(run="row_space_4"), "{own_mean.psnr.mean:.1f}"),
    ],
    "smoke_gradient_matching": [
        Part(
            Pick(run="smoke_gradient_matching"),
            "{psnr.mean:.1f} (wrong update {wrong_update.psnr.mean:.1f}, grey {grey.psnr.mean:.1f}, "
            "own mean {own_mean.psnr.mean:.1f})",
        )
    ],
    "april_twenty": [
        Part(
            Pick(run="april_twenty"),
            "{psnr.mean:.1f} ({psnr.least:.1f} to {psnr.most:.1f}; own mean {own_mean.psnr.mean:.1f})",
        )
    ],
    "april_stock": [
        Part(
            _STOCK.narrowed(Pick(attack="april_optimization")),
            "`april_optimization` {psnr.mean:.1f} ({psnr.least:.1f} to {psnr.most:.1f}); ",
        ),
        Part(
            _STOCK.narrowed(Pick(attack="gradient_matching")),
            "`gradient_matching` {psnr.mean:.1f} (own mean {own_mean.psnr.mean:.1f})",
        ),
    ],
}

# Document -> what it says of runs in its sentences; spaces and line ends are alike.
CLAIMS: Mapping[str, Sequence[Parts]] = {
    "README.md": [],
    "scenarios/README.md": [
        [
            Part(
                Pick(run="gradvit_ablation"),
                "Labels are counted, not given: recall {label_recall.least:.2f} in every row.",
            )
        ],
        [
            Part(
                Pick(run="soft_labels", attack="patch_embedding"),
                "`patch_embedding` returns the blend that the client trained on, at {psnr.least:.0f} to {psnr.most:.0f} dB",
            )
        ],
        [
            Part(
                _STOCK.narrowed(Pick(attack="april_optimization")),
                "250 steps of `april_optimization` find {psnr.mean:.1f} dB ({psnr.least:.1f} to {psnr.most:.1f}) of the four "
                "images, ",
            ),
            Part(
                _STOCK.narrowed(Pick(attack="gradient_matching")),
                "where `gradient_matching` finds {psnr.mean:.1f} and the own mean color is {own_mean.psnr.mean:.1f}",
            ),
        ],
        [
            Part(
                Pick(run="april_imagenet"),
                "{psnr.mean:.1f} dB, mean of 10 ImageNet images ({psnr.least:.1f} to {psnr.most:.1f}; own mean color "
                "{own_mean.psnr.mean:.1f})",
            )
        ],
    ],
    "attacks/README.md": [
        [
            Part(_UNPROTECTED, f"{_APRIL_RANGE} on an unprotected update; "),
            Part(_QUANTIZED.narrowed(Pick(clients=(1,))), "{psnr.mean:.0f} dB after rounding to fp16, "),
            Part(_QUANTIZED.narrowed(Pick(clients=(2,))), "{psnr.mean:.0f} to bf16; "),
            Part(_MJP.narrowed(Pick(clients=(1,))), "{psnr.mean:.0f} dB under `mjp` with gamma 0.1"),
        ],
        [
            Part(
                Pick(run="april_twenty"),
                f"{_APRIL_RANGE} where the embedding is as wide as a patch has values, ",
            ),
            Part(Pick(run="april_imagenet"), f"{_APRIL_RANGE} where it is half as wide"),
        ],
        [
            Part(
                _STOCK.narrowed(Pick(attack="april_optimization")),
                "{psnr.mean:.0f} dB on a stock model of small patches (`vit_micro`)",
            )
        ],
    ],
    "defenses/README.md": [
        [
            Part(
                _NOISE,
                "flat grey scores {grey.psnr.mean:.1f} dB, each image's mean color {own_mean.psnr.mean:.1f}",
            )
        ],
    ],
}
