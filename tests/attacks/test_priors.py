import torch
from fedsim_attacks._priors import Roughness, natural_noise, total_variation
from hypothesis import given
from hypothesis import strategies as st


def test_total_variation_is_the_mean_absolute_step() -> None:
    images = torch.zeros(1, 1, 3, 4)
    images[..., 2:] = 0.6
    assert float(total_variation(images)) == torch.tensor(0.6 / 3).item()


@given(seed=st.integers(0, 1000), height=st.integers(2, 5), width=st.integers(2, 5))
def test_the_prior_s_gradient_is_that_of_its_energy(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64)
    prior = Roughness.around_edges(torch.rand(images.shape, generator=generator, dtype=torch.float64), 0.1)
    wanted = images.clone().requires_grad_()
    steps = [
        (prior.vertical, wanted[..., 1:, :] - wanted[..., :-1, :]),
        (prior.horizontal, wanted[..., 1:] - wanted[..., :-1]),
    ]
    energy = sum((weight * step.square()).sum() for weight, step in steps) + 0.03 * wanted.square().sum()
    (slope,) = torch.autograd.grad(energy, wanted)
    torch.testing.assert_close(prior.gradient(images), slope / 2)


def test_edges_weigh_less_than_flat_places() -> None:
    images = torch.zeros(1, 1, 4, 4)
    images[..., 2:] = 1
    prior = Roughness.around_edges(images, 0.1)
    assert float(prior.horizontal[..., 1].max()) < 0.1 * float(prior.horizontal[..., 0].min())


def test_natural_noise_is_made_of_pixels_and_smoother_than_white_noise() -> None:
    images = natural_noise(8, (3, 32, 32), torch.Generator().manual_seed(0))
    assert images.shape == (8, 3, 32, 32)
    assert 0 <= float(images.min()) and float(images.max()) <= 1
    shuffled = images.flatten(2)[..., torch.randperm(32 * 32, generator=torch.Generator().manual_seed(1))]
    assert total_variation(images) < 0.7 * total_variation(shuffled.view_as(images))
    assert torch.equal(images, natural_noise(8, (3, 32, 32), torch.Generator().manual_seed(0)))
