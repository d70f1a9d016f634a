import pytest
import torch
from fedsim_attacks.closed_form.linear import complete, decay_share, decompose, merge_bias, noise_levels
from hypothesis import given
from hypothesis import strategies as st


def system(count: int, width: int, values: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token gradients whose rows sum to zero, patches, and the projection's gradient."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, width, generator=generator, dtype=torch.float64)
    tokens = tokens - tokens.mean(1, keepdim=True)
    patches = torch.rand(count, values, generator=generator, dtype=torch.float64) - 0.5
    return tokens, patches, tokens.T @ patches


def pull(patches: torch.Tensor) -> torch.Tensor:
    return patches


@given(width=st.integers(4, 24), values=st.integers(1, 12), seed=st.integers(0, 10**6), data=st.data())
def test_a_system_with_fewer_tokens_than_width_has_one_solution(
    width: int, values: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, width - 2))
    tokens, patches, gradient = system(count, width, values, seed)
    found = complete(decompose(tokens, gradient), torch.full((values,), 1e-24, dtype=torch.float64), pull)
    torch.testing.assert_close(found.patches, patches, atol=1e-6, rtol=0)
    assert found.filled == 0


@given(seed=st.integers(0, 10**6), weight=st.floats(1e-3, 10))
def test_completion_minimizes_the_penalized_residual(seed: int, weight: float) -> None:
    tokens, _, gradient = system(6, 4, 3, seed)
    found = complete(decompose(tokens, gradient), torch.full((3,), weight, dtype=torch.float64), pull).patches
    wanted = torch.linalg.solve(tokens @ tokens.T + weight * torch.eye(6, dtype=torch.float64), tokens @ gradient)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_the_null_space_is_filled_by_the_prior_alone() -> None:
    tokens, patches, gradient = system(6, 4, 2, seed=1)
    target = torch.ones(6, 2, dtype=torch.float64)
    shifted = gradient - tokens.T @ target  # patches minus one: the pull to zero becomes a pull to one
    found = complete(decompose(tokens, shifted), torch.full((2,), 1e-18, dtype=torch.float64), pull).patches + target
    torch.testing.assert_close(tokens.T @ found, gradient, atol=1e-6, rtol=0)
    assert float((found - target).norm()) <= float((patches - target).norm())


def test_a_zero_row_is_filled_and_does_not_break_the_others() -> None:
    tokens, patches, _ = system(5, 12, 3, seed=2)
    tokens[2] = 0
    found = complete(decompose(tokens, tokens.T @ patches), torch.full((3,), 1e-20, dtype=torch.float64), pull).patches
    torch.testing.assert_close(found[[0, 1, 3, 4]], patches[[0, 1, 3, 4]], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_identities_measure_the_noise_and_the_bias_reduces_it() -> None:
    tokens, _, gradient = system(64, 192, 48, seed=3)
    generator, sigma = torch.Generator().manual_seed(4), 0.02

    def noisy(clean: torch.Tensor) -> torch.Tensor:
        return clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)

    shared, bias = noisy(tokens), noisy(tokens.sum(0))
    noise = noise_levels(shared, noisy(gradient), bias)
    assert noise.bias is not None
    for level in noise:
        assert level == pytest.approx(sigma, rel=0.3)
    mean_error = (merge_bias(shared, bias) - tokens).sum(0).norm() / (shared - tokens).sum(0).norm()
    assert float(mean_error) < 0.3
    clean = noise_levels(tokens, gradient, tokens.sum(0))
    assert max(clean.tokens, clean.projection) < 1e-12


def test_a_model_without_layer_norm_is_judged_by_the_bias_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    gradient = tokens.T @ torch.rand(8, 4, generator=generator, dtype=torch.float64)
    noise = noise_levels(tokens, gradient, tokens.sum(0))
    assert max(noise.tokens, noise.projection) < 1e-12


@given(share=st.floats(1e-6, 0.5), seed=st.integers(0, 1000))
def test_unknown_weight_decay_is_read_off_sums_that_ought_to_vanish(share: float, seed: int) -> None:
    gradient = system(8, 16, 6, seed)[2]
    weights = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert decay_share(gradient + share * weights, weights, 0) == pytest.approx(share, rel=1e-6)
    assert abs(decay_share(gradient, torch.zeros_like(weights), 0)) == 0


def test_sums_that_do_not_follow_the_weights_are_not_called_decay() -> None:
    generator = torch.Generator().manual_seed(6)
    update = torch.randn(16, 6, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(16, 6, 4, generator=generator, dtype=torch.float64)
    assert decay_share(update, weights, 0) == 0
