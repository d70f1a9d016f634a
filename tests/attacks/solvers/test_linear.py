import torch
from fedsim_attacks.solvers.linear import conjugate_gradients
from hypothesis import given
from hypothesis import strategies as st


@given(seed=st.integers(0, 1000), size=st.integers(1, 12))
def test_conjugate_gradients_solve_a_system_in_as_many_products_as_it_has_unknowns(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T + torch.eye(size)
    right = torch.randn(size, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, right, lambda v: v / matrix.diagonal(), 2 * size, 1e-20)
    torch.testing.assert_close(matrix @ found.value, right, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.left, right - matrix @ found.value, rtol=0, atol=1e-8)


def test_a_direction_that_bends_down_ends_them() -> None:
    right = torch.tensor([1.0, 2.0])
    found = conjugate_gradients(lambda v: -v, right, lambda v: v, 5, 0.0)
    assert not found.value.any() and torch.equal(found.left, right)


def test_a_start_is_gone_on_from_and_quiet_steps_end_it() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.diag(torch.linspace(1, 9, 30, dtype=torch.float64))
    right = torch.randn(30, generator=generator, dtype=torch.float64)
    true = right / matrix.diagonal()
    near = conjugate_gradients(lambda v: matrix @ v, right, lambda v: 1.0 * v, 30, settled=1e-4, start=true + 1e-9)
    far = conjugate_gradients(lambda v: matrix @ v, right, lambda v: 1.0 * v, 30, settled=1e-4)
    assert near.steps == 3 < far.steps < 30
    torch.testing.assert_close(far.value, true, rtol=0, atol=1e-3)


def test_where_nothing_is_left_no_step_is_taken() -> None:
    found = conjugate_gradients(lambda v: v, torch.zeros(3), lambda v: v, 5)
    assert found.steps == 0 and not found.value.any()


def test_a_preconditioner_that_returns_its_argument_changes_nothing() -> None:
    matrix = torch.diag(torch.linspace(1, 9, 12, dtype=torch.float64))
    right = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same, copied = (conjugate_gradients(lambda v: matrix @ v, right, f, 12) for f in (lambda v: v, lambda v: 1.0 * v))
    assert torch.equal(same.value, copied.value)
    torch.testing.assert_close(matrix @ same.value, right, rtol=0, atol=1e-9)
