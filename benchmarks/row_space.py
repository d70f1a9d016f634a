"""How far the client's own patches and those of other images stick out of the row space of the patch projection's gradient.

    python benchmarks/row_space.py

A ViT of 16 patches of 8 x 8 pixels, width 192, depth 2, untrained; batches of crops of photographs. A score is the share of a
patch's variation outside of the space; `told apart` is the probability that one of the client's patches scores less than one
of another image, 1/2 where the space says nothing. Noise is in units of the update's norm, one standard deviation an entry.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from fedsim_attacks.closed_form.row_space import RowSpace

from fedsim import models, plugins
from fedsim.audit.threat import ModelFactory
from fedsim.exchange import LabeledImages, Observation, Update
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.source import Pool, Source

CLASSES, SIZE, OTHERS = 10, 32, 16
KWARGS = {"patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 4}


def scores(pictures: Pool, batch_size: int, noise: float, seed: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return the rank of one batch's row space, and the scores of its own patches and of other images'."""
    model = models.build(ModelPart(name="vit_mini", kwargs=KWARGS), CLASSES, SIZE, seed)
    generator = torch_generator(seed, "benchmark", batch_size)
    order = torch.randperm(len(pictures), generator=generator)[: batch_size + OTHERS].tolist()
    batch, others = pictures.read(order[:batch_size]), pictures.read(order[batch_size:])
    normalization = models.normalization(model)
    update = disturbed(model, normalization.normalize(batch.images), batch, noise, generator)
    seen = Observation(update, ModelFactory(model), (3, SIZE, SIZE), CLASSES, batch_size, normalization=normalization)
    space = RowSpace.of(seen)
    own, foreign = (space.score(normalization.normalize(images)).flatten() for images in (batch.images, others.images))
    return space.rank, own, foreign


def disturbed(
    model: torch.nn.Module, inputs: torch.Tensor, batch: LabeledImages, noise: float, generator: torch.Generator
) -> Update:
    """Return the gradient of a batch with Gaussian noise."""
    clean = Update(1, 0, "gradient", models.gradient_of(model, inputs, batch.labels), len(batch))
    scale = noise * clean.norm()
    tensors = {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in clean.tensors.items()}
    return Update(1, 0, "gradient", tensors, len(batch))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3, help="models and batches a row")
    seeds = parser.parse_args(arguments).seeds
    source: Source = plugins.build("data", Source, "photos", {"image_size": SIZE}, "data")
    pictures = source.load(0).train
    print("| batch | noise | rank | own score | other images' | told apart |\n|---|---|---|---|---|---|")
    for noise in (0.0, 1e-7, 1e-6, 1e-5):
        for batch_size in (1, 2, 4, 8, 11):
            found = [scores(pictures, batch_size, noise, seed) for seed in range(seeds)]
            rank = sum(rank for rank, _, _ in found) / seeds
            own, foreign = (torch.cat([case[i] for case in found]) for i in (1, 2))
            apart = sum(float((o[:, None] < f[None]).double().mean()) for _, o, f in found) / seeds
            print(f"| {batch_size} | {noise:g} | {rank:.0f} | {own.mean():.1e} | {foreign.mean():.2f} | {apart:.3f} |")


if __name__ == "__main__":
    main()
