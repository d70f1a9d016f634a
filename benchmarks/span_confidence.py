"""Does the confidence of span inversion tell a client's images from those of others?

    python benchmarks/span_confidence.py FOLDER --batches 20

The attack recovers each batch from its update. The confidence of what it found, computed from pixels and an update alone, is
taken against that update and against the one of the next batch, which another client sent. Printed is the area under the ROC
curve of the one against the other, and how far apart they are. Beside it stands what the same images would score, in dB, as an
answer to the other client's batch. FOLDER holds images in class folders; two batches that are compared share no image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attack_sources import digest
from fedsim_attacks.span_inversion import SpanInversion
from fedsim_attacks.spans import Picture, image_count, read_first_block, shares_outside
from scipy.stats import mannwhitneyu
from span_inversion import CLASSES, SIZE, observed

from fedsim import models
from fedsim.data.folder import Folder
from fedsim.exchange import Images, LabeledImages, Observation
from fedsim.metrics.image import psnr
from fedsim.metrics.matching import match
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator, torch_threads
from fedsim.source import Pool

RESULTS = Path(__file__).parent / "results" / "span_confidence.json"


def main() -> None:
    """Print the area under the curve and both sets of confidences; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images in class folders")
    parser.add_argument("--model", default="vit_small_patch32_224")
    parser.add_argument("--size", type=int, default=2, help="images in a batch")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with torch_threads(options.threads):
        rows = list(compared(options))
    own = [value for row in rows for value in row["own"]]
    other = [value for row in rows for value in row["other"]]
    area = float(mannwhitneyu(own, other).statistic) / (len(own) * len(other))
    facts = {"model": options.model, "size": options.size, "code": digest("span_inversion"), "area": area}
    options.output.write_text(json.dumps(facts | {"batches": rows}, indent=1) + "\n")
    wrong = [value for row in rows for value in row["wrong"]]
    print(f"{len(rows)} batches of {options.size} images: area under the curve {area:.3f}")
    print(
        f"confidence: own update {min(own):.2f} to {max(own):.2f}, another client's {min(other):.2f} to {max(other):.2f}"
    )
    print(f"PSNR as an answer to another client's batch: {min(wrong):.1f} to {max(wrong):.1f} dB")


def compared(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return of each batch the confidences of what was found in it, against its own update and against the next one's."""
    pool = Folder(path=str(options.folder), image_size=SIZE).load(options.seed).train
    model = models.build(ModelPart(name=options.model), CLASSES, SIZE, options.seed)
    places = drawn(len(pool), options)
    batches = [_labeled(pool, chosen, options.seed, number) for number, chosen in enumerate(places)]
    updates = [observed(model, batch, "none", torch_generator(options.seed)) for batch in batches]
    for number, (batch, update) in enumerate(zip(batches, updates, strict=True)):
        after = next(n % len(batches) for n in range(number + 1, number + len(batches)) if _disjoint(places, number, n))
        finding = SpanInversion().run(update, torch_generator(options.seed, "attack"))
        assert finding.images is not None
        row = {
            "own": confidences(update, finding.images),
            "other": confidences(updates[after], finding.images),
            "psnr": _scores(finding.images, batch.images),
            "wrong": _scores(finding.images, batches[after].images),
        }
        print(json.dumps(row), flush=True)
        yield row


def _labeled(pool: Pool, chosen: list[int], seed: int, number: int) -> LabeledImages:
    labels = torch.randperm(CLASSES, generator=torch_generator(seed, f"labels {number}"))[: len(chosen)]
    return LabeledImages(pool.read(chosen).images, labels)


def _disjoint(places: list[list[int]], one: int, other: int) -> bool:
    return not set(places[one]) & set(places[other % len(places)])


def _scores(found: Images, true: Images) -> list[float]:
    pairs = [(one, image) for image, one in enumerate(match(found, true)) if one is not None]
    return [round(psnr(found[one], true[image], 1.0), 1) for one, image in pairs]


def drawn(count: int, options: argparse.Namespace) -> list[list[int]]:
    """Return the images of each batch: in an order of chance, and in another one once all are used."""
    fitting = count // options.size
    chosen = []
    for number in range(options.batches):
        order = torch.randperm(count, generator=torch_generator(options.seed, f"order {number // fitting}"))
        start = number % fitting * options.size
        chosen.append(order[start : start + options.size].tolist())
    return chosen


def confidences(update: Observation, images: Images) -> list[float]:
    """Return the confidence of each image against an update, as the attack computes it."""
    assert update.normalization is not None
    block = read_first_block(update)
    block = block.limited(image_count(block) * block.tokens_per_image)
    shares = shares_outside(block, update.normalization.normalize(images).double())
    return [round(Picture(image, each, []).confidence, 3) for image, each in zip(images, shares, strict=True)]


if __name__ == "__main__":
    main()
