"""Gradients to images through strided convolutions, against those of torch."""

import pytest
import torch
from fedsim_defenses._image_gradients import swift_image_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.seeds import torch_generator

PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


def is_replaced(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


def layer(**changes: object) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2, **changes})  # type: ignore[arg-type]


@settings(deadline=None)
@given(PAIRS, PAIRS, st.tuples(st.integers(0, 5), st.integers(0, 5)), PAIRS, st.booleans(), st.integers(0, 99))
def test_the_image_gets_the_gradient_that_torch_gives_it(kernel, stride, padding, more, bias, seed):
    draws = torch_generator(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, kernel, stride, padding, bias=bias), nn.Sigmoid())
    size = [max(side + extra - 2 * pad, 1) + 3 for side, pad, extra in zip(kernel, padding, more, strict=True)]
    images = torch.randn(2, 3, *size, generator=draws).requires_grad_()
    expected = model(images)
    over = torch.randn(expected.shape, generator=draws)

    def gradient() -> Tensor:
        return torch.autograd.grad((model(images) * over).sum(), images)[0]

    plain = gradient()
    with swift_image_gradients(model):
        assert is_replaced(model[0]) == (stride != (1, 1))
        assert torch.equal(model(images), expected)
        torch.testing.assert_close(gradient(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        layer(stride=1),
        layer(in_channels=64),
        layer(dilation=2),
        layer(in_channels=4, groups=2),
        layer(padding_mode="circular"),
        nn.utils.parametrizations.weight_norm(layer()),
        nn.Conv1d(3, 4, 3, 2),
    ],
)
def test_layers_of_other_kinds_are_left_alone(other):
    with swift_image_gradients(other):
        assert not is_replaced(other)


def test_a_layer_whose_forward_pass_somebody_replaced_keeps_it():
    mine = layer()
    mine.forward = torch.sin
    with swift_image_gradients(mine):
        assert mine.forward is torch.sin
    assert mine.forward is torch.sin


def test_an_exception_leaves_no_trace():
    model = nn.Sequential(layer(padding="valid"), layer(in_channels=4))
    with pytest.raises(RuntimeError, match="planted"), swift_image_gradients(model):
        assert all(map(is_replaced, model))
        raise RuntimeError("planted")
    assert not any(map(is_replaced, model))


def test_second_derivatives_are_refused_instead_of_wrong():
    model, images = layer(), torch.ones(1, 3, 5, 5).requires_grad_()
    with swift_image_gradients(model):
        (gradient,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
