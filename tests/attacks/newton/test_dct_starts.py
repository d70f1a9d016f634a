import itertools
from collections.abc import Callable

import torch
from descent_cases import SIDE, grey, mean_decibels, one_gradient, pictures, tiny
from fedsim_attacks.head.nearest import NearestStarts
from fedsim_attacks.newton.dct_starts import DCTStarts, StartFeatures, fitted
from fedsim_attacks.newton.last_block import LastBlockFeatures, read_last_block
from fedsim_attacks.newton.last_block_residual import LastBlockResidual
from fedsim_attacks.newton.residual import Exact, Residual, norm
from fedsim_attacks.priors.spectrum import Spectrum
from fedsim_attacks.update.target import Target
from torch import nn
from vit_cases import gradient

from fedsim import models
from fedsim.exchange import Images, LabeledImages

SPECTRUM = Spectrum.of((3, SIDE, SIDE), models.normalization(tiny()), torch.device("cpu"))


def normalized(batch: LabeledImages) -> Images:
    return models.normalization(tiny()).normalize(batch.images)


@torch.no_grad()
def head_inputs(model: nn.Module, batch: LabeledImages) -> torch.Tensor:
    return models.head_inputs(model, normalized(batch))[0]


def last_block(model: nn.Module, batch: LabeledImages) -> LastBlockFeatures:
    return read_last_block(model, gradient(model, batch).tensors, batch.labels, head_inputs(model, batch))


def nearest_to(model: nn.Module, batch: LabeledImages) -> Callable[[torch.Generator], torch.Tensor]:
    normalization = models.normalization(model)
    shape = (3, *batch.images.shape[2:])
    starts = NearestStarts(model, head_inputs(model, batch), normalization, shape, lambda images: images)
    return lambda generator: starts.draw(1, generator)[0]


def draws(seen: StartFeatures, count: int, steps: int = 2) -> list[torch.Tensor]:
    starts = DCTStarts(seen, SPECTRUM, steps, torch.Generator().manual_seed(0))
    return list(itertools.islice(starts.draw(lambda error: None), count))


def test_a_batch_is_found_from_what_the_last_block_has_seen_and_not_from_what_it_has_seen_of_others() -> None:
    model, batch, errors = tiny(depth=2), pictures(50, 51), list[float]()
    grey_start = torch.zeros(normalized(batch).shape)
    found = [
        fitted(last_block(model, seen), SPECTRUM, grey_start, 300, errors.append) for seen in (batch, pictures(2, 3))
    ]
    assert len(errors) == 600 and errors[299] < 0.05 * errors[0]
    denormalize = models.normalization(model).denormalize
    right, wrong = (mean_decibels(denormalize(SPECTRUM.images(waves)).clamp(0, 1), batch) for waves in found)
    assert right >= grey(batch) + 10
    assert wrong <= grey(batch) + 1


def test_starts_take_turns() -> None:
    model, batch = tiny(depth=2), pictures(0, 1)
    block = last_block(model, batch)
    fit, near_grey, nearest, fit_again, other = draws(
        StartFeatures(2, nearest_to(model, batch), block, None), 5, steps=20
    )
    assert float(near_grey.abs().max()) < 0.2
    with torch.no_grad():
        error = {
            name: float(block.apart(SPECTRUM.images(start)).mean())
            for name, start in {"grey": near_grey, "fit": fit, "nearest": nearest, "again": fit_again}.items()
        }
    assert error["fit"] < error["grey"] and error["again"] < error["nearest"]
    assert not torch.equal(nearest, other)


def test_starts_without_the_last_block_are_not_fitted_and_without_head_inputs_near_grey() -> None:
    model, batch = tiny(depth=2), pictures(0, 1)
    near_grey, nearest, other = draws(StartFeatures(2, nearest_to(model, batch), None, None), 3)
    blind = draws(StartFeatures(2, None, None, "a reason"), 3)
    assert all(float(start.abs().max()) < 0.2 for start in (near_grey, *blind))
    assert not torch.equal(blind[0], blind[1]) and not torch.equal(nearest, other)
    assert min(float(start.abs().max()) for start in (nearest, other)) > 0.2


def test_further_rows_vanish_at_the_true_images_and_have_exact_products() -> None:
    model, batch = tiny(depth=2), pictures(0, 1)
    response, gradients = one_gradient(model, batch)
    target = Target(response.names, gradients, True, model)
    block, plain = last_block(model, batch), Residual(response, {}, target, 10.0)
    residual = LastBlockResidual(response, {}, target, 10.0, block=block)
    assert norm(Exact(residual, normalized(batch)).left) < 1e-3 * norm(residual.goal)
    here = Exact(residual, torch.zeros(normalized(batch).shape))
    assert len(here.left) == len(gradients) + 1
    assert norm(here.left) > norm(Exact(plain, here.images).left)
    step = torch.randn(here.images.shape, generator=torch.Generator().manual_seed(0))
    ahead, reach = here.forward(step), 1e-3
    moved = residual.reached(here.images + reach * step)
    found = (moved[-1] - here.compared[-1]) / reach
    assert float((found - ahead[-1]).norm()) < 0.02 * float(ahead[-1].norm())
    square = sum(float(part.square().sum()) for part in ahead)
    assert abs(float((step * here.backward(ahead)).sum()) - square) < 1e-3 * square
