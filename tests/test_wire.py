import ast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim import wire

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_]


@given(array=st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))))
def test_arrays_survive_the_wire_bit_for_bit(array):
    got = wire.to_tensors(ArrayRecord({"w": Array(array)}))["w"].numpy()
    assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0)[::2], np.float32(2)])
def test_any_memory_order_is_read_as_flower_reads_it(array):
    flower = Array(np.asarray(array))
    got = wire.to_tensors(ArrayRecord({"w": flower}))["w"]
    assert torch.equal(got, torch.from_numpy(flower.numpy()))


def test_a_decoded_array_is_a_copy_that_may_be_written():
    sent = Array(np.ones(3, np.float32))
    wire.to_tensors(ArrayRecord({"w": sent}))["w"].add_(1)
    assert np.array_equal(sent.numpy(), np.ones(3))


def test_decoding_leaves_the_ast_module_alone_which_threads_of_the_host_may_be_using(monkeypatch):
    sent = wire.to_arrays({"w": torch.ones(2, 3), "scale": torch.tensor(1.0), "empty": torch.zeros(0, 4)})

    def busy(*_):
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(ast, "literal_eval", busy)
    got = wire.to_tensors(sent)
    assert torch.equal(got["w"], torch.ones(2, 3)) and got["scale"] == 1 and got["empty"].shape == (0, 4)
