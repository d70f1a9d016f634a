import pytest
import torch
from fedsim_attacks.priors.natural import Roughness, length, natural_noise, patch_differences, total_variation
from hypothesis import given
from hypothesis import strategies as st


def test_total_variation_is_the_mean_absolute_step() -> None:
    images = torch.zeros(1, 1, 3, 4)
    images[..., 2:] = 0.6
    assert float(total_variation(images)) == torch.tensor(0.6 / 3).item()


@given(patch=st.sampled_from([2, 3, 4]), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 100))
def test_a_image_without_seams_has_none_and_one_of_flat_patches_has_all(
    patch: int, rows: int, columns: int, seed: int
) -> None:
    flat = torch.rand(1, 2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tiles = flat.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    steps = [(flat[..., 1:, :] - flat[..., :-1, :])[0].square().mean((0, 2)).sqrt()]
    steps.append((flat[..., 1:] - flat[..., :-1])[0].square().mean((0, 1)).sqrt())
    expected = torch.cat(steps).mean() if rows * columns > 1 else torch.zeros(())
    assert float(patch_differences(tiles, patch)) == pytest.approx(float(expected), abs=1e-9)
    # Equal on both sides of every seam, whatever lies inside of the patches.
    line = torch.rand(patch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mirrored = torch.cat([line if index % 2 else line.flip(0) for index in range(columns)])
    assert float(patch_differences(mirrored.expand(1, 3, patch, -1), patch)) == pytest.approx(0, abs=1e-9)


def test_seams_push_both_sides_together_and_nothing_else() -> None:
    images = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with torch.no_grad():
        images[..., 2:] = 1
    (slope,) = torch.autograd.grad(patch_differences(images, 2), images)
    assert (slope[..., 2] > 0).all() and torch.equal(slope[..., 1], -slope[..., 2])
    assert not slope[..., [0, 3]].any()


def test_the_slope_of_seams_is_that_of_finite_differences_and_finite_on_flat_images() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: patch_differences(x, 4), images.requires_grad_())
    assert torch.autograd.gradcheck(length, images)
    for prior in (lambda x: patch_differences(x, 4), lambda x: patch_differences(x, 8), length):
        flat = torch.zeros(1, 3, 8, 8, requires_grad=True)
        (slope,) = torch.autograd.grad(prior(flat), flat)
        assert bool(torch.isfinite(slope).all())


def test_a_image_of_one_patch_has_no_seam() -> None:
    assert float(patch_differences(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 8)) == 0


def test_length_is_the_mean_of_the_images_root_mean_squares() -> None:
    images = torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), -4.0)])
    assert float(length(images)) == pytest.approx(3)


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
