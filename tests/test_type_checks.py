"""The tests run with types checked: of calls, and of shapes where a signature has tensors."""

import beartype
import pytest
import torch
import type_checks
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from fedsim.exchange import LabeledImages, Trajectory
from fedsim.gaussian_dp import gaussian_epsilon
from fedsim.labels import smooth
from fedsim.metrics.image import psnr


def wrapped(target):
    return type_checks.checked(target, beartype.beartype)


def test_the_packages_are_checked():
    with pytest.raises(BeartypeCallHintViolation):
        gaussian_epsilon("1", 0.1)
    with pytest.raises(TypeCheckError):
        LabeledImages(torch.zeros(3, 8), torch.zeros(1))
    with pytest.raises(TypeCheckError):
        psnr(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9), 1.0)
    with pytest.raises(TypeCheckError):
        Trajectory((0,), torch.zeros(1, 3, 8, 8), (0.0,))
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        smooth("labels", 0.1)


def add(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return a + b


def broken(a: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return a[:-1]


def halves(number: int) -> int:
    return number / 2


def test_shapes_are_compared_between_parameters_and_with_the_result():
    assert len(wrapped(add)(torch.zeros(2), torch.zeros(2))) == 2
    with pytest.raises(TypeCheckError):
        wrapped(add)(torch.zeros(2), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        wrapped(broken)(torch.zeros(2))


def test_the_first_calls_in_each_test_are_checked():
    function = wrapped(add)
    for _ in range(type_checks.CALLS):
        with pytest.raises(TypeCheckError):
            function(torch.zeros(2), torch.zeros(1))
    assert len(function(torch.zeros(2), torch.zeros(1))) == 2
    type_checks.begin_test()
    with pytest.raises(TypeCheckError):
        function(torch.zeros(2), torch.zeros(1))


def test_parameters_and_results_without_tensors_are_checked():
    with pytest.raises(BeartypeCallHintViolation):
        wrapped(halves)("2")
    with pytest.raises(BeartypeCallHintViolation):
        wrapped(halves)(3)


def test_methods_and_properties_are_checked():
    class Holds:
        own = property(wrapped(lambda self: 1))

        def one(number: int) -> int:
            return number

        still = wrapped(staticmethod(one))
        text = wrapped(property(halves))

    assert Holds.still(1) == 1
    with pytest.raises(BeartypeCallHintViolation):
        Holds.still("1")
    with pytest.raises(BeartypeCallHintViolation):
        _ = Holds().text


def test_inner_functions_are_checked_until_they_were_made_often_enough():
    def made():
        def inner(number: int) -> int:
            return number

        return wrapped(inner)

    for _ in range(type_checks.ENOUGH):
        with pytest.raises(BeartypeCallHintViolation):
            made()("1")
    assert made()("1") == "1"
