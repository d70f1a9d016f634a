import torch
from descent_cases import mean_decibels, one_gradient, pictures, tiny
from fedsim_attacks.newton.iteration import gauss_newton
from fedsim_attacks.newton.iterative_regularization import IterativeRegularization
from fedsim_attacks.newton.residual import Residual
from fedsim_attacks.priors.spectrum import Spectrum
from fedsim_attacks.update.target import Target

from fedsim import models
from fedsim.exchange import LabeledImages


def problem(batch: LabeledImages) -> tuple[Residual, Spectrum]:
    model = tiny()
    response, gradients = one_gradient(model, batch)
    residual = Residual(response, {}, Target(response.names, gradients, True, model), 10.0)
    shape = (int(batch.images.shape[1]), int(batch.images.shape[2]), int(batch.images.shape[3]))
    return residual, Spectrum.of(shape, models.normalization(model), torch.device("cpu"))


def test_a_image_is_found_from_grey() -> None:
    batch = pictures(0)
    residual, spectrum = problem(batch)
    start = 0.03 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))
    first, *_, last = gauss_newton(residual, start, IterativeRegularization(spectrum), 15)
    denormalize = models.normalization(tiny()).denormalize
    before, after = (mean_decibels(denormalize(t.images).clamp(0, 1), batch) for t in (first, last))
    assert after >= before + 8
    assert last.residual < 0.1 * first.residual
    torch.testing.assert_close(spectrum.images(last.coordinates), last.images)


def test_it_stays_at_the_true_image() -> None:
    batch = pictures(0)
    residual, spectrum = problem(batch)
    true = models.normalization(tiny()).normalize(batch.images)
    found = list(gauss_newton(residual, spectrum.coefficients(true), IterativeRegularization(spectrum), 40))
    assert all(tried.residual < 1e-4 for tried in found)
    assert mean_decibels(models.normalization(tiny()).denormalize(found[-1].images), batch) >= 60


def test_no_steps_lead_nowhere() -> None:
    residual, spectrum = problem(pictures(0))
    start = torch.zeros(pictures(0).images.shape)
    (only,) = gauss_newton(residual, start, IterativeRegularization(spectrum), 0)
    assert torch.equal(only.coordinates, start)
