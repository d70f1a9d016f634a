import torch
from descent_cases import mean_decibels, one_gradient, pictures, tiny
from fedsim_attacks.newton.iterative_regularization import regularized
from fedsim_attacks.newton.residual import Residual
from fedsim_attacks.priors.spectrum import Spectrum
from fedsim_attacks.solvers.linear import conjugate_gradients
from fedsim_attacks.update.target import Target
from hypothesis import given
from hypothesis import strategies as st

from fedsim import models
from fedsim.exchange import LabeledImages


def problem(batch: LabeledImages) -> tuple[Residual, Spectrum]:
    model = tiny()
    response, gradients = one_gradient(model, batch)
    residual = Residual(response, {}, Target(response.names, gradients, True, model), 10.0)
    shape = (int(batch.images.shape[1]), int(batch.images.shape[2]), int(batch.images.shape[3]))
    return residual, Spectrum.of(shape, models.normalization(model), torch.device("cpu"))


@given(seed=st.integers(0, 1000), size=st.integers(1, 12))
def test_conjugate_gradients_solve_a_system_in_as_many_products_as_it_has_unknowns(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T + torch.eye(size)
    right = torch.randn(size, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, right, lambda v: v / matrix.diagonal(), 2 * size, 1e-20)
    torch.testing.assert_close(matrix @ found.step, right, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.left, right - matrix @ found.step, rtol=0, atol=1e-8)


def test_a_direction_that_bends_down_ends_them() -> None:
    right = torch.tensor([1.0, 2.0])
    found = conjugate_gradients(lambda v: -v, right, lambda v: v, 5, 0.0)
    assert not found.step.any() and torch.equal(found.left, right)


def test_a_picture_is_found_from_grey() -> None:
    batch = pictures(0)
    residual, spectrum = problem(batch)
    start = 0.03 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))
    first, *_, last = regularized(residual, spectrum, start, 15)
    denormalize = models.normalization(tiny()).denormalize
    before, after = (mean_decibels(denormalize(t.polished.images).clamp(0, 1), batch) for t in (first, last))
    assert after >= before + 8
    assert last.polished.residual < 0.1 * first.polished.residual
    torch.testing.assert_close(spectrum.images(last.waves), last.polished.images)


def test_it_stays_at_the_true_picture() -> None:
    batch = pictures(0)
    residual, spectrum = problem(batch)
    true = models.normalization(tiny()).normalize(batch.images)
    found = list(regularized(residual, spectrum, spectrum.waves(true), 40))
    assert all(tried.polished.residual < 1e-4 for tried in found)
    assert mean_decibels(models.normalization(tiny()).denormalize(found[-1].polished.images), batch) >= 60


def test_no_steps_lead_nowhere() -> None:
    residual, spectrum = problem(pictures(0))
    start = torch.zeros(pictures(0).images.shape)
    (only,) = regularized(residual, spectrum, start, 0)
    assert torch.equal(only.waves, start)
