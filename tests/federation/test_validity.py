import numpy as np
import pytest
import torch

from fedsim.federation.validity import examples_fault, tensors_fault

MODEL = {"b": torch.zeros(3), "a": torch.zeros(2, 2)}


def changed(**tensors):
    return {**MODEL, **tensors}


def test_tensors_of_the_model_have_no_fault():
    assert tensors_fault({"b": torch.arange(3.0), "a": torch.ones(2, 2)}, MODEL) is None


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (None, "expected tensors by name, got NoneType"),
        ({}, "b and 1 more are missing"),
        ({"a": MODEL["a"]}, "b is missing"),
        (changed(**{"a\x1b[31m": torch.zeros(1)}), r"'a\x1b[31m' is not of the model"),
        ({"a": MODEL["a"], "b": MODEL["b"]}, "the order differs from the model's: a comes where b belongs"),
        (changed(a=np.zeros((2, 2))), "a is a ndarray, not a tensor"),
        (changed(a=torch.zeros(4)), "a has shape (4,), not (2, 2)"),
        (changed(a=torch.tensor(1.0)), "a has shape (), not (2, 2)"),
        (changed(a=torch.zeros(2, 2).double()), "a holds float64, not float32"),
        (changed(a=torch.zeros(2, 2).to_sparse()), "a is stored as sparse_coo, not as a dense tensor"),
        (changed(a=torch.tensor([[1.0, torch.nan], [torch.inf, 0.0]])), "a is not finite in 2 of 4 entries"),
    ],
)
def test_the_first_fault_of_tensors_is_told(found, fault):
    assert tensors_fault(found, MODEL) == fault


@pytest.mark.parametrize("count", [0, -5, 2.0, True, "4", None, float("nan"), 11, 2**31, 10**30])
def test_a_number_of_examples_that_cannot_be_true_is_told(count):
    assert examples_fault(count, 10) is not None and "a whole number from 1 to 10" in examples_fault(count, 10)


def test_numbers_of_examples_that_may_be_true_pass():
    assert examples_fault(1, 10) is None and examples_fault(10, 10) is None
    assert examples_fault(2**31 - 1) is None and examples_fault(2**31, 2**40) is not None
